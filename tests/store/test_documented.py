"""The pages on states and keys agree with the code, as far as the pages are not generated."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from downloader.config import HostSettings, RedisSettings
from downloader.model import CallbackOutcome, Kind, Outcome, State, Verdict
from downloader.store import (
    KEYS,
    CallbackPlan,
    JobStore,
    Keys,
    Shares,
    Submission,
    asyncio_loop,
    load_scripts,
    open_store,
)
from downloader.store.keys import LAYOUT_VERSION, lua_key_functions
from downloader.wire import BacklogPoint
from servers.jobs import closed, downloaded, spec_for, submitted, tried_again
from servers.raw_store import RawStore

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = load_scripts()
OK = Outcome(verdict=Verdict.SUCCEEDED)


@pytest.mark.parametrize("state", State)
def test_each_state_is_drawn(state: State) -> None:
    assert state in (DOCS / "state-machine.md").read_text("utf-8")


def test_the_layout_page_names_the_version() -> None:
    assert f"layout version is {LAYOUT_VERSION}" in (DOCS / "redis-layout.md").read_text("utf-8")


async def use_every_key(store: JobStore) -> None:
    """Bring jobs into all states, at hosts with a limit too."""
    for aggr_id, host, count in (("a", "slow.test", 2), ("b", "other.test", 4), ("c", "third.test", 2)):
        limit = 1 if aggr_id == "c" else 9
        specs = [
            spec_for(store, aggr_id, aggr_limit=limit, url=f"http://{host}/", priority=1)
            for _ in range(count)
        ]
        await store.submit([Submission(spec=spec, idempotency_key=spec.id) for spec in specs])
    leases = (await store.lease(Kind.DOWNLOAD, "me", 9, 60)).leases
    done, failed, later, cancelled = (lease for lease in leases if lease.group == "b")
    plans = [CallbackPlan(group=f"http {number}", limit=4) for number in range(3)]
    no = Outcome(verdict=Verdict.FAILED, error="no")
    await store.settle("me", [downloaded(done, OK, plans[0], 60), downloaded(failed, no, plans[1], 60)])
    await store.settle("me", [tried_again(later, replace(no, verdict=Verdict.RETRY), 4)])
    await store.cancel(cancelled.spec, plans[2], 60)
    callbacks = (await store.lease(Kind.CALLBACK, "me", 2, 60)).leases
    for lease, verdict in zip(callbacks, (Verdict.SUCCEEDED, Verdict.FAILED), strict=True):
        await store.settle("me", [closed(lease, CallbackOutcome(verdict=verdict, error="no"), 60, 4)])
    for name in ("of a token", "of the token too"):
        spec = spec_for(store, name, token="t", counted=True)
        await store.submit([Submission(spec=spec, quota={"jobs": 9})])
    await store.lease(Kind.DOWNLOAD, "me", 2, 60)
    await submitted(store, "e")
    [again] = (await store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
    await store.settle("me", [downloaded(again, OK, plans[1], 60)])
    await submitted(store, "d")
    for idle in ("waits for the timer", "watches"):
        shares = Shares(never=["d"])
        assert not (await store.lease(Kind.DOWNLOAD, idle, 1, 60, shares=shares, room=1)).leases
    for number, types in ((3, "http"), (4, "kafka"), (5, None)):
        await submitted(store, "f")
        [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
        await store.settle("me", [downloaded(lease, OK, CallbackPlan(group=f"http {number}", limit=4), 60)])
        if types:
            shares = Shares(unproven=1, failing=0)
            await store.lease(Kind.CALLBACK, types, 1, 60, shares=shares, room=2, types=[types])
    await store.set_crawl_delay("slow.test", 1, 60)
    await submitted(store, "h", group="g")
    await store.report("one", "processor", {}, 60, {"bytes": 1})
    await store.pause_all(paused=True)
    await store.note_backlog(
        BacklogPoint(at=datetime.now(UTC), downloads=1, callbacks=1, succeeded=1, failed=1)
    )


async def test_each_key_has_the_type_of_the_table_and_expires_if_it_is_said_to(
    redis_settings: RedisSettings, raw: RawStore
) -> None:
    hosts = {"slow.test": HostSettings(limit=1, delay=5)}
    durable = redis_settings.model_copy(update={"durability": "aof"})
    async with asyncio_loop(), open_store(redis_settings, hosts=hosts) as store:
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
    assert keys.key(0, "queue", "download", "a:b") == "p:1:{0}:download:queue:a:b"
    assert (
        "local function key_queue(kind, group) return base .. kind .. ':' .. 'queue' .. ':' .. group end"
        in lua_key_functions("key_queue(kind, group)")
    )


def test_no_script_spells_a_key_by_itself() -> None:
    for script in SCRIPTS.values():
        body = script.text.split("local time = redis.call('TIME')", 1)[1]
        assert "base ..".replace(" ", "") not in body.replace(" ", "")
