"""The pages on states and keys agree with the code, as far as the pages are not generated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from downloader.config import HostSettings, RedisSettings
from downloader.model import State
from downloader.store import (
    KEYS,
    Keys,
    asyncio_loop,
    load_library,
    open_store,
)
from downloader.store.keys import LAYOUT_VERSION, lua_key_functions
from servers.every_key import use_every_key
from servers.jobs import submitted
from servers.raw_store import RawStore

DOCS = Path(__file__).parents[2] / "docs"
LIBRARY = load_library()


@pytest.mark.parametrize("state", State)
def test_each_state_is_drawn(state: State) -> None:
    assert state in (DOCS / "state-machine.md").read_text("utf-8")


def test_the_layout_page_names_the_version() -> None:
    assert f"layout version is {LAYOUT_VERSION}" in (DOCS / "redis-layout.md").read_text("utf-8")


async def test_each_key_has_the_type_of_the_table_and_expires_if_it_is_said_to(
    redis_settings: RedisSettings, raw: RawStore
) -> None:
    hosts = {"slow.test": HostSettings(limit=1, delay=5)}
    durable = redis_settings.model_copy(update={"durability": "aof"})
    async with asyncio_loop(), open_store(redis_settings, hosts=hosts, rates={"http 0": 0.01}) as store:
        await use_every_key(store)
        async with open_store(durable) as waits_for_the_disk:
            await submitted(waits_for_the_disk, "g")
    patterns = {re.compile(re.sub("<[^>]*>", ".*", key.path)): key for key in KEYS}
    seen: set[str] = set()
    for name in raw.command("KEYS", f"{raw.keys.base(0)}*"):
        path = name.removeprefix(raw.keys.base(0))
        [key] = [key for pattern, key in patterns.items() if pattern.fullmatch(path)]
        seen.add(key.name)
        assert raw.command("TYPE", name) == key.type, name
        assert (raw.command("PTTL", name) > 0) is bool(key.ttl), name
        assert key.ttl or key.owner
    assert seen == {key.name for key in KEYS if key.type != "channel"}


def test_lua_and_python_spell_keys_alike() -> None:
    keys = Keys(prefix="p", shards=1)
    assert keys.key(0, "pending", "download", "a:b") == "p:1:{0}:download:queue:a:b"
    assert (
        "local function key_pending(kind, queue) return base .. kind .. ':queue:' .. queue end"
        in lua_key_functions()
    )


def test_no_script_spells_a_key_by_itself() -> None:
    body = LIBRARY.body.split("local time = redis.call('TIME')", 1)[1]
    assert "base.." not in body.replace(" ", "")
