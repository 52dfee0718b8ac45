"""The pages on states and keys agree with the code, as far as they are not made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from downloader.model import State
from downloader.store.keys import KEYS, LAYOUT_VERSION, Keys, lua_key_functions
from downloader.store.scripts import load_scripts

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = load_scripts()


@pytest.mark.parametrize("state", State)
def test_each_state_is_drawn(state: State) -> None:
    assert state in (DOCS / "state-machine.md").read_text("utf-8")


def test_the_layout_page_names_the_version() -> None:
    assert f"layout version is {LAYOUT_VERSION}" in (DOCS / "redis-layout.md").read_text("utf-8")


def test_each_key_has_an_owner_or_a_time_to_live() -> None:
    assert all(key.owner or key.ttl for key in KEYS)


def test_lua_and_python_spell_keys_alike() -> None:
    keys = Keys(prefix="p", shards=1)
    assert keys.key(0, "queue", "download", "a:b") == "p:1:{0}:download:queue:a:b"
    assert (
        "local function key_queue(kind, group) return base .. kind .. ':' .. 'queue' .. ':' .. group end"
        in lua_key_functions()
    )


def test_no_script_spells_a_key_by_itself() -> None:
    for script in SCRIPTS.values():
        body = script.text.split("local time = redis.call('TIME')", 1)[1]
        assert "base ..".replace(" ", "") not in body.replace(" ", "")
