"""What a 201 waits for, on servers with and without the configured durability."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio

from downloader.config import RedisSettings
from downloader.errors import StoreRefused, StoreUnavailable
from downloader.model import Kind
from downloader.store import (
    Accepted,
    Changed,
    JobStore,
    Keys,
    Settled,
    Submission,
    asyncio_loop,
    open_store,
)
from downloader.store.client import DURABLE_CALLS, FEW_ROWS
from downloader.store.servers import CALLS
from downloader.testing import open_tcp_proxy
from servers.jobs import handed_back, spec_for, submitted
from servers.ports import spare_port
from servers.raw_store import RawStore
from servers.valkey import Valkey


async def test_aof_is_refused_at_the_start_by_a_server_without_one() -> None:
    with Valkey() as server:
        redis = RedisSettings(url=server.url, durability="aof")
        async with asyncio_loop():
            with pytest.raises(StoreRefused, match=r"durability is 'aof', but: .*appendonly is disabled"):
                async with open_store(redis):
                    pass


@pytest.mark.slow
@pytest.mark.row("F9")
async def test_a_job_under_aof_survives_the_server_s_death() -> None:
    with Valkey("--appendonly", "yes", "--appendfsync", "everysec") as server:
        redis = RedisSettings(url=server.url, durability="aof")
        async with asyncio_loop():
            async with open_store(redis) as store:
                spec = spec_for(store)
                assert await store.submit([Submission(spec=spec)]) == [(Accepted.NEW, spec.id)]
                server.kill()
            await trio.to_thread.run_sync(server.start)
            async with open_store(redis) as store:
                assert await store.get(spec.id) is not None


@pytest.mark.slow
@pytest.mark.row("F11")
async def test_a_job_under_replicated_waits_for_a_replica() -> None:
    with Valkey("--repl-diskless-sync-delay", "0") as primary:
        # Of the call's time WAIT gets four fifths; what remains must do for its answer on a busy machine.
        redis = RedisSettings(url=primary.url, durability="replicated", timeout=3)
        async with asyncio_loop(), open_store(redis) as store:
            with pytest.raises(StoreUnavailable, match="on 0 of 1 replicas"):
                await store.submit([Submission(spec=spec_for(store))])


@pytest.mark.slow
async def test_a_replica_that_has_it_is_enough() -> None:
    port = spare_port()
    with (
        Valkey("--repl-diskless-sync-delay", "0", port=port) as primary,
        Valkey("--replicaof", "127.0.0.1", str(port)) as replica,
    ):
        assert await trio.to_thread.run_sync(primary.command, "WAIT", "1", "4000") == b":1\r\n"
        redis = RedisSettings(url=primary.url, durability="replicated", timeout=3)
        async with asyncio_loop(), open_store(redis) as store:
            spec = spec_for(store)
            assert await store.submit([Submission(spec=spec)]) == [(Accepted.NEW, spec.id)]
            assert b"aggr_id" in replica.command("GET", RawStore(redis).key("job", spec.id))


def cut_connections(server: Valkey) -> None:
    """Close the connections of clients, as a reset does: clients repeat calls on new connections."""
    assert server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").startswith(b":")


def sync(server: Valkey) -> None:
    """Bring all that was written to the disk, on a server that does not do so by itself."""
    for words in (
        ("CONFIG", "SET", "appendfsync", "always"),
        ("SET", "x", "1"),
        ("CONFIG", "SET", "appendfsync", "no"),
    ):
        assert server.command(*words) == b"+OK\r\n"


def wait_for_a_waiting_call(server: Valkey) -> None:
    """Wait until a call waits for the disk or for replicas."""
    while b"blocked_clients:0" in server.command("INFO", "clients"):
        time.sleep(0.01)


async def cut_while_it_waits(server: Valkey) -> None:
    await trio.to_thread.run_sync(wait_for_a_waiting_call, server)
    await trio.to_thread.run_sync(cut_connections, server)


async def change(store: JobStore, how: str, submission: Submission) -> None:
    spec = submission.spec
    match how:
        case "submit" | "submit without the mark":
            await store.submit([submission])
        case "submit many":
            await store.submit([submission, *(Submission(spec=spec_for(store)) for _ in range(FEW_ROWS))])
        case "cancel":
            await store.cancel(spec, None, 60)
        case "adjust":
            await store.adjust(spec.aggr_id, {"limit": 3})
        case _:
            await store.retry(spec.id, download=True, limit=1)


async def pending(store: JobStore) -> int:
    return sum(load.pending for load in (await store.load(9)).aggregations)


NEVER_SYNCED = ("--appendonly", "yes", "--appendfsync", "no")
CHANGES = ["submit", "cancel", "adjust", "retry"]


async def at_once(check: Callable[[str], Awaitable[None]], changes: Sequence[str]) -> None:
    """Check each change on a server of its own, side by side: each waits for seconds."""
    async with asyncio_loop(), trio.open_nursery() as nursery:
        for how in changes:
            nursery.start_soon(check, how)


@pytest.mark.slow
@pytest.mark.row("F29")
async def test_a_repeat_on_another_connection_waits_for_the_disk_too() -> None:
    """The client sends a call again after a reset: the script writes nothing then."""

    async def check(how: str) -> None:
        with Valkey(*NEVER_SYNCED) as server:
            redis = RedisSettings(url=server.url, durability="aof", timeout=2)
            async with open_store(redis) as store, trio.open_nursery() as nursery:
                nursery.start_soon(cut_while_it_waits, server)
                with pytest.raises(StoreUnavailable, match="not yet in the append-only file"):
                    await change(store, how, Submission(spec=spec_for(store)))

    await at_once(check, [*CHANGES, "submit many"])


@pytest.mark.slow
@pytest.mark.row("F9", "F29")
async def test_a_change_waits_for_the_disk_and_a_repeat_at_another_api_too() -> None:
    async def check(how: str) -> None:
        with Valkey(*NEVER_SYNCED) as server:
            redis = RedisSettings(url=server.url, durability="aof", timeout=2)
            async with open_store(redis) as one, open_store(redis) as other:
                sync(server)  # what they have written so far: only the change itself is left to wait for
                submission = Submission(spec=spec_for(one), idempotency_key="k", value_digest="v")
                for store in (one, other):
                    if how == "submit without the mark" and store is other:
                        server.command("DEL", Keys(redis.key_prefix, 1).key(0, "synced"))
                    with pytest.raises(StoreUnavailable, match="not yet in the append-only file"):
                        await change(store, how, submission)

    await at_once(check, [*CHANGES, "submit without the mark"])


@pytest.mark.slow
@pytest.mark.row("F29")
async def test_a_repeat_waits_for_a_replica_too() -> None:
    port = spare_port()
    with (
        Valkey("--repl-diskless-sync-delay", "0", port=port) as primary,
        Valkey("--replicaof", "127.0.0.1", str(port)) as replica,
    ):
        assert await trio.to_thread.run_sync(primary.command, "WAIT", "1", "4000") == b":1\r\n"
        redis = RedisSettings(url=primary.url, durability="replicated", timeout=2)
        async with asyncio_loop(), open_store(redis) as store:
            replica.freeze()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut_while_it_waits, primary)
                with pytest.raises(StoreUnavailable, match="on 0 of 1 replicas"):
                    await store.submit([Submission(spec=spec_for(store))])


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, FEW_ROWS + 1])
async def test_submissions_that_wait_for_a_replica_leave_connections_for_renewals(rows: int) -> None:
    """More submissions than the client has connections, each waiting for seconds, and none for a renewal."""
    submissions = 2 * CALLS
    written = DURABLE_CALLS if rows == 1 else submissions * rows
    with Valkey() as server:
        redis = RedisSettings(url=server.url, durability="replicated")
        async with (
            asyncio_loop(),
            open_store(RedisSettings(url=server.url)) as other,
            open_store(redis) as store,
            trio.open_nursery() as nursery,
        ):
            await submitted(other)
            [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 60, room=1)).leases
            ended: list[str] = []

            async def submit() -> None:
                with pytest.raises(StoreUnavailable):
                    await store.submit([Submission(spec=spec_for(store, "b")) for _ in range(rows)])
                ended.append("submission")

            for _ in range(submissions):
                nursery.start_soon(submit)
            while await pending(other) < written:
                pass
            assert await store.renew(Kind.DOWNLOAD, "me", [lease], 60) == [Settled.DONE]
            assert not ended
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_durable_call_is_one_call_of_a_function() -> None:
    with Valkey("--appendonly", "yes") as server:
        redis = RedisSettings(url=server.url, durability="aof")
        async with asyncio_loop(), open_store(redis) as store:
            for _ in range(3):
                await store.submit([Submission(spec=spec_for(store))])
            stats = RawStore(redis).command("INFO", "commandstats")
            # One more of each at the start.
            assert (stats["cmdstat_fcall"]["calls"], stats["cmdstat_waitaof"]["calls"]) == (3 + 1, 3 + 1)


@pytest.mark.slow
@pytest.mark.row("F31")
async def test_f31_the_address_of_the_store_moves_to_another_primary() -> None:
    """Without Sentinel: the old one answers READONLY, on connections that nobody closes."""
    port, other_port = spare_port(), spare_port()
    with (
        Valkey("--repl-diskless-sync-delay", "0", port=port) as old,
        Valkey("--replicaof", "127.0.0.1", str(port), port=other_port) as new,
    ):
        assert await trio.to_thread.run_sync(old.command, "WAIT", "1", "4000") == b":1\r\n"
        async with (
            asyncio_loop(),
            open_tcp_proxy(port) as address,
            open_store(RedisSettings(url=f"redis://127.0.0.1:{address.port}")) as store,
        ):
            await store.submit([Submission(spec=spec_for(store))])
            new.command("REPLICAOF", "NO", "ONE")
            address.target = other_port
            old.command("REPLICAOF", "127.0.0.1", str(other_port))
            spec = spec_for(store)
            assert await store.submit([Submission(spec=spec)]) == [(Accepted.NEW, spec.id)]
            assert (
                new.command("EXISTS", Keys(prefix="downloader", shards=1).key(0, "job", spec.id)) == b":1\r\n"
            )


@pytest.mark.slow
@pytest.mark.row("F11")
async def test_a_primary_that_is_demoted_while_a_call_waits_is_unavailable() -> None:
    with Valkey() as server:
        redis = RedisSettings(url=server.url, durability="replicated", timeout=3)
        async with asyncio_loop(), open_store(redis) as store, trio.open_nursery() as nursery:

            async def demote() -> None:
                await trio.to_thread.run_sync(wait_for_a_waiting_call, server)
                server.command("REPLICAOF", "127.0.0.1", "1")

            nursery.start_soon(demote)
            with pytest.raises(StoreUnavailable, match="UNBLOCKED"):
                await store.submit([Submission(spec=spec_for(store))])


async def test_a_user_who_may_not_publish_is_refused_at_the_start() -> None:
    with Valkey() as server:
        server.command("ACL", "SETUSER", "svc", "on", ">pw", "~downloader:*", "+@all", "resetchannels")
        redis = RedisSettings(url=f"unix://svc:pw@{server.socket}")
        async with asyncio_loop():
            with pytest.raises(StoreRefused, match=r"may not publish; allow it the channels downloader:\*"):
                async with open_store(redis):
                    pass


async def test_a_user_who_may_no_longer_publish_loses_wake_ups_only() -> None:
    with Valkey() as server:
        server.command("ACL", "SETUSER", "svc", "on", ">pw", "~downloader:*", "+@all", "&*")
        redis = RedisSettings(url=f"unix://svc:pw@{server.socket}")
        async with asyncio_loop(), open_store(redis) as store:
            server.command("ACL", "SETUSER", "svc", "resetchannels")
            running = await submitted(store)  # nobody is idle
            [lease] = (await store.lease(Kind.DOWNLOAD, "me", 9, 60, room=9)).leases
            waiting = await submitted(store, "b")
            for spec in (waiting, running):
                assert await store.cancel(spec, None, 60) is Changed.DONE
            assert await store.settle("me", [handed_back(lease, "", 0)]) == [Settled.CANCELLED]
            assert (await store.load(9)).total == 0
            await store.pause_all(paused=False)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru"])
async def test_a_server_that_deletes_jobs_when_it_is_full_is_refused(policy: str) -> None:
    with Valkey("--maxmemory", "100mb", "--maxmemory-policy", policy) as server:
        async with asyncio_loop():
            opened = open_store(RedisSettings(url=server.url))
            if policy.startswith("allkeys"):
                with pytest.raises(
                    StoreRefused, match="maxmemory-policy is allkeys-lru: the server would delete"
                ):
                    async with opened:
                        pass
            else:
                async with opened:
                    pass
