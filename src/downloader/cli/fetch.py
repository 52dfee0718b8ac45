"""`downloader fetch`: URLs into a folder, without a service."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.cli.flags import Json
from downloader.cli.report import open_report
from downloader.config import Settings
from downloader.content import MimePatterns
from downloader.errors import ConfigError
from downloader.observe import configure
from downloader.oneshot import FetchRequest, OutputFolder, check_url, open_output

LIMIT = 4
"""Downloads of one host at once, unless the user says otherwise: quick, and no burden to anyone."""


RETRY_BACKOFF_S = 2.0
"""First delay between attempts: somebody waits, unlike behind the service, whose default is minutes."""


def fetch(
    *urls: Annotated[str, Parameter(name="URL", show_default=False)],
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path(),
    limit: Annotated[int, Parameter(name="--limit", validator=Number(gte=1))] = LIMIT,
    from_file: Annotated[
        str, Parameter(name="--from-file", show_default=False, allow_leading_hyphen=True)
    ] = "",
    mime: Annotated[str, Parameter(name="--mime", show_default=False, allow_leading_hyphen=True)] = "",
    json_: Json = False,
) -> int:
    """Fetch URLs into a folder, without a service.

    Each host has its own limit of downloads at once. A file is named after its URL, `name (2).ext` if that
    is taken; nothing is overwritten, and what is not complete never has a name. On a terminal it shows
    progress and a table at the end; to a pipe it writes a line for each file. Exits with 1 if any failed.

    Args:
        urls: What to fetch.
        output: Folder for the files; made if need be.
        limit: Downloads of one host at once.
        from_file: File with a URL on each line, or - for standard input; # begins a comment.
        mime: Keep only files of these types, such as "image/*" or "!text/html".
        json_: Write a JSON object for each file, when it is done.
    """
    requests = list(_requests(urls, from_file, _checked_mime(mime)))
    if not requests:
        raise ConfigError("nothing to fetch: give URLs, or --from-file")
    with open_output(output) as folder, tempfile.TemporaryDirectory(prefix="downloader-") as data_dir:
        from downloader.service import fetch_files  # noqa: PLC0415 - after the checks, which need no network

        configure(form="auto", level="error")
        with open_report(len(requests), folder=folder, as_json_lines=json_) as report:
            fetch_files(
                requests, settings=_settings(folder, Path(data_dir)), limit=limit, on_event=report.event
            )
        report.summary()
        return 1 if report.failed else 0


def _checked_mime(mime: str) -> str:
    try:
        MimePatterns.parse(mime)
    except ValueError as error:
        raise ConfigError(f"--mime: {error}") from None
    return mime


def _requests(urls: Iterable[str], from_file: str, mime: str) -> Iterator[FetchRequest]:
    for url in urls:
        try:
            yield FetchRequest(url=check_url(url), mime_type=mime)
        except ValueError as error:
            raise ConfigError(f"{url!r}: {error}") from None
    if not from_file:
        return
    name = "standard input" if from_file == "-" else from_file
    for number, line in _lines(from_file, name):
        try:
            yield FetchRequest(url=check_url(line), mime_type=mime)
        except ValueError as error:
            raise ConfigError(f"{name}, line {number}: {error}") from None


def _lines(from_file: str, name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without blank ones and comments; a # inside a URL is its fragment."""
    try:
        data = sys.stdin.buffer.read() if from_file == "-" else Path(from_file).read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ConfigError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if (stripped := line.strip()) and not stripped.startswith("#"):
            yield number, stripped


def _settings(folder: OutputFolder, data_dir: Path) -> Settings:
    """Of the one-shot service. The person at the keyboard is trusted: private addresses are allowed."""
    values: dict[str, Any] = {
        "data_dir": data_dir,
        "egress": {"downloads": {"allow": ["0.0.0.0/0", "::/0"]}},
        "processor": {
            "storage_dir": str(folder.spool_dir),
            "filestorage": {"type": "filesystem", "rootdir": str(folder.storage_dir)},
            "retry_backoff": RETRY_BACKOFF_S,
        },
    }
    return Settings.model_validate(values)
