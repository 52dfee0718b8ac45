"""Processors that are killed, frozen or stopped, and jobs that kill processors (F1, F2, F5, F6, F7)."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from servers.fleet import (
    BRIEF,
    PATIENT,
    QUICK,
    RECOVERY_S,
    Fleet,
    History,
    job_for,
    merged,
    open_fleet,
    say,
)
from servers.origin import Origin
from servers.processes import origin_process
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(180)]

KILLING_S = 60.0
"""How long F1 kills processors."""

WAITING = 8
"""How many jobs wait for each slot of an aggregation; a job takes 0.2 s."""

LARGE_BYTES = 32 * 1024 * 1024
"""More than fits into the buffers of the sockets on both sides."""


@pytest.mark.row("F1")
async def test_f1_processors_killed_again_and_again(server: Valkey, folder: Path, sink: Sink) -> None:
    limits = {"/slow/0.2/2001": 2, "/slow/0.2/2002": 5}
    rng = random.Random(1)
    async with origin_process() as origin, open_fleet(folder, server, BRIEF) as fleet:
        *victims, _, _ = await fleet.start_all("processor", "processor", "processor", "notifier", "api")
        kills, over = 0, False

        async def feed(path: str, limit: int) -> None:
            """Keep `WAITING` jobs waiting for each slot, however fast the machine is."""
            posted: set[str] = set()
            while not over:
                url = f"{origin}{path}?seed={len(posted)}"
                posted.add(await fleet.post(**job_for(url, sink.url(), group=path, limit=limit)))
                await sink.until(lambda: len(posted - sink.heard) < WAITING * limit, seconds=KILLING_S)

        async def replace() -> None:
            victims.append(await fleet.start("processor"))

        async with trio.open_nursery() as starting:
            for path, limit in limits.items():
                starting.start_soon(feed, path, limit)
            until = time.monotonic() + KILLING_S
            while time.monotonic() < until:
                await trio.sleep(rng.uniform(0.3, 1.0))
                if victims:
                    await victims.pop(0).kill()
                    kills += 1
                    starting.start_soon(replace)
            over = True
        last_kill = time.monotonic()
        await sink.heard_of(*fleet.accepted, seconds=60)
        took_s = time.monotonic() - last_kill
        say(f"{kills} kills, {len(fleet.accepted)} jobs; all done {took_s:.1f} s after the last kill")
        say(f"{len(fleet.all_events('lease.lost'))} leases lost by the living")
        peak = (await fleet.client.get(f"{origin}/_stats")).json()["peak"]
        await fleet.start("processor")
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            states = history.check()
            # With so many kills, five workers of one job may be killed; then it fails with `poison`.
            crashes = (history.record(job_id).download.get("crashes") for job_id in fleet.accepted)
            given_up = [count for count in crashes if count == "5"]
            assert states == Counter(succeeded=len(fleet.accepted) - len(given_up), failed=len(given_up))
            history.check_origin(peak, limits)


@pytest.mark.parametrize(
    "point",
    ["after-lease", "first-byte", "before-fsync", "after-rename", "before-complete", "after-complete"],
)
@pytest.mark.row("F2")
async def test_f2_killed_at_a_named_point(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, point: str
) -> None:
    async with open_fleet(folder, server, BRIEF) as fleet:
        failing = {"environ": {"DOWNLOADER_FAILPOINT": point}}
        victim, *_ = await fleet.start_all("processor", "api", "notifier", processor=failing)
        job_id = await fleet.post(**job_for(origin.url("/bytes/1000"), sink.url()))
        assert await victim.wait() == -signal.SIGKILL
        died_at = time.monotonic()
        await fleet.start("processor")
        [callback] = await sink.heard_of(job_id)
        if point != "after-complete":
            assert callback.at - died_at < RECOVERY_S
        await fleet.stop_all()
        gets = len(origin.asked("/bytes/1000"))
        asked_before_death = point != "after-lease"
        assert gets == {"after-lease": 1, "after-complete": 1}.get(point, 2), asked_before_death
        with History(fleet, sink, url=server.url) as history:
            assert history.check()["succeeded"] == 1
            assert history.record(job_id).download["attempts"] == "1"


@pytest.mark.row("F5")
async def test_f5_a_rolling_restart_costs_no_attempt(server: Valkey, folder: Path, sink: Sink) -> None:
    limits = {"/slow/0.3/3001": 6, "/slow/0.3/3002": 6}
    async with origin_process() as origin, open_fleet(folder, server, PATIENT) as fleet:
        first, second, third, _ = await fleet.start_all("processor", "processor", "processor", "notifier")
        api = await fleet.start("api", tables=QUICK)
        ids = await fleet.post_all(
            [
                job_for(f"{origin}{path}?seed={index}", sink.url(), group=path, limit=limit)
                for index in range(90)
                for path, limit in limits.items()
            ]
        )
        large = await fleet.post(**job_for(f"{origin}/bytes/{LARGE_BYTES}", sink.url(), group="large"))
        await sink.heard_of(large)
        with History(fleet, sink, url=server.url) as history:
            for old in (first, second, third):
                new_started = trio.Event()

                async def start(started: trio.Event = new_started) -> None:
                    await fleet.start("processor")
                    started.set()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(start)
                    await old.stop()
            # A client that stops reading and one that stops sending do not delay the stop of the API.
            port = api.events("api.listening")[0]["port"]
            path = f"/files/{large[:3]}/{large}"
            async with (
                await trio.open_tcp_stream("127.0.0.1", port) as reader,
                await trio.open_tcp_stream("127.0.0.1", port) as sender,
            ):
                await reader.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert (await reader.receive_some(12)).startswith(b"HTTP/1.1 200")
                await sender.send_all(
                    b"POST /download HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
                )
                await api.stop()
                read = 0
                with suppress(trio.BrokenResourceError):
                    while data := await reader.receive_some(1 << 20):
                        read += len(data)
                assert read < LARGE_BYTES, "it has not been sent to its end"
            await sink.heard_of(*ids, seconds=60)
            await fleet.stop_all()
            assert history.check()["succeeded"] == len(ids) + 1
            attempts = {history.record(job_id).download["attempts"] for job_id in ids}
            crashes = {history.record(job_id).download.get("crashes") for job_id in ids}
            assert (attempts, crashes) == ({"1"}, {None})


@pytest.mark.row("F6")
async def test_f6_a_job_that_kills_its_worker_is_given_up(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    async with open_fleet(folder, server, {"redis": {"timeout": 1.5}, "processor": {"lease": 2.5}}) as fleet:
        await fleet.start_all("api", "notifier")
        errors: dict[str, Any] = {"callback_error_type": "http", "callback_error_dst": sink.url("/ok/err")}
        deadly = await fleet.post(**job_for(origin.url("/bytes/77"), sink.url("/ok/never"), **errors))
        await _die_five_times(fleet, {"DOWNLOADER_FAILPOINT": "first-byte"})
        others = await fleet.post_all(
            [job_for(origin.url(f"/bytes/{n}"), sink.url(), group="fine") for n in range(3)]
        )
        await fleet.start("processor")
        [callback] = await sink.heard_of(deadly)
        assert callback.path == "/ok/err"
        assert callback.payload["success"] is False
        assert callback.payload["error_code"] == "poison"
        assert callback.payload["error"] == "its worker died 5 times"
        assert callback.payload["attempts"] == 0
        await sink.heard_of(*others)
        assert len(origin.asked("/bytes/77")) == 5
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            assert history.check() == {"succeeded": 3, "failed": 1}


@pytest.mark.row("F6")
async def test_f6_a_file_of_a_job_that_is_given_up_is_deleted_with_the_job(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    tables = {"redis": {"timeout": 1.5}, "processor": {"lease": 2.5}, "notifier": {"deletion_interval": 0.5}}
    async with open_fleet(folder, server, tables) as fleet:
        _, notifier = await fleet.start_all("api", "notifier")
        job_id = await fleet.post(**job_for(origin.url("/bytes/77"), sink.url()))
        await _die_five_times(fleet, {"DOWNLOADER_FAILPOINT": "after-rename"})
        assert [path.name for path in fleet.stored()] == [job_id]
        await fleet.start("processor")
        [callback] = await sink.heard_of(job_id)
        assert callback.payload["error_code"] == "poison"
        await notifier.event("file.deleted", job_id=job_id)
        await fleet.stop_all()
        assert fleet.stored() == []


async def _die_five_times(fleet: Fleet, environ: dict[str, str]) -> None:
    """Start a processor that the job kills, five times, one after the other."""
    for _ in range(5):
        one = await fleet.start("processor", environ=environ, ready=False)
        assert await one.wait(40) == -signal.SIGKILL


@pytest.mark.row("F7")
async def test_f7_frozen_over_its_lease_with_many_in_flight(server: Valkey, folder: Path, sink: Sink) -> None:
    # One processor cannot take all eight downloads, so both have some of them.
    room = merged(BRIEF, {"processor": {"concurrency": 4}})
    async with origin_process() as origin, open_fleet(folder, server, room) as fleet:
        frozen, other, _, _ = await fleet.start_all("processor", "processor", "notifier", "api")
        ids = await fleet.post_all(
            [job_for(f"{origin}/slow/2/4001?seed={n}", sink.url(), limit=8) for n in range(24)]
        )
        with trio.fail_after(20):
            while server.command("ZCARD", "downloader:1:{0}:download:leases") != b":8\r\n":  # noqa: ASYNC110
                await trio.sleep(0.01)  # no event tells it; the downloads take two seconds
        frozen.send(signal.SIGSTOP)
        await other.event("sweep.recovered")
        frozen.send(signal.SIGCONT)
        await frozen.event("lease.lost")
        await sink.heard_of(*ids, seconds=60)
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            assert history.check()["succeeded"] == 24
