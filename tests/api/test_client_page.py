"""The programs of the client's page, run unchanged, and the table of the page."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from downloader.client import AsyncClient
from downloader.model import FileFacts, Outcome, Verdict
from downloader.store import JobStore
from servers.api import Served
from servers.jobs import end_all

PAGE = (Path(__file__).parents[2] / "docs/client.md").read_text("utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
async def ending(api: Served, nursery: trio.Nursery) -> AsyncIterator[Served]:
    """An API whose jobs all succeed."""

    async def end(store: JobStore) -> None:
        while True:
            await end_all(store, Outcome(verdict=Verdict.SUCCEEDED, file=FileFacts(size=35149)))
            await trio.sleep(0.02)

    nursery.start_soon(end, api.store)
    yield api
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("number", "printed"),
    [(0, "succeeded 35149\n409 not_to_be_retried\n"), (1, "succeeded\nsucceeded\nsucceeded\n")],
)
async def test_the_programs_of_the_page(
    ending: Served,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    printed: str,
) -> None:
    arguments = ["program", f"http://127.0.0.1:{ending.port}", "https://example.org/a.png"]
    monkeypatch.setattr(sys, "argv", arguments)
    await trio.to_thread.run_sync(exec, compile(PROGRAMS[number], "client.md", "exec"), {})
    out = capsys.readouterr().out
    assert "".join(line for line in out.splitlines(keepends=True) if " [debug " not in line) == printed


def test_each_method_is_on_the_page() -> None:
    for name in vars(AsyncClient):
        if not name.startswith("_"):
            assert re.search(rf"^\|.*`{name}\(", PAGE, re.MULTILINE), name
