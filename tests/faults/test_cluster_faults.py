"""A node of a Cluster is dead or frozen under load: only jobs in shards of the node wait (F22)."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import trio

from downloader.config import RedisSettings
from downloader.errors import StoreUnavailable
from downloader.ids import shard_of
from downloader.model import FileFacts, JobSpec, Kind, Lease, Outcome, State, Verdict
from downloader.store import (
    CLUSTER_SHARDS,
    Accepted,
    JobStore,
    Keys,
    LeaseRequests,
    Settled,
    Submission,
    asyncio_loop,
    open_store,
)
from servers.jobs import downloaded, handed_back, spec_for
from servers.valkey import Valkey
from servers.valkey_groups import SlotMove, open_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.fault,
    pytest.mark.row("F22"),
    pytest.mark.timeout(120),
    # redis-py drops the streams of a node's connections without closing them when the node dies.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TIMEOUT_S = 3.0
DONE = Outcome(verdict=Verdict.SUCCEEDED, response_code=200, file=FileFacts(size=1))
OWNER = "me"


@dataclass
class Cluster:
    """A Cluster and a store on the Cluster."""

    nodes: Sequence[Valkey]
    store: JobStore
    settings: RedisSettings
    requests: LeaseRequests = field(default_factory=LeaseRequests)

    def specs(self) -> dict[int, JobSpec]:
        """A new job for each shard, by shard."""
        found: dict[int, JobSpec] = {}
        for number in range(10_000):
            spec = spec_for(self.store, f"group {number}", aggr_limit=100)
            found.setdefault(shard_of(spec.id, CLUSTER_SHARDS), spec)
            if len(found) == CLUSTER_SHARDS:
                break
        return found

    async def shards_of(self, node: Valkey) -> set[int]:
        """The shards whose keys a node holds."""
        keys = Keys(prefix=self.settings.key_prefix, shards=CLUSTER_SHARDS)
        held = set()
        for shard in range(CLUSTER_SHARDS):
            found = await trio.to_thread.run_sync(node.command, "EXISTS", keys.key(shard, "layout"))
            if not found.startswith(b"-MOVED"):
                held.add(shard)
        return held

    async def lease_all(self) -> list[Lease]:
        """Lease until no further task is due."""
        leases: list[Lease] = []
        while True:
            batch = await self.store.lease(Kind.DOWNLOAD, OWNER, 64, 60, requests=self.requests)
            leases += batch.leases
            if batch.next_due_s != 0:
                return leases


@pytest.fixture
def nodes() -> Iterator[Sequence[Valkey]]:
    with open_cluster() as opened:
        yield opened


@pytest.fixture
async def cluster(nodes: Sequence[Valkey]) -> AsyncIterator[Cluster]:
    settings = RedisSettings(url=f"redis://127.0.0.1:{nodes[0].port}", cluster=True, timeout=TIMEOUT_S)
    async with asyncio_loop(), open_store(settings) as store:
        yield Cluster(nodes, store, settings)


def halt(node: Valkey, how: str) -> None:
    assert node.process is not None
    if how == "killed":
        node.kill()
    else:
        node.process.send_signal(signal.SIGSTOP)


def revive(node: Valkey, how: str) -> None:
    assert node.process is not None
    if how == "killed":
        node.start()
    else:
        node.process.send_signal(signal.SIGCONT)


async def submit_all(store: JobStore, specs: dict[int, JobSpec]) -> Sequence[tuple[Accepted, str]]:
    return await store.submit([Submission(spec=spec) for spec in specs.values()])


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_f22_the_other_shards_go_on(cluster: Cluster, how: str) -> None:
    store = cluster.store
    before, during, again = cluster.specs(), cluster.specs(), cluster.specs()
    await store.submit([Submission(spec=spec) for spec in before.values()])
    held = await cluster.lease_all()
    assert {lease.id for lease in held} == {spec.id for spec in before.values()}
    node = cluster.nodes[1]
    gone = await cluster.shards_of(node)
    alive = set(range(CLUSTER_SHARDS)) - gone
    assert gone
    assert alive

    halt(node, how)
    try:
        # Jobs for live shards are accepted; those for the lost shards are answered UNAVAILABLE.
        answers = await store.submit([Submission(spec=spec) for spec in during.values()])
        told = dict(zip(during, (why for why, _ in answers), strict=True))
        assert {shard for shard, why in told.items() if why is Accepted.NEW} == alive
        assert {shard for shard, why in told.items() if why is Accepted.UNAVAILABLE} == gone
        with pytest.raises(StoreUnavailable):
            await store.submit([Submission(spec=during[shard]) for shard in gone])

        # One call has waited for the silent node. From now on it delays no other call.
        began = trio.current_time()
        leased: list[Lease] = []
        while len(leased) < len(alive):
            leased += await cluster.lease_all()
        assert {lease.id for lease in leased} == {during[shard].id for shard in alive}
        renewed = await store.renew(Kind.DOWNLOAD, OWNER, held, 60)
        settled = await store.settle(OWNER, [downloaded(lease, DONE, None, 0.0) for lease in held])
        for answers_of, good in ((renewed, Settled.DONE), (settled, Settled.DONE)):
            for lease, answer in zip(held, answers_of, strict=True):
                lost = shard_of(lease.id, CLUSTER_SHARDS) in gone
                assert answer is (Settled.UNKNOWN if lost else good)
        released = await store.settle(OWNER, [handed_back(lease, "", 0.0) for lease in leased])
        assert released == [Settled.DONE] * len(leased)
        assert await store.sweep(Kind.DOWNLOAD) == []
        reaped = await store.reap(100, 60)
        assert {job.spec.id for job in reaped.jobs} == {before[shard].id for shard in alive}
        await store.remove([job.spec.id for job in reaped.jobs])
        await store.ping()
        assert trio.current_time() - began < 6 * TIMEOUT_S
    finally:
        revive(node, how)

    # When the node is back, its jobs go on; no further attempt and no crash has been counted.
    if how == "killed":
        return  # a killed node has lost its data, because it has no append-only file
    with trio.fail_after(30):
        while any(  # noqa: ASYNC110  # the server sends no event for it
            why is Accepted.UNAVAILABLE for why, _ in await submit_all(store, again)
        ):
            await trio.sleep(0.1)
    rest = [lease for lease in held if shard_of(lease.id, CLUSTER_SHARDS) in gone]
    assert await store.settle(OWNER, [downloaded(lease, DONE, None, 60.0) for lease in rest]) == [
        Settled.DONE
    ] * len(rest)
    for lease in rest:
        view = await store.get(lease.id)
        assert view is not None
        assert (view.download.state, view.download.attempts, view.download.crashes) == (State.SUCCEEDED, 1, 0)


async def test_f22_a_process_starts_while_the_node_of_its_url_is_away(cluster: Cluster) -> None:
    seed, other = cluster.nodes[1:]
    gone = await cluster.shards_of(seed)
    assert 0 not in gone, "its shard is asked at the start"
    halt(seed, "killed")
    url, nodes = f"redis://127.0.0.1:{seed.port}", [f"127.0.0.1:{other.port}"]
    async with open_store(cluster.settings.model_copy(update={"url": url, "nodes": nodes})) as store:
        specs = cluster.specs()
        answers = await submit_all(store, specs)
    accepted = {shard for shard, (why, _) in zip(specs, answers, strict=True) if why is Accepted.NEW}
    assert accepted == set(range(CLUSTER_SHARDS)) - gone


@pytest.mark.parametrize("at_once", [True, False])
async def test_f22_a_slot_moves_to_another_node(cluster: Cluster, at_once: bool) -> None:  # noqa: FBT001
    """What is leased goes on. While its keys are moved one by one, the shard takes no call."""
    specs = cluster.specs()
    await submit_all(cluster.store, specs)
    [held] = [lease for lease in await cluster.lease_all() if lease.id == specs[0].id]
    move = SlotMove(cluster.nodes, Keys(cluster.settings.key_prefix, CLUSTER_SHARDS).key(0, "layout"))
    if at_once:
        await trio.to_thread.run_sync(move.at_once)
    else:
        await trio.to_thread.run_sync(move.begin)
        with pytest.raises(StoreUnavailable):
            await cluster.store.get(held.id)
        assert await cluster.store.renew(Kind.DOWNLOAD, OWNER, [held], 60) == [Settled.UNKNOWN]
        await trio.to_thread.run_sync(move.finish)
    assert await cluster.store.sweep(Kind.DOWNLOAD) == []
    assert await cluster.store.renew(Kind.DOWNLOAD, OWNER, [held], 60) == [Settled.DONE]
    assert await cluster.store.settle(OWNER, [downloaded(held, DONE, None, 60.0)]) == [Settled.DONE]


async def test_f22_a_lease_that_a_silent_shard_gave_is_given_again(cluster: Cluster) -> None:
    """The shard granted the lease, but its answer was lost: a later call gets the same lease."""
    store, node = cluster.store, cluster.nodes[2]
    gone = await cluster.shards_of(node)
    specs = cluster.specs()
    await store.submit([Submission(spec=spec) for spec in specs.values()])
    halt(node, "frozen")
    try:
        leased = await cluster.lease_all()
        assert {shard_of(lease.id, CLUSTER_SHARDS) for lease in leased} == set(specs) - gone
    finally:
        revive(node, "frozen")
    with trio.fail_after(30):
        while len(leased) < CLUSTER_SHARDS:
            with suppress(StoreUnavailable):
                leased += await cluster.lease_all()
            await trio.sleep(0.1)
    assert sorted(lease.id for lease in leased) == sorted(spec.id for spec in specs.values())
    views = [await store.get(lease.id) for lease in leased]
    assert {view.download.deliveries for view in views if view} == {1}
