"""Each log event is used, and only by its name in the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from downloader.observe import Event

ROOT = Path(__file__).parents[2]
CODE = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py") if path.name != "events.py")
USED = set(re.findall(r"\bEvent\.(\w+)", CODE))


@pytest.mark.parametrize("event", Event)
def test_an_event_is_logged_somewhere(event: Event) -> None:
    assert event.name in USED


def test_no_event_is_spelled_by_hand() -> None:
    assert not re.findall(r'log\.\w+\(\s*f?"', CODE)
