"""`downloader fetch`: URLs into a folder, without a service."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.cli.fetch_folder import OutputFolder, open_output
from downloader.cli.lines import read_lines
from downloader.cli.options import HOST_LIMIT, Json
from downloader.errors import ConfigError

if TYPE_CHECKING:
    from downloader.config import Settings
    from downloader.service import FetchRequest

RETRIES = 2
"""Further attempts by default, as in the service."""

RETRY_BACKOFF_S = 2.0
"""First delay between attempts; much less than the service's default, because a person waits."""


def fetch(
    *urls: Annotated[str, Parameter(name="URL", show_default=False)],
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path(),
    limit: Annotated[int, Parameter(name="--limit", validator=Number(gte=1))] = HOST_LIMIT,
    from_file: Annotated[
        str, Parameter(name="--from-file", show_default=False, allow_leading_hyphen=True)
    ] = "",
    mime: Annotated[str, Parameter(name="--mime", show_default=False, allow_leading_hyphen=True)] = "",
    header: Annotated[
        tuple[str, ...],
        Parameter(name="--header", show_default=False, allow_leading_hyphen=True, consume_multiple=False),
    ] = (),
    retries: Annotated[int, Parameter(name="--retries", validator=Number(gte=0, lte=1000))] = RETRIES,
    check: Annotated[bool, Parameter(name="--check")] = False,
    json_: Json = False,
) -> int:
    """Fetch URLs into a folder, without a service.

    Each host has its own limit of downloads at once. A file gets its name from
    its origin (Content-Disposition) or its URL when it is complete; it is "name
    (2).ext" if that name is taken, so no file is overwritten. The same command
    run again skips the files that are there, without a request, and resumes those
    that were interrupted. A terminal shows progress bars and a table, a pipe gets
    a line for each file. Private addresses are allowed.
    The exit status is 1 if any file failed, 130 after Ctrl-C, 143 after SIGTERM.

    For example:
      downloader fetch https://example.org/a.png https://example.org/b.png
      downloader fetch --from-file urls.txt -o pictures --mime "image/*"
      list-urls | downloader fetch --from-file - --limit 8 --json
      downloader fetch https://example.org/a.png --header "Cookie: a=b" --retries 9

    Args:
        urls: What to fetch.
        output: Folder for the files; made if need be.
        limit: Downloads of one host at once.
        from_file: File with a URL on each line, or - for standard input; # begins a comment.
        mime: Keep only files of these types, such as "image/*" or "!text/html".
        header: Send this header, "Name: value", to each host; may be repeated. Not
            after a redirect to another host.
        retries: Further attempts at a file after a temporary failure.
        check: Ask the origins of files that are there whether they have changed, and
            replace those that have.
        json_: Write a JSON object for each file, when it is done.
    """
    from downloader.content import MimePatterns

    try:
        MimePatterns.parse(mime)
    except ValueError as error:
        raise ConfigError(f"--mime: {error}") from None
    headers = _headers(header)
    requests = {request.url: request for request in _requests(urls, from_file, mime)}
    if not requests:
        raise ConfigError("nothing to fetch: give URLs, or --from-file")
    with open_output(output) as folder, tempfile.TemporaryDirectory(prefix="downloader-") as data_dir:
        from downloader.cli.fetch_record import Record
        from downloader.cli.fetch_report import open_report
        from downloader.observe import configure
        from downloader.service import fetch_files

        configure(form="auto", level="error")
        record = Record(folder)
        with open_report(len(requests), folder=folder, record=record, as_json_lines=json_) as report:
            try:
                settings = _settings(folder, Path(data_dir), headers=headers, retries=retries)
                fetch_files(
                    report.missing(requests.values(), check=check),
                    settings=settings,
                    limit=limit,
                    on_event=report.event,
                    lasting=folder.lasting,
                )
            except (KeyboardInterrupt, SystemExit):
                report.interrupted()
                raise
        report.summary()
        return 1 if report.failed else 0


def _headers(lines: Iterable[str]) -> dict[str, str]:
    """The headers of all requests."""
    from pydantic import ValidationError

    from downloader.config import ProcessorSettings

    headers = dict(ProcessorSettings().request_headers)
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ConfigError('--header: must be "Name: value"')
        for known in [known for known in headers if known.lower() == name.lower()]:
            del headers[known]
        headers[name] = value.strip()
    try:
        return ProcessorSettings(request_headers=headers).request_headers
    except ValidationError as error:
        text = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ConfigError(f"--header: {text.removeprefix('Value error, ')}") from None


def _requests(urls: Iterable[str], from_file: str, mime: str) -> Iterator[FetchRequest]:
    from downloader.service import FetchRequest, check_url

    named = ((repr(url), url) for url in urls)
    for name, url in itertools.chain(named, read_lines(from_file) if from_file else ()):
        try:
            yield FetchRequest(url=check_url(url), mime_type=mime)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None


def _settings(folder: OutputFolder, data_dir: Path, *, headers: Mapping[str, str], retries: int) -> Settings:
    """Settings for one run. The user of the command is trusted, so private addresses are allowed."""
    from downloader.config import Settings

    values: dict[str, Any] = {
        "data_dir": data_dir,
        "egress": {"downloads": {"allow": ["0.0.0.0/0", "::/0"]}},
        "processor": {
            "storage_dir": str(folder.spool_dir),
            "filestorage": {"type": "filesystem", "rootdir": str(folder.storage_dir)},
            "retry_backoff": RETRY_BACKOFF_S,
            "request_headers": headers,
            "max_retries": retries,
            "disk_low": 100,  # a full disk is no reason to begin files from the beginning
            "disk_high": 100,
        },
    }
    return Settings.model_validate(values)
