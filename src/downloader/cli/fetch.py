"""`downloader fetch`: URLs into a folder, without a service."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.cli.fetch_folder import OutputFolder, open_output
from downloader.cli.lines import read_lines
from downloader.cli.options import Json
from downloader.errors import ConfigError

if TYPE_CHECKING:
    from downloader.config import Settings
    from downloader.service import FetchRequest

LIMIT = 4
"""Downloads of one host at once by default: quick, and few enough for any host."""

RETRY_BACKOFF_S = 2.0
"""First delay between attempts; much less than the service's default, because a person waits."""


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

    Each host has its own limit of downloads at once. A file is named after its
    URL, or "name (2).ext" if that name is taken: nothing is overwritten. A file
    gets its name when it is complete. A terminal shows progress bars and a table,
    a pipe gets a line for each file. Private addresses are allowed.
    The exit status is 1 if any file failed, and 130 after Ctrl-C.

    For example:
      downloader fetch https://example.org/a.png https://example.org/b.png
      downloader fetch --from-file urls.txt -o pictures --mime "image/*"
      list-urls | downloader fetch --from-file - --limit 8 --json

    Args:
        urls: What to fetch.
        output: Folder for the files; made if need be.
        limit: Downloads of one host at once.
        from_file: File with a URL on each line, or - for standard input; # begins a comment.
        mime: Keep only files of these types, such as "image/*" or "!text/html".
        json_: Write a JSON object for each file, when it is done.
    """
    from downloader.content import MimePatterns

    try:
        MimePatterns.parse(mime)
    except ValueError as error:
        raise ConfigError(f"--mime: {error}") from None
    requests = list(_requests(urls, from_file, mime))
    if not requests:
        raise ConfigError("nothing to fetch: give URLs, or --from-file")
    with open_output(output) as folder, tempfile.TemporaryDirectory(prefix="downloader-") as data_dir:
        from downloader.cli.fetch_report import open_report
        from downloader.observe import configure
        from downloader.service import fetch_files

        configure(form="auto", level="error")
        with open_report(len(requests), folder=folder, as_json_lines=json_) as report:
            fetch_files(
                requests, settings=_settings(folder, Path(data_dir)), limit=limit, on_event=report.event
            )
        report.summary()
        return 1 if report.failed else 0


def _requests(urls: Iterable[str], from_file: str, mime: str) -> Iterator[FetchRequest]:
    from downloader.service import FetchRequest, check_url

    named = ((repr(url), url) for url in urls)
    for name, url in itertools.chain(named, read_lines(from_file) if from_file else ()):
        try:
            yield FetchRequest(url=check_url(url), mime_type=mime)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None


def _settings(folder: OutputFolder, data_dir: Path) -> Settings:
    """For one run. The person at the keyboard is trusted: private addresses are allowed."""
    from downloader.config import Settings

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
