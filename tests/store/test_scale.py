"""Many aggregations, and one with very many jobs: what a call does, does not grow with them. Fault F21.

What that costs in time, up to a million jobs, the bench tells (S4).
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import redis

from downloader.config import RedisSettings
from downloader.model import FileFacts, Kind, Outcome, Verdict
from downloader.store import CallbackPlan, Settled, Submission
from downloader.store.loop import asyncio_loop
from downloader.store.redis_store import RedisStore, open_store
from servers.jobs import spec_for
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(240)]

SINGLES = 10_000
BIG = 200_000
LIMIT = 1_000
"""Of the big one: it could take every place."""

AT_ONCE = 1_000
OK = Outcome(
    verdict=Verdict.SUCCEEDED,
    response_code=200,
    file=FileFacts(size=3, sha256="ab", mime_type="image/png", image_size=""),
)
PLAN = CallbackPlan(group="http http://c", limit=LIMIT)

GROW = {"cmdstat_keys", "cmdstat_scan", "cmdstat_smembers", "cmdstat_sort", "cmdstat_hgetall"}
"""Commands whose cost grows with what they look through; `HGETALL` would be of one task."""


async def submit(store: RedisStore, names: Iterable[str], limit: int) -> None:
    """One job for each name."""
    names = list(names)
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        await store.submit([Submission(spec=spec_for(store, name, aggr_limit=limit)) for name in some])


async def round_of(store: RedisStore, count: int) -> list[str]:
    """Every kind of call that runs by itself, for so many jobs; answers whose they were."""
    leases = (await store.lease(Kind.DOWNLOAD, "me", count, 600)).leases
    assert await store.renew(Kind.DOWNLOAD, "me", leases, 600) == [Settled.DONE] * count
    done = await store.finish("me", [(lease, OK, PLAN, 60) for lease in leases])
    assert done == [Settled.DONE] * count
    for kind in Kind:
        assert list(await store.sweep(kind)) == []
        await store.waiting(kind, without=["big"])
    assert list((await store.reap(count, 60)).jobs) == []
    await store.load(20)
    return [lease.group for lease in leases]


def calls(client: redis.Redis) -> int:
    """Commands that scripts and clients have run since the last reset."""
    found = client.info("commandstats")
    assert not GROW & found.keys()
    total = sum(int(stats["calls"]) for stats in found.values())
    client.config_resetstat()
    return total


@pytest.mark.row("F21")
async def test_f21_no_call_grows_with_the_jobs_or_their_aggregations() -> None:
    with Valkey() as server, redis.Redis(unix_socket_path=str(server.socket)) as client:
        async with asyncio_loop(), open_store(RedisSettings(url=server.url, timeout=30)) as store:
            await submit(store, ["big"] * 200, LIMIT)
            await round_of(store, 100)
            calls(client)
            await round_of(store, 100)
            few = calls(client)

            await submit(store, ["big"] * BIG, LIMIT)
            await submit(store, (f"single-{n}" for n in range(SINGLES)), 1)
            calls(client)
            groups = []
            for _ in range(SINGLES // 100):
                groups += await round_of(store, 100)
            many = calls(client) / (SINGLES // 100)
            assert many < 1.2 * few, (few, many)

            # One of the big one's for each round of all, and by then each of the others has had its turn.
            groups += await round_of(store, 100)
            assert len({group for group in groups if group != "big"}) == SINGLES
            assert groups.index("single-0") < 2
