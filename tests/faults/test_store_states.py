"""A store that is loading, whose password was changed, or whose clock was moved. Fault F12."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
import redis
import trio

from servers.clock import open_clock
from servers.fleet import BRIEF, START_S, History, Tables, job_for, open_fleet
from servers.origin import Origin, gate, respond
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(120)]

HOUR_S = 3600

LOADS_SLOWLY = ("--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024")
"""Loading a key takes 0.01 s, and between two keys the server answers requests."""

FILLERS = 500
"""The number of keys, each larger than those 1024 bytes: loading them takes five seconds."""

HASTY: Tables = {"redis": {"timeout": 1.0}}
"""Gives up on a store that is loading."""


def check_unavailable(answer: httpx2.Response) -> None:
    """The answer is 503 `store_unavailable` with `Retry-After`."""
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable"), answer.text
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.row("F12")
async def test_f12_a_store_that_is_loading(folder: Path, sink: Sink, origin: Origin) -> None:
    hold = trio.Event()
    origin.on("/held", gate(hold, respond(200, b"held")))
    with Valkey() as server:
        async with open_fleet(folder, server, HASTY) as fleet:
            await fleet.start_all("processor", "notifier", "api")
            ids = [await fleet.post(**job_for(origin.url("/held"), sink.url()))]
            await origin.seen("/held")
            for number in range(FILLERS):
                server.command("SET", f"filler:{number}", "x" * 2000)
            server.command("SAVE")
            server.kill()
            server.options = LOADS_SLOWLY
            refused = 0

            def loading() -> bool:
                try:
                    return server.command("EXISTS", "filler:0").startswith(b"-LOADING")
                except OSError:
                    return False

            async def ask_meanwhile() -> None:
                nonlocal refused
                while not refused:
                    before = await trio.to_thread.run_sync(loading)
                    answer = await fleet.client.post(
                        "/download", json=job_for(origin.url("/bytes/1"), sink.url())
                    )
                    if before and await trio.to_thread.run_sync(loading):
                        check_unavailable(answer)
                        refused += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_meanwhile)
                await trio.to_thread.run_sync(server.start)
                nursery.cancel_scope.cancel()
            assert refused
            # The running download was not lost, and new jobs are accepted.
            hold.set()
            ids.append(await fleet.post(**job_for(origin.url("/bytes/2"), sink.url())))
            await sink.heard_of(*ids)
            await fleet.stop_all()
            assert len(origin.asked("/held")) == 1
            assert fleet.all_events("lease.lost") == []
            with History(fleet, sink, url=server.url) as history:
                assert history.check()["succeeded"] == len(ids)


def change_password(server: Valkey, new: str) -> None:
    """Set a new password, and close all connections: those that gave the old one would stay otherwise."""
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        client.config_set("requirepass", new)
        client.client_kill_filter(_type="pubsub")
        client.client_kill_filter(_type="normal", skipme=True)


@pytest.mark.row("F12")
async def test_f12_the_password_is_changed(server: Valkey, folder: Path, sink: Sink, origin: Origin) -> None:
    origin.on("/held", gate(trio.Event(), respond(200)))
    async with open_fleet(folder, server, BRIEF) as fleet:
        processor, notifier, api = await fleet.start_all("processor", "notifier", "api")
        job_id = await fleet.post(**job_for(origin.url("/held"), sink.url()))
        await origin.seen("/held")
        change_password(server, "other")
        check_unavailable(await fleet.client.post("/download", json=job_for(origin.url("/x"), sink.url())))
        # Processors and notifiers end, because a retry would not help; they can be started with the new one.
        for one in (processor, notifier):
            assert await one.wait(START_S) == 1
            assert one.noise == ["downloader: the store refuses us: Authentication required."]
        await api.event("store.unavailable", reason="the store refuses us: Authentication required.")
        await api.stop()
        origin.on("/held", respond(200, b"again"))
        fleet.tables["redis"]["url"] = f"unix://:other@{server.socket}"
        await fleet.start("run")
        await sink.heard_of(job_id)
        assert (await fleet.job(job_id))["attempts"] == 1
        await fleet.stop_all()
        with History(fleet, sink, url=fleet.tables["redis"]["url"]) as history:
            assert history.check()["succeeded"] == 1


@pytest.mark.row("F12")
@pytest.mark.parametrize("moved_s", [HOUR_S, -HOUR_S])
async def test_f12_the_clock_is_moved(folder: Path, sink: Sink, origin: Origin, moved_s: int) -> None:
    hold = trio.Event()
    origin.on("/held", gate(hold, respond(200, b"held")))
    clock = open_clock(folder)
    with Valkey(environ=clock.environ) as server:
        async with open_fleet(folder, server) as fleet:
            await fleet.start_all("processor", "processor", "notifier", "api")
            ids = await fleet.post_all([job_for(origin.url("/held"), sink.url(), limit=2) for _ in range(4)])
            await origin.seen("/held", 2)
            clock.set(moved_s)
            more = await fleet.post_all(
                [job_for(origin.url(f"/bytes/{n}"), sink.url(), group="b") for n in range(5)]
            )
            await sink.heard_of(*more)
            if moved_s > 0:
                # By this clock the leases have ended: the jobs run again, and no attempt is counted.
                await origin.seen("/held", 4)
            hold.set()
            if moved_s > 0:
                await sink.heard_of(*ids)
            else:
                await sink.until(lambda: len(sink.received) >= len(more) + 2)
            # Jobs that were due before the clock was set back are due again when it is right.
            clock.set(0)
            more += await fleet.post_all([job_for(origin.url("/bytes/9"), sink.url(), group="c")])
            await sink.heard_of(*ids, *more)
            await fleet.stop_all()
            assert bool(fleet.all_events("lease.lost")) == (moved_s > 0)
            with History(fleet, sink, url=server.url) as history:
                assert history.check()["succeeded"] == len(ids) + len(more)
                assert {history.record(one).download["attempts"] for one in ids} == {"1"}
