"""`downloader doctor`: tries what is configured, without a service running."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from downloader.cli.flags import Config, Json
from downloader.cli.settings import load
from downloader.config import with_default_backend
from downloader.observe import configure, escape
from downloader.service import Finding, State, diagnose

_STYLES = {State.OK: "green", State.FAILED: "bold red", State.NOTE: "yellow"}


def doctor(*, config: Config = None, json_: Json = False) -> int:
    """Try all that is configured, and say what is wrong.

    Each part is tried for real and in bounded time: the store, the storage, each backend, the spool folder,
    the API's port. Nothing is left behind. Exits with 1 if any part failed.

    Args:
        config: Configuration file (TOML). Without one: defaults, and HTTP callbacks.
        json_: Write a JSON array.
    """
    settings = load(config)
    if config is None:
        settings = with_default_backend(settings)
    # What is found is told; what the parts log on their way is not.
    configure(form="json", level="error", stream=io.StringIO())
    show = _show_json if json_ else _show_table if sys.stdout.isatty() else _show_lines
    with _busy():
        findings = diagnose(settings, show=show)
    show(findings)
    return 1 if any(finding.state is State.FAILED for finding in findings) else 0


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status("trying all that is configured"):
        yield


def _show_json(findings: Sequence[Finding]) -> None:
    sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    sys.stdout.flush()


def _show_lines(findings: Sequence[Finding]) -> None:
    for finding in findings:
        sys.stdout.write(f"{finding.state:<6} {finding.part}: {escape(finding.text)}\n")
    sys.stdout.flush()


def _show_table(findings: Sequence[Finding]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark = Text(finding.state.value, style=_STYLES[finding.state])
        table.add_row(mark, Text(finding.part, style="bold"), Text(escape(finding.text)))
    console = Console()
    console.print(table)
    failed = sum(finding.state is State.FAILED for finding in findings)
    parts = len(findings)
    last = (
        Text(f"{failed} of {parts} parts failed", "bold red")
        if failed
        else Text(f"all {parts} parts are fine", "green")
    )
    console.print(last)
