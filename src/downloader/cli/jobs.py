"""`downloader job`, `failures`, `cancel` and `retry`: show, count, cancel and retry jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from downloader.cli.options import LOCAL, NO_FILTERS, AggrId, Filters, Json, Part, Service, connect, for_each
from downloader.cli.output import Cell, details, local_time, show_table, write_json, write_result
from downloader.errors import ConfigError

if TYPE_CHECKING:
    from downloader.client import Client, Job, JobCallback, JobFile, JobResponse

JobIds = Annotated[str, Parameter(name="JOB", show_default=False)]


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
    filters: Filters = NO_FILTERS,
    json_: Json = False,
    service: Service = LOCAL,
) -> int:
    """Send failed callbacks again, or with --download repeat failed downloads.

    Of the given jobs, or with --failed of all that the other flags select.
    The exit status is 1 if a job is unknown or has not failed.

    For example:
      downloader retry NSb4FOAs9fVaQw
      downloader retry NSb4FOAs9fVaQw --download
      downloader retry --failed --aggr-id example.org --since 2h
      downloader retry --failed --download --error-code timeout

    Args:
        job_ids: Ids of jobs.
        download: Repeat downloads.
        failed: Retry all that have failed, or those of them that the flags below select.
        json_: Write a JSON object for each job, or with --failed one with their number.
    """
    if failed == bool(job_ids):
        raise ConfigError("give the ids of jobs, or --failed")
    if not failed and filters != NO_FILTERS:
        raise ConfigError("--aggr-id, -q, --since, --error-code, --destination and --tag need --failed")
    if failed:
        with connect(service) as client:
            count = client.retry_failed(download=download, **filters.fields())
        kind, done = ("download", "repeated") if download else ("callback", "sent again")
        line = f"{count} {kind} is {done}" if count == 1 else f"{count} {kind}s are {done}"
        write_result({"retried": count}, line, as_json=json_)
        return 0

    def again(client: Client, job_id: str) -> None:
        client.retry(job_id, download=download)
        line = f"{job_id} {'is downloaded' if download else 'is called back'} again"
        write_result({"id": job_id}, line, as_json=json_)

    return for_each(job_ids, again, service)


def _rows(job: Job) -> Iterator[tuple[str, str]]:
    yield from details(job, url="url", aggr_id="aggregation", created_at="created", due_at="due")
    yield from details(job, finished_at="ended")
    yield "attempts", str(job.attempts)
    yield from details(job, priority="priority", crashes="crashes")
    if job.group:
        yield "group", job.group
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
    yield from details(file, sha256="sha256", md5="md5")
