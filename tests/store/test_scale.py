"""With 10,000 aggregations of one job and one of a million, a transition costs what it costs with few."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import redis

from downloader.config import RedisSettings
from downloader.model import CallbackOutcome, Kind, Outcome, Verdict
from downloader.store import CallbackPlan, JobStore, Shares, Submission, asyncio_loop, open_store
from servers.jobs import closed, downloaded, handed_back, spec_for, tried_again
from servers.raw_store import RawStore
from servers.valkey import Valkey

# Ten seconds of CPU, on a machine that may be shared with many other programs.
pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.row("F21"), pytest.mark.timeout(600)]

AGGREGATIONS = 10_000
MILLION = 1_000_000
BATCH = 500
LEASES = 64
BOUND = 1_000
"""Elements that one command may read or write at the most, however many there are."""

FILL = """
for first = 1, tonumber(ARGV[1]), 1000 do
  local members = {}
  for number = first, first + 999 do
    members[#members + 1] = 2e12
    members[#members + 1] = 'filler' .. number
  end
  redis.call('ZADD', KEYS[1], unpack(members))
end
"""
WHOLE = {"keys", "scan", "sscan", "hscan", "zscan", "smembers", "hkeys", "hvals", "sort", "lrange", "flushdb"}
"""They read a whole structure."""

OK = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
RETRY = Outcome(verdict=Verdict.RETRY, error="e")
DELIVERED = CallbackOutcome(verdict=Verdict.SUCCEEDED)
PLAN = CallbackPlan(queue="http-c", limit=1_000_000)


@pytest.fixture(scope="module")
def full() -> Iterator[Valkey]:
    # On a busy machine the script below may run for longer than the five seconds that servers allow.
    with Valkey("--lua-time-limit", "60000") as server:
        yield server


@pytest.fixture
async def store(raw: RawStore, full: Valkey) -> AsyncIterator[JobStore]:
    """A store in which all these jobs wait."""
    full.command("FLUSHALL")
    async with asyncio_loop(), open_store(RedisSettings(url=full.url, timeout=60)) as opened:
        specs = [spec_for(opened, f"one-{number}") for number in range(AGGREGATIONS)]
        specs.append(spec_for(opened, "million", aggr_limit=1000))
        for first in range(0, len(specs), BATCH):
            await opened.submit([Submission(spec=spec) for spec in specs[first : first + BATCH]])
        queue = raw.key("pending", Kind.DOWNLOAD, "million")
        raw.command("EVAL", FILL, 1, queue, MILLION)
        for _ in range(20):
            await opened.submit([Submission(spec=spec_for(opened, "million", aggr_limit=1000))])
        yield opened


@contextmanager
def watched(server: Valkey) -> Iterator[list[list[str]]]:
    """All commands, those inside scripts too; complete when the context has ended. Keys have no blanks."""
    found: list[list[str]] = []
    client: redis.Redis = redis.Redis.from_url(server.url, decode_responses=True)
    with client, client.monitor() as monitor:  # type: ignore[no-untyped-call]
        yield found
        client.echo("the end")
        for entry in monitor.listen():
            words = str(entry["command"]).split(" ")
            if words[0].lower() == "echo":
                return
            found.append(words)


def size_of(words: list[str]) -> float:
    """How many elements a command may read or write."""
    name, *arguments = words
    name = name.lower()
    if name == "fcall":
        return 0  # what it does is seen too
    if name in WHOLE:
        return float("inf")
    if name in ("zrange", "zrangebyscore") and "LIMIT" in arguments:
        return int(arguments[arguments.index("LIMIT") + 2])
    if name == "zrange":
        first, last = int(arguments[1]), int(arguments[2])
        return last - first + 1 if (first < 0) == (last < 0) else float("inf")
    if name == "zrangebyscore":
        return float("inf")
    return len(arguments)


async def cycle(store: JobStore) -> None:
    """Every transition that runs by itself."""
    await store.submit([Submission(spec=spec_for(store, "late"))])
    leases = list(
        (await store.lease(Kind.DOWNLOAD, "me", LEASES, 60, shares=Shares(last=["million"]))).leases
    )
    assert len(leases) == LEASES
    await store.renew(Kind.DOWNLOAD, "me", leases, 60)
    await store.waiting(Kind.DOWNLOAD, queue="million")
    await store.settle("me", [tried_again(lease, RETRY, 60) for lease in leases[:8]])
    await store.settle("me", [handed_back(lease, "", 0) for lease in leases[8:16]])
    await store.settle("me", [downloaded(lease, OK, PLAN, 0) for lease in leases[16:]])
    callbacks = (await store.lease(Kind.CALLBACK, "me", LEASES, 60)).leases
    await store.settle("me", [closed(lease, DELIVERED, 0, PLAN.limit) for lease in callbacks])
    for kind in Kind:
        await store.sweep(kind)
    jobs = (await store.reap(200, 60)).jobs
    await store.remove([job.spec.id for job in jobs])
    assert len(jobs) == LEASES - 16
    await store.report("me", "processor", {}, 15)
    await store.load(20)
    await store.backlog(20)


async def test_f21_no_command_grows_with_what_waits(store: JobStore, full: Valkey) -> None:
    with watched(full) as commands:
        await cycle(store)
    large = {" ".join(words)[:200] for words in commands if size_of(words) > BOUND}
    assert large == set()
    assert len(commands) < 100 * LEASES, "some eighty for each job"


async def test_f21_the_list_of_all_aggregations_is_read_in_pages(store: JobStore, full: Valkey) -> None:
    with watched(full) as commands:
        sizes = await store.aggregation_sizes()
    assert len(sizes) >= AGGREGATIONS
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert max(map(size_of, commands)) <= BOUND


async def test_f21_all_have_their_turn_before_one_has_its_second(store: JobStore) -> None:
    late = spec_for(store, "late")
    await store.submit([Submission(spec=late)])
    leased: Counter[str] = Counter()
    while sum(leased.values()) < AGGREGATIONS + 2:
        left = AGGREGATIONS + 2 - sum(leased.values())
        batch = await store.lease(Kind.DOWNLOAD, "me", min(left, 256), 60)
        leased.update(lease.queue for lease in batch.leases)
    assert len(leased) == AGGREGATIONS + 2
    assert leased["million"] == 1
