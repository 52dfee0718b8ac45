"""`downloader submit`: send jobs to a running service, and with `--wait` wait for the results."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.cli.options import HOST_LIMIT, LOCAL, Json, Service, Tags, connect
from downloader.errors import ConfigError

if TYPE_CHECKING:
    from downloader.client import ApiProblem, JobFields


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class JobFlags:
    """The flags that become fields of each job."""

    aggr_id: Annotated[str, Parameter(name="--aggr-id", show_default=False)] = ""
    """Aggregation of the jobs. Default: the URL's host."""
    aggr_limit: Annotated[int, Parameter(name="--aggr-limit", validator=Number(gte=1))] = HOST_LIMIT
    """Downloads of an aggregation at once."""
    callback: Annotated[str, Parameter(name="--callback", show_default=False)] = ""
    """Destination of the callbacks: a URL, a topic, a queue. Default: no callbacks."""
    callback_type: Annotated[str, Parameter(name="--callback-type")] = "http"
    """The backend for the callbacks."""
    priority: Annotated[int | None, Parameter(name="--priority", validator=Number(gte=0, lte=9))] = None
    """0 to 9: of an aggregation's jobs, the highest begin first."""
    tag: Tags = ()
    """A tag of each job; may be given up to eight times."""
    group: Annotated[str, Parameter(name="--group", show_default=False)] = ""
    """The group of the jobs."""
    storage_url: Annotated[str, Parameter(name="--storage-url", show_default=False)] = ""
    """A bucket of your own for the files, such as gs://BUCKET/PREFIX or az://CONTAINER."""
    field: Annotated[
        tuple[str, ...], Parameter(name=["--field", "-F"], show_default=False, allow_leading_hyphen=True)
    ] = ()
    """Another field of the jobs, as NAME=VALUE; a text as it is, any other VALUE in JSON."""

    def fields(self) -> dict[str, Any]:
        """The fields of a job other than URL and aggregation.

        Raises:
            ConfigError: a `--field` is malformed.
        """
        callback = {"callback_type": self.callback_type, "callback_dst": self.callback}
        priority = {} if self.priority is None else {"priority": self.priority}
        return {
            "aggr_limit": self.aggr_limit,
            **(callback if self.callback else {"callback_type": "none"}),
            **({"tags": self.tag} if self.tag else {}),
            **({"group": self.group} if self.group else {}),
            **({"storage_url": self.storage_url} if self.storage_url else {}),
            **dict(map(_field, self.field)),
            **priority,
        }


NO_FLAGS = JobFlags()


def submit(
    *urls: Annotated[str, Parameter(name="URL", show_default=False)],
    from_file: Annotated[
        str, Parameter(name="--from-file", show_default=False, allow_leading_hyphen=True)
    ] = "",
    flags: JobFlags = NO_FLAGS,
    seal: Annotated[bool, Parameter(name="--seal", show_default=False)] = False,
    wait: Annotated[bool, Parameter(name="--wait", show_default=False)] = False,
    results: Annotated[Path | None, Parameter(name="--results")] = None,
    json_: Json = False,
    service: Service = LOCAL,
) -> int:
    """Submit jobs to a running service.

    A job is a URL, or in a file also a JSON object with the fields of the API's
    POST /download, which win over the flags. A file may also be a table (CSV, TSV)
    whose first line names the fields, or a TsvHttpData-1.0 list. A host is an
    aggregation of its own unless --aggr-id names one. A terminal shows the
    progress and a table, a pipe gets a line for each job.
    The exit status is 1 if any job was refused or, with --wait, failed.

    For example:
      downloader submit --wait https://example.org/a.png
      downloader submit --from-file urls.txt --callback https://me.example/done
      make-jobs | downloader submit --from-file - --json

    Args:
        urls: What to download.
        from_file: File with a URL or a JSON object on each line, or a table; - for standard input.
        seal: Seal the group (--group) unless a job was refused. Its callback is sent when all have ended.
        wait: Wait until the downloads have ended.
        results: Write a row for each job to this file, which must end with .csv, .tsv or .ndjson.
        json_: Write a JSON object for each job: the service's response, with --wait the job at its end.
    """
    from downloader.cli.lists import open_results
    from downloader.cli.submit_report import open_report
    from downloader.client import RETRIES, Submitted

    unreadable: list[tuple[str, ApiProblem]] = []
    jobs = _jobs(urls, from_file, flags, unreadable)
    if seal and not flags.group:
        raise ConfigError("--seal needs --group")
    first = list(itertools.islice(jobs, 1))
    if not first and not unreadable:
        raise ConfigError("nothing to submit: give URLs, or --from-file")
    with connect(service) as client:
        client.ping()  # if there is no service, fail at once; later it may restart
    with (
        open_results(results) as write_result,
        connect(service, retries=RETRIES) as client,
        open_report(wait=wait, as_json=json_, write_result=write_result) as report,
    ):
        with contextlib.closing(client.submit_many(itertools.chain(first, jobs))) as submissions:
            for submission in submissions:
                report.submitted(submission)
            for text, problem in unreadable:
                report.submitted(Submitted(job=cast("JobFields", {"url": text}), problem=problem))
        if seal and not report.failed:
            client.seal_group(flags.group)
        if wait:
            report.waiting()
            try:
                for job in client.wait_each(report.urls):
                    report.ended(job)
            except KeyboardInterrupt:
                report.interrupted()
                raise
    report.summary()
    return 1 if report.failed else 0


def _field(text: str) -> tuple[str, Any]:
    from downloader.cli.lists import TEXT, field_types

    name, mark, value = text.partition("=")
    if not mark or not name:
        raise ConfigError(f"--field {text}: must be NAME=VALUE")
    if field_types().get(name, TEXT) == TEXT:  # an ETag is JSON too, but its quotes are part of it
        return name, value
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _jobs(
    urls: Iterable[str],
    from_file: str,
    flags: JobFlags,
    unreadable: list[tuple[str, ApiProblem]],
) -> Iterator[JobFields]:
    """Yield the jobs while reading; lines that cannot be read are appended to `unreadable`."""
    from downloader.cli.lists import read_jobs, read_line
    from downloader.client import ApiProblem
    from downloader.net import host_of
    from downloader.wire import LineProblem

    fields = flags.fields()
    arguments = ((url, read_line(url, repr(url))) for url in urls)
    for text, job in itertools.chain(arguments, read_jobs(from_file) if from_file else ()):
        if isinstance(job, LineProblem):
            unreadable.append((text, ApiProblem(job)))
            continue
        # For a URL without a host, the service returns the error.
        aggr_id = flags.aggr_id or host_of(job.get("url"), with_port=True) or "unknown"
        yield cast("JobFields", {"aggr_id": aggr_id, **fields, **job})
