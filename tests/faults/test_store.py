"""A store that is lost, frozen, emptied, full or far away. Faults F4, F8, F9, F10, F12, F32."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import trio

from downloader.store import load_library
from servers.fault_proxy import FaultProxy, open_fault_proxy
from servers.fleet import (
    BRIEF,
    HUNG,
    LEASE_S,
    RECOVERY_S,
    SLACK_S,
    SWEEP_S,
    History,
    job_for,
    merged,
    open_fleet,
)
from servers.origin import Exchange, Handler, Origin, gate, respond
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(120)]

IN_TIME_S = 2.5
"""Half of the interval at which an instance asks the store by itself. A job that waits less was announced."""

RESUME_S = 5.0 + SLACK_S
"""The time that F9 allows, and some more for a busy machine."""


@pytest.fixture
async def proxy(server: Valkey) -> AsyncIterator[FaultProxy]:
    """A proxy between one process and the server."""
    async with open_fault_proxy(Path(server.socket)) as opened:
        yield opened


def first_call(*scripts: str) -> Callable[[bytes], bool]:
    """A condition that is true for the first request that runs each of these scripts."""
    functions = {f"{load_library().function(name)}\r\n".encode() for name in scripts}

    def lose(request: bytes) -> bool:
        called = {function for function in functions if function in request}
        functions.difference_update(called)
        return bool(called)

    return lose


def half_then(event: trio.Event) -> Handler:
    """A handler that sends half of a body, and the rest after the event."""

    async def handler(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
        await event.wait()
        await exchange.send(b"rest")

    return handler


@pytest.mark.row("F4")
async def test_f4_lost_replies_lease_and_finish_nothing_twice(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, proxy: FaultProxy
) -> None:
    async with open_fleet(folder, server) as fleet:
        far = {"tables": {"redis": {"url": proxy.url}}}
        await fleet.start_all("processor", "api", "notifier", processor=far, notifier=far)
        await sink.heard_of(await fleet.post(**job_for(origin.url("/bytes/1"), sink.url())))
        proxy.lose_reply_to = first_call("lease", "finish", "close_callback")
        ids = await fleet.post_all([job_for(origin.url("/bytes/2"), sink.url(), limit=3) for _ in range(6)])
        await sink.heard_of(*ids)
        await proxy.lost_replies(3)
        await fleet.stop_all()
        assert len(origin.asked("/bytes/2")) == 6
        assert len(sink.received) == 7
        assert fleet.all_events("lease.lost") == fleet.all_events("sweep.recovered") == []
        with History(fleet, sink, url=server.url) as history:
            assert history.check()["succeeded"] == 7


@pytest.mark.row("F8")
async def test_f8_a_black_hole_ends_work_before_its_lease(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, proxy: FaultProxy
) -> None:
    dropped = trio.Event()

    async def handler(exchange: object) -> None:
        """Never answer the first request, but notice when its connection is closed."""
        if len(origin.asked("/long")) > 1:
            await respond(200, b"second")(exchange)  # type: ignore[arg-type]
            return
        await exchange.raw.receive_some(1)  # type: ignore[attr-defined]
        dropped.set()

    origin.on("/long", handler)
    async with open_fleet(folder, server, BRIEF) as fleet:
        far = {"tables": {"redis": {"url": proxy.url}}}
        cut, *_ = await fleet.start_all("processor", "api", "notifier", processor=far)
        job_id = await fleet.post(**job_for(origin.url("/long"), sink.url()))
        await origin.seen("/long")
        proxy.black_hole = True
        cut_at = time.monotonic()
        await fleet.start("processor")
        with trio.fail_after(RECOVERY_S):
            await dropped.wait()
        await sink.heard_of(job_id)
        # The first request had ended before the second one arrived, so the limit of 1 held.
        assert origin.peak["/long"] == 1
        await cut.event("lease.not_renewed")
        await cut.event("lease.lost", job_id=job_id)
        await trio.sleep(max(0.0, 2 * LEASE_S - (time.monotonic() - cut_at)))  # F8 cuts it off for two leases
        proxy.heal()
        await fleet.running[-1].stop()
        # The processor continues to work and is told of new jobs.
        other = await fleet.post(**job_for(origin.url("/bytes/5"), sink.url()))
        await sink.heard_of(other)
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            assert history.check()["succeeded"] == 2


@pytest.mark.row("F8")
async def test_f8_latency_and_resets_lose_nothing(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, proxy: FaultProxy
) -> None:
    async with open_fleet(folder, server) as fleet:
        far = {"tables": {"redis": {"url": proxy.url}}}
        await fleet.start_all("processor", "api", "notifier", processor=far, notifier=far)
        proxy.delay_s = 0.05
        calls = iter(range(1, 10**9))
        proxy.lose_reply_to = lambda _: next(calls) % 50 == 0
        ids = await fleet.post_all(
            [
                job_for(origin.url(f"/slow/0.05/{n}"), sink.url(), group=f"g{n % 3}", limit=4)
                for n in range(90)
            ]
        )
        await sink.heard_of(*ids, seconds=60)
        assert proxy.lost > 0
        proxy.delay_s = 0
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            assert history.check()["succeeded"] == 90


@pytest.mark.row("F8")
async def test_f8_a_stop_without_the_store_ends_within_grace(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, proxy: FaultProxy
) -> None:
    origin.on("/held", gate(trio.Event(), respond(200)))
    async with open_fleet(folder, server, BRIEF) as fleet:
        cut = await fleet.start("run", tables={"redis": {"url": proxy.url}})
        job_id = await fleet.post(**job_for(origin.url("/held"), sink.url()))
        await origin.seen("/held")
        proxy.black_hole = True
        cut.send(signal.SIGTERM)
        assert await cut.wait() in HUNG
        assert cut.noise == []
        # Another instance takes the job that it could not hand back, when its lease has ended.
        await fleet.start("run")
        await origin.seen("/held", 2)
        assert (await fleet.job(job_id))["state"] == "running"


@pytest.mark.row("F9")
@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
async def test_f9_killed_and_restarted_with_its_append_only_file(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, appendfsync: str
) -> None:
    server.options = ("--appendonly", "yes", "--appendfsync", appendfsync)
    server.command("CONFIG", "SET", "appendfsync", appendfsync)
    durable = {"redis": {"durability": "aof", "timeout": 3.0}}  # everysec syncs within that time
    async with open_fleet(folder, server, durable) as fleet:
        processor, notifier, api = await fleet.start_all("processor", "notifier", "api")
        ids: list[str] = []
        refused: list[int] = []
        stop = trio.Event()

        async def client(number: int) -> None:
            while not stop.is_set():
                job = job_for(origin.url(f"/slow/0.05/{number}"), sink.url(), group=f"g{number}", limit=2)
                answer = await fleet.client.post("/download", json=job)
                if answer.status_code == 201:
                    fleet.accepted.append(answer.json()["id"])
                    ids.append(answer.json()["id"])
                else:
                    assert answer.status_code == 503
                    assert answer.headers["retry-after"]
                    refused.append(answer.status_code)

        async def more(count: int) -> None:
            wanted = len(sink.received) + count
            await sink.until(lambda: len(sink.received) >= wanted)

        async with trio.open_nursery() as clients:
            for number in range(4):
                clients.start_soon(client, number)
            for _ in range(3):
                await more(10)
                server.kill()
                await trio.to_thread.run_sync(server.start)
                back_at = time.monotonic()
                await more(2)
                assert time.monotonic() - back_at < RESUME_S
            stop.set()
        await sink.heard_of(*ids, seconds=30)
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            # The store may also have jobs whose answer was lost; it must have all that were accepted.
            states = [history.record(job_id).state for job_id in ids]
            assert set(states) == {"succeeded"}
            assert history.leases() == 0
        for one in (processor, notifier, api):
            assert one.noise == []


@pytest.mark.row("F10")
async def test_f10_a_store_that_comes_back_empty(folder: Path, sink: Sink, origin: Origin) -> None:
    hold = trio.Event()
    origin.on("/held", half_then(hold))
    with Valkey() as server:
        async with open_fleet(folder, server, BRIEF) as fleet:
            processor, _, _ = await fleet.start_all("processor", "notifier", "api")
            before = await fleet.post(**job_for(origin.url("/bytes/4"), sink.url()))
            await sink.heard_of(before)
            kept = fleet.files / before[:3] / before
            await fleet.post_all([job_for(origin.url("/held"), sink.url(), limit=2) for _ in range(4)])
            await origin.seen("/held", 2)
            server.kill()
            await trio.to_thread.run_sync(server.start)
            # The downloads whose jobs the store has lost are cancelled, and their spool files deleted.
            await processor.event("lease.lost", count=2)
            assert [path for path in fleet.spool.rglob("*") if path.is_file()] == []
            hold.set()
            fleet.accepted.clear()
            job_id = await fleet.post(**job_for(origin.url("/bytes/3"), sink.url()))
            await sink.heard_of(job_id)
            # A file whose callback was delivered can still be fetched.
            assert (await fleet.client.get(f"/files/{before[:3]}/{before}")).status_code == 200
            await fleet.stop_all()
            kept.unlink()
            with History(fleet, sink, url=server.url) as history:
                assert history.check()["succeeded"] == 1
                assert history.redis.exists(f"{history.prefix}layout")
            assert len(fleet.all_events("store.empty")) == 1, "one alarm, by whoever saw it first"


@pytest.mark.row("F12")
async def test_f12_a_full_store_refuses_jobs_and_ends_those_it_has(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    hold = trio.Event()
    origin.on("/held", gate(hold, respond(200, b"held")))
    brief = merged(BRIEF, {"notifier": {"deletion_interval": 0.5}})
    async with open_fleet(folder, server, brief) as fleet:
        _, notifier, _ = await fleet.start_all("processor", "notifier", "api")
        ids = await fleet.post_all([job_for(origin.url("/held"), sink.url(), limit=2) for _ in range(4)])
        await origin.seen("/held", 2)
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.command("CONFIG", "SET", "maxmemory", "1")
        answer = await fleet.client.post("/download", json=job_for(origin.url("/bytes/1"), sink.url()))
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        # After more than a lease no lease is lost, so renewals go on.
        await trio.sleep(LEASE_S + 2 * SWEEP_S)
        assert fleet.all_events("lease.lost") == fleet.all_events("lease.not_renewed") == []
        hold.set()
        # Completions, leases, callbacks and deletions go on, because they free memory.
        await sink.heard_of(*ids)
        await notifier.event("file.deleted", count=4)
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            history.check_forgotten()


@pytest.mark.row("H26")
async def test_h26_more_jobs_than_the_embedded_store_has_memory_for(
    folder: Path, sink: Sink, origin: Origin
) -> None:
    hold = trio.Event()
    origin.on("/held", gate(hold, respond(200, b"held")))
    large = job_for(origin.url("/held"), sink.url(), group="large", extra="x" * 200_000)
    async with open_fleet(folder, None, merged(BRIEF, {"redis": {"max_memory": "32MiB"}})) as fleet:
        run = await fleet.start("run")
        ids = await fleet.post_all([job_for(origin.url("/held"), sink.url(), limit=2) for _ in range(4)])
        await origin.seen("/held", 2)
        # All of them would take 80 MB, and none ends while `hold` is closed.
        refused = await fleet.client.post("/download", json=large)
        for _ in range(400):
            if refused.status_code != 201:
                break
            refused = await fleet.client.post("/download", json=large)
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        # The jobs that it has go on, and none was deleted.
        hold.set()
        await sink.heard_of(*ids)
        assert run.events("lease.lost") == []
        await fleet.stop_all()


@pytest.mark.row("F32")
async def test_f32_a_full_backlog_ends_below_the_memory_of_the_store(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    limit = 16 * 2**20
    server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.command("CONFIG", "SET", "maxmemory", str(limit))
    job = job_for(origin.url("/bytes/1"), sink.url(), limit=16, extra="x" * 10_000)
    async with open_fleet(folder, server) as fleet:
        api, *_ = await fleet.start_all("api", "processor", "notifier")
        assert (await fleet.client.patch("/aggregations/a", json={"paused": True})).status_code == 200
        ids: list[str] = []
        lines: list[dict[str, Any]] = []
        while not (refused := [line for line in lines if "code" in line]):
            answer = await fleet.client.post(
                "/downloads", content=b"".join([json.dumps(job).encode() + b"\n"] * 50)
            )
            lines = [json.loads(line) for line in answer.content.splitlines()]
            ids += [line["id"] for line in lines if "id" in line]
        assert {line["code"] for line in refused} == {"store_unavailable"}
        answer = await fleet.client.post("/download", json=job)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        await api.event("store.full")
        with redis.Redis.from_url(server.url) as client:
            assert client.info("memory")["used_memory"] < limit / 2, "before the memory is full"
            assert (await fleet.client.patch("/aggregations/a", json={"paused": False})).status_code == 200
            await sink.heard_of(*ids)
            assert client.info("memory")["used_memory_peak"] < limit
        await fleet.stop_all()
        assert fleet.all_events("lease.lost") == fleet.all_events("store.unavailable") == []


@pytest.mark.row("F12")
async def test_f12_functions_are_forgotten_by_the_server(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    async with open_fleet(folder, server) as fleet:
        await fleet.start("run")
        for _ in range(3):
            await sink.heard_of(await fleet.post(**job_for(origin.url("/bytes/1"), sink.url())))
            server.command("FUNCTION", "FLUSH")
        await fleet.stop_all()
        assert fleet.all_events("store.unavailable") == []


async def test_a_lost_subscription_is_made_again(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    async with open_fleet(folder, server) as fleet:
        await fleet.start("run")
        await sink.heard_of(await fleet.post(**job_for(origin.url("/bytes/1"), sink.url())))
        delays = []
        for _ in range(3):
            server.command("CLIENT", "KILL", "TYPE", "pubsub")
            # The job may come before or after the new subscription; in both cases it starts at once.
            delays += await fleet.callback_delays(origin, sink, 1)
        assert sorted(delays)[1] < IN_TIME_S, delays
        await fleet.stop_all()


async def test_a_silent_subscription_is_made_again(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, proxy: FaultProxy
) -> None:
    """The proxy acts as a firewall that drops the connection silently: it stays open, and no data arrives."""
    async with open_fleet(folder, server) as fleet:
        run = await fleet.start("run", tables={"redis": {"url": proxy.url, "timeout": 1.0}})
        await sink.heard_of(await fleet.post(**job_for(origin.url("/bytes/1"), sink.url())))
        assert proxy.forget(b"SUBSCRIBE") == 1
        await proxy.forwarded(b"SUBSCRIBE")
        delays = await fleet.callback_delays(origin, sink, 3)
        assert delays[1] < IN_TIME_S, delays
        assert run.noise == []
        await fleet.stop_all()


async def test_many_readers_at_once_are_all_answered(server: Valkey, folder: Path, sink: Sink) -> None:
    async with open_fleet(folder, server) as fleet:
        await fleet.start("api")
        job_id = await fleet.post(**job_for("http://origin.test/x", sink.url()))
        statuses: list[int] = []

        async def look() -> None:
            statuses.append((await fleet.client.get(f"/jobs/{job_id}")).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(look)
        assert set(statuses) == {200}
        await fleet.stop_all()
