"""`downloader job`, `jobs`, `cancel` and `retry`: show, list, cancel and retry jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from downloader.cli.options import LOCAL, Json, Service, Tags, connect, for_each
from downloader.cli.output import (
    Cell,
    details,
    local_time,
    print_rows,
    show_table,
    write,
    write_json,
    write_result,
)
from downloader.errors import ConfigError

if TYPE_CHECKING:
    from downloader.client import Client, Job, JobCallback, JobFile, JobResponse, ListedJob

JobIds = Annotated[str, Parameter(name="JOB", show_default=False)]
AggrId = Annotated[str | None, Parameter(name=["--aggr-id", "--aggr"])]
Part = Annotated[str | None, Parameter(name="-q")]
Since = Annotated[datetime | None, Parameter(name="--since")]

ROWS = 200
"""Jobs printed at once: one page of the API."""


def job(*job_ids: JobIds, json_: Json = False, service: Service = LOCAL) -> int:
    """Show jobs of a running service.

    Shows state, attempts and times, the file, the callback and the last errors.
    The exit status is 1 if there is no job with one of the ids.

    For example:
      downloader job NSb4FOAs9fVaQw
      downloader job NSb4FOAs9fVaQw --json

    Args:
        job_ids: Ids of jobs.
        json_: Write a JSON object for each job.
    """

    def show(client: Client, job_id: str) -> None:
        shown = client.job(job_id)
        write_result(shown, f"{shown.id} {shown.state}", _rows(shown), as_json=json_)

    return for_each(job_ids, show, service)


def jobs(
    *,
    state: Annotated[str | None, Parameter(name="--state")] = None,
    aggr_id: AggrId = None,
    callback: Annotated[str | None, Parameter(name="--callback")] = None,
    since: Since = None,
    tag: Tags = (),
    json_: Json = False,
    service: Service = LOCAL,
) -> int:
    """List jobs of a running service.

    Without --state and --callback it lists the jobs that are being downloaded.
    A terminal shows a table, a pipe gets tab-separated lines.

    For example:
      downloader jobs
      downloader jobs --state failed --since 2026-11-27T08:00
      downloader jobs --callback failed --aggr-id example.org
      downloader jobs --state pending --aggr-id example.org

    Args:
        state: running, succeeded, failed, cancelled; or pending, which needs --aggr-id.
        aggr_id: Only those of this aggregation.
        callback: Only those whose callback failed or succeeded.
        since: Only those that ended at this time or later.
        tag: Only those with this tag, or one of several.
        json_: Write a JSON object for each.
    """
    if state is None and callback is None:
        state = "running"
    with (
        connect(service) as client,
        closing(client.jobs(state=state, callback=callback, aggr_id=aggr_id, since=since, tags=tag)) as rows,
    ):
        if json_:
            for row in rows:
                write_json(row)
            return 0
        head = True
        while batch := list(islice(rows, ROWS)):
            _list(batch, head=head)
            head = False
    if head and sys.stdout.isatty():
        write("no such jobs")
    return 0


def cancel(*job_ids: JobIds, aggr_id: AggrId = None, json_: Json = False, service: Service = LOCAL) -> int:
    """Cancel jobs that wait or are being downloaded.

    The given ones, or with --aggr-id all of an aggregation.
    Their callback reports the cancel. A download that is over cannot be cancelled.
    The exit status is 1 if a job is unknown or its download is over.

    For example:
      downloader cancel NSb4FOAs9fVaQw
      downloader cancel --aggr-id example.org

    Args:
        job_ids: Ids of jobs.
        aggr_id: Cancel all jobs of this aggregation.
        json_: Write a JSON object for each job, or with --aggr-id one with their number.
    """
    if (aggr_id is None) == (not job_ids):
        raise ConfigError("give an id, or --aggr-id")
    if aggr_id is not None:
        with connect(service) as client:
            count = client.cancel_jobs(aggr_id)
        line = f"{count} job is cancelled" if count == 1 else f"{count} jobs are cancelled"
        write_result({"cancelled": count}, line, as_json=json_)
        return 0

    def end(client: Client, job_id: str) -> None:
        client.cancel(job_id)
        write_result({"id": job_id}, f"{job_id} is cancelled", as_json=json_)

    return for_each(job_ids, end, service)


def failures(*, aggr_id: AggrId = None, q: Part = None, json_: Json = False, service: Service = LOCAL) -> int:
    """Show what has failed for good, by aggregation and reason.

    These are the jobs that "retry --failed" sends again, or with --download repeats.

    For example:
      downloader failures
      downloader failures -q example

    Args:
        aggr_id: Only those of this aggregation.
        q: Only those of aggregations with this in their name.
        json_: Write one JSON object.
    """
    with connect(service) as client:
        failures = client.failures(aggr_id=aggr_id, q=q)
    if json_:
        write_json(failures)
        return 0
    rows: list[list[Cell]] = [
        [str(row.jobs), row.kind, row.aggr_id, local_time(row.newest_at), row.newest, row.error]
        for row in failures.groups
    ]
    columns = ("jobs", "what", "aggregation", "last", "job", "error")
    show_table(columns, rows, right=columns[:1], empty="nothing has failed")
    return 0


def retry(
    *job_ids: JobIds,
    download: Annotated[bool, Parameter(name="--download", show_default=False)] = False,
    failed: Annotated[bool, Parameter(name="--failed", show_default=False)] = False,
    aggr_id: AggrId = None,
    q: Part = None,
    since: Since = None,
    error_code: Annotated[str | None, Parameter(name="--error-code")] = None,
    destination: Annotated[str | None, Parameter(name="--destination")] = None,
    tag: Tags = (),
    json_: Json = False,
    service: Service = LOCAL,
) -> int:
    """Send failed callbacks again, or with --download repeat failed downloads.

    Of the given jobs, or with --failed of all that the other flags select.
    The exit status is 1 if a job is unknown or has not failed.

    For example:
      downloader retry NSb4FOAs9fVaQw
      downloader retry NSb4FOAs9fVaQw --download
      downloader retry --failed --aggr-id example.org --since 2026-11-27T08:00
      downloader retry --failed --download --error-code timeout

    Args:
        job_ids: Ids of jobs.
        download: Repeat downloads.
        failed: Retry all that have failed.
        aggr_id: With --failed: only those of this aggregation.
        q: With --failed: only those of aggregations with this in their name.
        since: With --failed: only those that failed at this time or later.
        error_code: With --failed: only jobs whose download ended with this code.
        destination: With --failed: only jobs with a callback to it, such as "http client.example".
        tag: With --failed: only jobs with this tag, or one of several.
        json_: Write a JSON object for each job, or with --failed one with their number.
    """
    if failed == bool(job_ids):
        raise ConfigError("give the ids of jobs, or --failed")
    if not failed and any(value is not None for value in (aggr_id, q, since, error_code, destination, *tag)):
        raise ConfigError("--aggr-id, -q, --since, --error-code, --destination and --tag need --failed")
    if failed:
        with connect(service) as client:
            count = client.retry_failed(
                download=download,
                aggr_id=aggr_id,
                q=q,
                since=since,
                error_code=error_code,
                destination=destination,
                tags=tag,
            )
        kind, done = ("download", "repeated") if download else ("callback", "sent again")
        line = f"{count} {kind} is {done}" if count == 1 else f"{count} {kind}s are {done}"
        write_result({"retried": count}, line, as_json=json_)
        return 0

    def again(client: Client, job_id: str) -> None:
        client.retry(job_id, download=download)
        line = f"{job_id} {'is downloaded' if download else 'is called back'} again"
        write_result({"id": job_id}, line, as_json=json_)

    return for_each(job_ids, again, service)


def _list(rows: Sequence[ListedJob], *, head: bool) -> None:
    """Rows of a table on a terminal, tab-separated lines elsewhere."""
    from downloader.cli.submit_report import STYLES

    cells: list[list[Cell]] = [
        [
            row.id,
            (row.state, STYLES.get(row.state, "")),
            (row.callback or "", STYLES.get(row.callback or "", "")),
            local_time(row.finished_at),
            row.aggr_id,
            row.error,
        ]
        for row in rows
    ]
    if not sys.stdout.isatty():
        show_table((), cells)
        return
    from rich.table import Table

    # Fixed widths except for the last two, so that the columns of all pages line up.
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", show_header=head, expand=True)
    for name, width in (("job", 14), ("state", 9), ("callback", 9), ("ended", 11)):
        table.add_column(name, width=width, no_wrap=True)
    table.add_column("aggregation", ratio=2, no_wrap=True)
    table.add_column("error", ratio=3, no_wrap=True)
    for row in cells:
        row[3] = str(row[3])[5:16]  # without year and seconds
    print_rows(table, cells)


def _rows(job: Job) -> Iterator[tuple[str, str]]:
    yield from details(job, url="url", aggr_id="aggregation", created_at="created", due_at="due")
    yield from details(job, finished_at="ended")
    yield "attempts", str(job.attempts)
    yield from details(job, priority="priority", crashes="crashes")
    if job.tags:
        yield "tags", ", ".join(job.tags)
    if job.file is not None:
        yield from _file_rows(job.file)
    yield from details(job, download_url="download")
    if job.response is not None:
        yield from _response_rows(job.response, url=job.url)
    if job.error:
        yield "error", f"{job.error_code}: {job.error}"
    yield from _failures("attempt failed", job)
    yield from details(job, kept_until="kept until")
    if job.callback is not None:
        yield "callback", f"{job.callback.state}, {job.callback.type} {job.callback.destination}"
        yield from _failures("delivery failed", job.callback)


def _failures(label: str, task: Job | JobCallback) -> Iterator[tuple[str, str]]:
    for failure in task.errors:
        yield label, f"{local_time(failure.at)} {failure.error}"


def _response_rows(response: JobResponse, *, url: str) -> Iterator[tuple[str, str]]:
    if response.not_modified:
        yield "file", "none: not modified"
    yield from details(response, etag="etag", last_modified="last modified", content_type="declared type")
    if response.final_url != url:
        yield "final url", response.final_url


def _file_rows(file: JobFile) -> Iterator[tuple[str, str]]:
    from rich.filesize import decimal

    yield "file", f"{file.path}, {decimal(file.size)}, {file.mime_type} {file.image_size}".rstrip()
    yield from details(file, sha256="sha256")
