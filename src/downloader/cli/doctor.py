"""`downloader doctor`: tries what is configured, without a service running."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from downloader.cli.options import Config, Json, load
from downloader.cli.remote import write

if TYPE_CHECKING:
    from downloader.service import Finding

_STYLES = {"ok": "green", "failed": "bold red", "note": "yellow"}
"""By a finding's state."""


def doctor(*, config: Config = None, json_: Json = False) -> int:
    """Try all that is configured, and say what is wrong.

    Writes to the store and to the storage and deletes it again, asks the peer of
    each backend, and looks at folders and ports. It may run beside a service.
    The exit status is 1 if any part failed.

    For example:
      downloader doctor
      downloader doctor -c config.toml --json

    Args:
        config: Configuration file (TOML). Without one: defaults, and HTTP callbacks.
        json_: Print a JSON array.
    """
    from downloader.config import with_default_backend
    from downloader.observe import configure

    settings = load(config)
    if config is None:
        settings = with_default_backend(settings)
    from downloader.service import diagnose

    # The findings say what was found; the parts' own logs are not shown.
    configure(form="json", level="error", stream=io.StringIO())
    show = _show_json if json_ else _show_table if sys.stdout.isatty() else _show_lines
    with _progress():
        findings = diagnose(settings, show=show)
    show(findings)
    return 1 if any(finding.state == "failed" for finding in findings) else 0


@contextlib.contextmanager
def _progress() -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status("trying all that is configured"):
        yield


def _show_json(findings: Sequence[Finding]) -> None:
    write(json.dumps([asdict(finding) for finding in findings], indent=2))


def _show_lines(findings: Sequence[Finding]) -> None:
    from downloader.printable import escape

    for finding in findings:
        write(f"{finding.state:<6} {finding.part}: {escape(finding.text)}")


def _show_table(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from downloader.printable import escape

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark = Text(finding.state.value, style=_STYLES[finding.state])
        table.add_row(mark, Text(finding.part, style="bold"), Text(escape(finding.text)))
    console = Console()
    console.print(table)
    failed = sum(finding.state == "failed" for finding in findings)
    if failed:
        console.print(Text(f"{failed} of {len(findings)} parts failed", "bold red"))
    else:
        console.print(Text(f"none of {len(findings)} parts failed", "green"))
