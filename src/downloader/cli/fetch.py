"""`downloader fetch`: URLs into a folder, without a service."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.cli.fetch_folder import open_output
from downloader.cli.options import HOST_LIMIT, Json, parse_bytes, read_lines
from downloader.errors import ConfigError

if TYPE_CHECKING:
    from downloader.fetch import FetchSettings

RETRIES = 2
"""Default number of further attempts, as in the service."""

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
    max_rate: Annotated[str, Parameter(name="--max-rate", show_default=False)] = "",
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
      downloader fetch https://example.org/a.iso --max-rate 2MiB

    Args:
        urls: What to fetch.
        output: Folder for the files; made if need be.
        limit: Downloads of one host at once.
        from_file: File with a URL on each line, or - for standard input; # begins a comment.
        mime: Keep only files of these types, such as "image/*" or "!text/html".
        header: Send this header, "Name: value", to each host; may be repeated. Not
            after a redirect to another host.
        retries: Further attempts at a file after a temporary failure.
        max_rate: Bytes per second of all downloads together, such as 500KiB or 2MB.
            An attempt may then take a day instead of an hour.
        json_: Write a JSON object for each file, when it is done.
    """
    from downloader.content import MimePatterns

    try:
        MimePatterns.parse(mime)
    except ValueError as error:
        raise ConfigError(f"--mime: {error}") from None
    bytes_per_s = parse_bytes(max_rate, "--max-rate") if max_rate else None
    settings = _settings(header, retries=retries, unhurried=bytes_per_s is not None)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as checked:
        count = _check(urls, from_file, checked)
        with open_output(output) as folder:
            from downloader.cli.fetch_report import open_report
            from downloader.oneshot import fetch_files

            with open_report(count, folder=folder, as_json_lines=json_) as report:
                try:
                    fetch_files(
                        map(str.strip, checked),
                        settings=settings,
                        mime_type=mime,
                        folder=folder.hidden,
                        limit=limit,
                        bytes_per_s=bytes_per_s,
                        on_result=report.ended,
                        on_progress=report.progress,
                        skip=report.skip,
                    )
                except (KeyboardInterrupt, SystemExit):
                    report.interrupted()
                    raise
            report.summary()
            return 1 if report.failed else 0


def _check(urls: Iterable[str], from_file: str, checked: TextIO) -> int:
    """Write the URLs to a file, one per line without repetitions; rewind, and return the number of URLs.

    The run reads the URLs from the file, so that memory does not grow with their number.

    Raises:
        ConfigError: a URL is not valid, or the list is empty.
    """
    from downloader.oneshot import check_url

    digests: set[bytes] = set()
    arguments = ((repr(url), url) for url in urls)
    for name, url in itertools.chain(arguments, read_lines(from_file) if from_file else ()):
        try:
            check_url(url)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
        digest = hashlib.sha256(url.encode()).digest()
        if digest not in digests:
            digests.add(digest)
            checked.write(f"{url}\n")
    if not digests:
        raise ConfigError("nothing to fetch: give URLs, or --from-file")
    checked.seek(0)
    return len(digests)


def _settings(lines: Iterable[str], *, retries: int, unhurried: bool) -> FetchSettings:
    """Settings with the `--header` lines; `unhurried`: an attempt may take as long as any job's.

    Raises:
        ConfigError: a line is not a header that may be sent.
    """
    from pydantic import ValidationError

    from downloader.config import ProcessorSettings
    from downloader.fetch import FetchSettings

    defaults = FetchSettings()
    headers = dict(defaults.request_headers)
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ConfigError('--header: must be "Name: value"')
        for configured in [key for key in headers if key.lower() == name.lower()]:
            del headers[configured]
        headers[name] = value.strip()
    if lines:
        try:
            ProcessorSettings(request_headers=headers)
        except ValidationError as error:
            text = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise ConfigError(f"--header: {text.removeprefix('Value error, ')}") from None
    return FetchSettings(
        retry_backoff=RETRY_BACKOFF_S,
        request_headers=headers,
        max_retries=retries,
        download_timeout=defaults.max_download_timeout if unhurried else defaults.download_timeout,
        disk_low=100,  # keep partial files also when the disk is nearly full
    )
