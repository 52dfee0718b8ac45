"""What a 201 waits for, on servers with and without the configured durability."""

from __future__ import annotations

import pytest
import trio

from downloader.config import RedisSettings
from downloader.errors import StoreRefused, StoreUnavailable
from downloader.store import Accepted, Submission, asyncio_loop, open_store
from servers.jobs import spec_for
from servers.ports import spare_port
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
async def test_a_job_under_aof_waits_until_its_server_has_synced() -> None:
    with Valkey("--appendonly", "yes", "--appendfsync", "no") as never:
        redis = RedisSettings(url=never.url, durability="aof", timeout=3)
        async with asyncio_loop(), open_store(redis) as store:
            with pytest.raises(StoreUnavailable, match="not yet in the append-only file"):
                await store.submit([Submission(spec=spec_for(store))])
            with pytest.raises(StoreUnavailable, match="not yet in the append-only file"):
                await store.cancel(spec_for(store), None, 60)
            with pytest.raises(StoreUnavailable, match="not yet in the append-only file"):
                await store.retry(spec_for(store).id, download=True, limit=1)


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
            assert b"aggr_id" in replica.command("GET", store._keys.key(0, "job", spec.id))
