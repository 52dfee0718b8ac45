"""`downloader job`, `cancel` and `retry`: show and change single jobs, or all jobs that flags select."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from downloader.cli.aggregations import described
from downloader.cli.options import (
    LOCAL,
    NO_FILTERS,
    AggrId,
    Filters,
    GroupName,
    Json,
    Service,
    connect,
    for_each,
)
from downloader.cli.output import details, local_time, write, write_result
from downloader.errors import ConfigError
from downloader.printable import escape

if TYPE_CHECKING:
    from downloader.client import Attempt, Client, Job, JobCallback, JobFile, JobResponse

LOOK_S = 1.0
"""Time between two looks of `--watch`; instances report the bytes so far every few seconds."""

JobIds = Annotated[str, Parameter(name="JOB", show_default=False)]


def job(
    *job_ids: JobIds,
    watch: Annotated[bool, Parameter(name="--watch", show_default=False)] = False,
    json_: Json = False,
    service: Service = LOCAL,
) -> int:
    """Show jobs of a running service.

    Shows state, attempts and times, the file, the callback and the last errors.
    The exit status is 1 if there is no job with one of the ids, and with --watch
    if one failed or was cancelled.

    For example:
      downloader job NSb4FOAs9fVaQw
      downloader job NSb4FOAs9fVaQw --json
      downloader job NSb4FOAs9fVaQw --watch

    Args:
        job_ids: Ids of jobs.
        watch: First write what changes, until job and callback have ended.
        json_: Write a JSON object for each job, with --watch after each change.
    """
    succeeded = []

    def show(client: Client, job_id: str) -> None:
        for job in _changes(client, job_id) if watch else (client.job(job_id),):
            over = job.ended and (job.callback is None or job.callback.ended)
            if json_ or over or not watch:
                why = "" if json_ else _why_it_waits(client, job)
                write_result(job, f"{job.id} {job.state}", _rows(job, why), as_json=json_)
            else:
                write(f"{datetime.now().astimezone():%H:%M:%S} {' '.join(_summary(job))}")
        succeeded.append(job.succeeded)

    return for_each(job_ids, show, service) or int(watch and not all(succeeded))


def _changes(client: Client, job_id: str) -> Iterator[Job]:
    """Yield a job at once and after each change, until job and callback have ended.

    Waits for a service that restarts meanwhile, and says so once.
    """
    from downloader.client import ApiProblem, Unreachable

    before, lost = None, False
    while True:
        try:
            job = client.job(job_id)
        except (ApiProblem, Unreachable) as error:
            refused = isinstance(error, ApiProblem) and error.status < HTTPStatus.INTERNAL_SERVER_ERROR
            if before is None or refused:
                raise
            if not lost:
                sys.stderr.write(f"downloader: {escape(str(error))}; trying again until it answers\n")
            lost = True
            time.sleep(LOOK_S)
            continue
        lost = False
        if before is None or _summary(job) != before:
            yield job
        if job.ended and (job.callback is None or job.callback.ended):
            return
        before = _summary(job)
        time.sleep(LOOK_S)


def _summary(job: Job) -> list[str]:
    from rich.filesize import decimal

    words = [job.id, job.state, f"attempts {job.attempts}"]
    if job.progress is not None:
        words.append(f"received {decimal(job.progress.received)}")
    if job.callback is not None:
        words.append(f"callback {job.callback.state} attempts {job.callback.attempts}")
    return words


def _why_it_waits(client: Client, job: Job) -> str:
    """The state of a pending job's aggregation; empty if that only waits until jobs are due."""
    from downloader.client import ApiProblem

    if job.state != "pending":
        return ""
    try:
        aggregation = client.aggregation(job.aggr_id)
    except ApiProblem as error:
        if error.status == HTTPStatus.NOT_FOUND:  # the job has ended meanwhile
            return ""
        raise
    return "" if aggregation.state == "scheduled" else described(aggregation)


def _rows(job: Job, why: str) -> Iterator[tuple[str, str]]:
    yield from details(job, url="url")
    yield "aggregation", f"{job.aggr_id} ({why})" if why else job.aggr_id
    yield from details(job, created_at="created", due_at="due")
    yield from details(job, finished_at="ended")
    yield "attempts", str(job.attempts)
    yield from _duration("took", job)
    yield from details(job, instance="instance")
    if job.last_attempt is not None:
        yield from _course_rows(job.last_attempt)
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
        yield from _duration("callback took", job.callback)
        yield from _failures("delivery failed", job.callback)


def _duration(label: str, task: Job | JobCallback) -> Iterator[tuple[str, str]]:
    if task.ended and task.started_at and task.finished_at:
        yield label, f"{(task.finished_at - task.started_at).total_seconds():.3g} s"


def _course_rows(course: Attempt) -> Iterator[tuple[str, str]]:
    for redirect in course.redirects:
        yield "redirect", f"{redirect.status} to {redirect.url}"
    yield from details(course, address="address")
    phases = [f"{name.replace('_', ' ')} {seconds:.3g} s" for name, seconds in course.phases.items()]
    kept = "first_byte" in course.phases and "connect" not in course.phases
    yield "phases", ", ".join(phases) + (" (kept connection)" if kept else "")


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


def cancel(
    *job_ids: JobIds,
    aggr_id: AggrId = None,
    group: GroupName = None,
    json_: Json = False,
    service: Service = LOCAL,
) -> int:
    """Cancel jobs that wait or are being downloaded.

    The given ones, or all of an aggregation or a group.
    Their callback reports the cancel. A download that is over cannot be cancelled.
    The exit status is 1 if a job is unknown or its download is over.

    For example:
      downloader cancel NSb4FOAs9fVaQw
      downloader cancel --aggr-id example.org
      downloader cancel --group night-17

    Args:
        job_ids: Ids of jobs.
        aggr_id: Cancel all jobs of this aggregation.
        group: Cancel all jobs of this group.
        json_: Write a JSON object for each job, or without ids one with their number.
    """
    name = aggr_id if group is None else group
    if (name is None) == (not job_ids) or None not in (aggr_id, group):
        raise ConfigError("give ids, or --aggr-id, or --group")
    if name is not None:
        with connect(service) as client:
            count = client.cancel_jobs(name) if group is None else client.cancel_group(name)
        line = f"{count} job is cancelled" if count == 1 else f"{count} jobs are cancelled"
        write_result({"cancelled": count}, line, as_json=json_)
        return 0

    def end(client: Client, job_id: str) -> None:
        client.cancel(job_id)
        write_result({"id": job_id}, f"{job_id} is cancelled", as_json=json_)

    return for_each(job_ids, end, service)


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
        raise ConfigError(
            "--aggr-id, -q, --since, --error-code, --destination, --group and --tag need --failed"
        )
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
