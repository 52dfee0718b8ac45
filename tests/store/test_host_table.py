"""The table of the limits of hosts: in the store once, and no lease is granted without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from downloader.config import HostSettings
from downloader.errors import StoreUnavailable
from downloader.model import Kind, Lease
from downloader.store import JobStore, LeaseRequests
from servers.jobs import submitted
from servers.raw_store import RawStore
from servers.store_clock import StoreClock
from servers.store_steps import Deaf

ONE = {"slow.test": HostSettings(limit=1), "*": HostSettings(limit=9)}
TWO = {"slow.test": HostSettings(limit=2)}
HOUR_MS = 3600 * 1000


Open = Callable[[Mapping[str, HostSettings]], JobStore]


@pytest.fixture
async def instance(store: JobStore) -> Open:
    """The store of an instance with a table. Three downloads at `slow.test` wait there."""

    def instance_with(hosts: Mapping[str, HostSettings]) -> JobStore:
        return JobStore(store._client, hosts=hosts)

    await submit(instance_with({}))
    return instance_with


async def submit(store: JobStore) -> None:
    for _ in range(3):
        await submitted(store, "a", aggr_limit=99, url="http://slow.test/")


async def take(store: JobStore, clock: StoreClock, **more: Any) -> list[Lease]:
    """Lease what can start, once all that wait for the host ask again."""
    clock.move(31)
    return list((await store.lease(Kind.DOWNLOAD, "me", 9, 6000, **more)).leases)


def tables(raw: RawStore) -> set[str]:
    return set(raw.command("KEYS", raw.key("host_limits", "*")))


def sent_bytes(raw: RawStore) -> int:
    """The bytes that all clients have sent."""
    return int(raw.command("INFO", "stats")["total_net_input_bytes"])


def calls(raw: RawStore) -> int:
    """The calls of transitions that the server has got."""
    return int(raw.command("INFO", "commandstats")["cmdstat_fcall"]["calls"])


async def test_only_the_first_call_brings_the_table(instance: Open, raw: RawStore, clock: StoreClock) -> None:
    hosts = {f"host-{number}.test": HostSettings(limit=2) for number in range(1000)} | ONE
    store, other = instance(hosts), instance(hosts)
    before = sent_bytes(raw)
    assert len(await take(store, clock)) == 1
    assert sent_bytes(raw) - before > 20_000
    before = sent_bytes(raw)
    for _ in range(3):
        assert await take(store, clock) == []
        assert await take(other, clock) == []
    assert sent_bytes(raw) - before < 5_000


@pytest.mark.parametrize("loss", ["table", "all", "retyped"])
async def test_a_table_that_is_lost_is_stored_again(
    instance: Open, raw: RawStore, clock: StoreClock, loss: str
) -> None:
    store = instance(ONE)
    assert len(await take(store, clock)) == 1
    [table] = tables(raw)
    whole = raw.command("HGETALL", table)
    raw.command("DEL", *(raw.command("KEYS", f"{raw.keys.base(0)}*") if loss == "all" else [table]))
    if loss == "all":
        await submit(store)
    if loss == "retyped":
        raw.command("SET", table, "x")
    assert len(await take(store, clock)) == (1 if loss == "all" else 0)
    assert await take(store, clock) == []
    assert raw.command("HGETALL", table) == whole
    assert HOUR_MS / 2 < raw.command("PTTL", table) <= HOUR_MS


async def test_the_call_that_brings_the_table_is_repeated_like_any_other(
    instance: Open, clock: StoreClock
) -> None:
    store, requests = instance(ONE), LeaseRequests()
    deaf = JobStore(Deaf(store._client), hosts=ONE)  # type: ignore[arg-type]  # as much of a client as is used
    with pytest.raises(StoreUnavailable):
        await take(deaf, clock, requests=requests)
    assert len(await take(store, clock, requests=requests)) == 1
    assert await take(store, clock, requests=requests) == []


async def test_instances_with_different_tables_share_a_store(
    instance: Open, raw: RawStore, clock: StoreClock
) -> None:
    store, changed = instance(ONE), instance(TWO)
    assert len(await take(store, clock)) == 1
    [old] = tables(raw)
    raw.command("PEXPIRE", old, 1000)
    assert len(await take(changed, clock)) == 1
    assert len(tables(raw)) == 2
    assert raw.command("PTTL", old) <= 1000, "an instance with another table does not keep it"
    assert await take(store, clock) == []
    assert raw.command("PTTL", old) > HOUR_MS / 2, "an instance that uses it does"
    raw.command("PEXPIRE", old, HOUR_MS * 2 // 3)
    assert await take(store, clock) == []
    assert raw.command("PTTL", old) <= HOUR_MS * 2 / 3, "not with each call"


async def test_the_order_in_a_configuration_does_not_matter(
    instance: Open, raw: RawStore, clock: StoreClock
) -> None:
    for hosts in (ONE, dict(reversed(ONE.items()))):
        await take(instance(hosts), clock)
    assert len(tables(raw)) == 1


async def test_an_empty_table_is_not_stored(instance: Open, raw: RawStore, clock: StoreClock) -> None:
    """As when only robots.txt limits hosts."""
    store = instance({})
    await store.set_crawl_delay("slow.test", 5, 600)
    before = calls(raw)
    assert len(await take(store, clock)) == 1
    assert calls(raw) - before == 1, "no call is repeated for it"
    assert tables(raw) == set()
