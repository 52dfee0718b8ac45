"""The state machine and the layout are told once in code and once in the docs: they have to agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from downloader.model import State
from downloader.store.keys import KEYS, LAYOUT_VERSION, Key, Keys, lua_key_functions
from downloader.store.scripts import Script, load_scripts

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = load_scripts()


def rows(page: str) -> dict[str, list[str]]:
    """The table rows of a page by the name in their first cell."""
    found = {}
    for line in (DOCS / page).read_text("utf-8").splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.replace("\\|", "\0").strip("|").split(" | ")]
            found[cells[0].split("`")[1]] = [cell.replace("\0", "|").strip(" |") for cell in cells]
    return found


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_each_transition_is_a_row_of_the_state_machine(script: Script) -> None:
    header = script.header
    assert rows("state-machine.md")[script.name] == [
        f"`{script.name}`: {script.summary}",
        header["from"],
        header["to"],
        header["answer"],
        header["repeat"],
    ]


def test_the_state_machine_has_no_other_rows() -> None:
    assert set(rows("state-machine.md")) == set(SCRIPTS)


@pytest.mark.parametrize("state", State)
def test_each_state_is_drawn(state: State) -> None:
    assert state in (DOCS / "state-machine.md").read_text("utf-8")


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_each_key_is_a_row_of_the_layout(key: Key) -> None:
    assert rows("redis-layout.md")[key.path] == [
        f"`{key.path}`",
        key.type,
        key.ttl or "none",
        key.owner or "its time to live",
        key.holds,
    ]


def test_the_layout_has_no_other_rows_and_the_right_version() -> None:
    assert set(rows("redis-layout.md")) == {key.path for key in KEYS}
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
