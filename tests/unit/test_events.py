"""Each log event is used, and told in the docs in the words of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from downloader.observe.events import Event

ROOT = Path(__file__).parents[2]
MEANINGS = {
    name: " ".join(meaning.split())
    for name, meaning in re.findall(
        r'    [A-Z_]+ = "([a-z_.]+)"\n    """(.*?)"""',
        (ROOT / "src/downloader/observe/events.py").read_text("utf-8"),
        re.DOTALL,
    )
}
CODE = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py") if path.name != "events.py")


@pytest.mark.parametrize("event", Event)
def test_an_event_is_logged_somewhere(event: Event) -> None:
    assert f"Event.{event.name}" in CODE


def test_the_docs_tell_each_event_and_no_other() -> None:
    section = (ROOT / "docs/operations.md").read_text("utf-8").split("## Log events")[1]
    told = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*) \|$", section, re.MULTILINE))
    assert told == MEANINGS
    assert set(told) == set(Event)


def test_no_event_is_spelled_by_hand() -> None:
    assert not re.findall(r'log\.\w+\(\s*f?"', CODE)
