"""Callbacks to hosts that fail, and notifiers that are killed. Faults F3, F16, F17 and F20."""

from __future__ import annotations

import json
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from servers.fleet import (
    ASIDE_MAX_S,
    ASIDE_S,
    BRIEF,
    RECOVERY_S,
    History,
    Tables,
    job_for,
    open_fleet,
    say,
)
from servers.origin import Origin, raw
from servers.ports import spare_port
from servers.sink import Sink, open_sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(120)]


DELIVERIES = {"after-lease": 1, "before-complete": 2, "after-complete": 1}
"""How often a callback arrives whose notifier dies at this point: before the POST, between the 200 and its
recording in the store, or after that."""


@pytest.mark.parametrize("point", DELIVERIES)
@pytest.mark.row("F3")
async def test_f3_a_notifier_that_dies_gives_one_id(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, point: str
) -> None:
    deliveries = DELIVERIES[point]
    async with open_fleet(folder, server, BRIEF) as fleet:
        failing = {"environ": {"DOWNLOADER_FAILPOINT": point}}
        victim, *_ = await fleet.start_all("notifier", "processor", "api", notifier=failing)
        job_id = await fleet.post(**job_for(origin.url("/bytes/10"), sink.url()))
        assert await victim.wait() == -signal.SIGKILL
        died_at = time.monotonic()
        again = await fleet.start("notifier")
        if point != "after-complete":
            await sink.until(lambda: len(sink.received) == deliveries)
            assert sink.received[-1].at - died_at < RECOVERY_S
            await again.event("callback.delivered", job_id=job_id)
        await fleet.stop_all()
        assert len(sink.received) == deliveries
        assert len({one.webhook_id for one in sink.received}) == 1
        with History(fleet, sink, url=server.url) as history:
            assert history.check()["succeeded"] == 1
            record = history.record(job_id)
            assert (record.callback["state"], record.callback["attempts"]) == ("succeeded", "1")


@pytest.mark.row("F16")
async def test_f16_each_answer_has_its_consequence(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    # Each has a host of its own, because that makes it a destination of its own.
    paths = {
        "500": "/status/500",
        "410": "/status/410",
        "302": "/redirect",
        "flaky": "/flaky/2",
        "busy": "/busy/2",
        "hang": "/hang",
    }
    brief = {"backends.http": {"timeout": 1.0}}
    async with open_fleet(folder, server, brief) as fleet:
        run = await fleet.start("run")
        ids = {
            name: await fleet.post(
                **job_for(origin.url(f"/bytes/{i}"), sink.url(path, host=f"127.0.0.{i + 2}"), group=name)
            )
            for i, (name, path) in enumerate(paths.items())
        }
        for name in ("500", "410", "302", "hang"):
            await run.event("callback.failed", job_id=ids[name])
        for name in ("flaky", "busy"):
            await run.event("callback.delivered", job_id=ids[name])
        times = {name: [one.at for one in sink.by_job()[job_id]] for name, job_id in ids.items()}
        assert {name: len(found) for name, found in times.items()} == {
            "500": 4,
            "410": 1,
            "302": 4,
            "flaky": 3,
            "busy": 2,
            "hang": 4,
        }
        assert times["busy"][1] - times["busy"][0] >= 2.0
        assert not [one for one in sink.received if one.path == "/ok/redirected"]
        job = await fleet.job(ids["500"])
        assert (job["state"], job["callback"]["state"]) == ("succeeded", "failed")
        assert "500" in str(job["callback"]), job

        # A failed callback can be sent again, with the same id; a delivered one cannot.
        assert (await fleet.client.post(f"/retry/{ids['flaky']}")).status_code == 409
        assert (await fleet.client.post("/retry/AAAAAAAAAAAAAA")).status_code == 404
        assert (await fleet.client.post(f"/retry/{ids['500']}")).status_code == 201
        await run.event("callback.failed", job_id=ids["500"], count=2)
        assert len(sink.by_job()[ids["500"]]) == 8
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            assert history.check()["succeeded"] == len(paths)


@pytest.mark.row("F17")
async def test_f17_a_dead_host_delays_nobody_else(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    slow: Tables = {
        "backends.http": {"timeout": 10.0},
        "notifier": {"concurrency": 24, "retry_schedule": [30.0]},
    }
    async with open_fleet(folder, server, slow) as fleet:
        await fleet.start("run")

        before = await fleet.callback_delays(origin, sink, 15)
        dead = sink.url("/hang", host="127.0.0.7")
        await fleet.post_all(
            [job_for(origin.url("/bytes/2"), dead, group="dead", limit=9) for _ in range(60)]
        )
        # Two rounds of as many deliveries as its limit allows; each round takes as long as the timeout.
        await sink.until(lambda: len([one for one in sink.received if one.path == "/hang"]) >= 16, seconds=60)
        after = await fleet.callback_delays(origin, sink, 15)
        say(f"median {statistics.median(before):.3f} s, beside a dead host {statistics.median(after):.3f} s")
        assert statistics.median(after) < statistics.median(before) + ASIDE_S
        assert max(after) < max(before) + ASIDE_MAX_S


@pytest.mark.row("H21")
async def test_h21_silent_destinations_leave_half_of_the_slots_to_those_that_answer(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    hosts, slots = [f"127.1.{number // 250}.{number % 250 + 1}" for number in range(300)], 32
    # A delivery to a silent host takes longer than this test, so none of their slots becomes free.
    patient: Tables = {"backends.http": {"timeout": 300.0}, "notifier": {"concurrency": slots}}
    async with open_sink(hosts) as silent, open_fleet(folder, server, patient) as fleet:
        run = await fleet.start("run")
        await sink.heard_of(await fleet.post(**job_for(origin.url("/bytes/1"), sink.url())))
        jobs = [job_for(origin.url("/bytes/2"), silent.url("/hang", host=host), group=host) for host in hosts]
        lines = "\n".join(map(json.dumps, jobs))
        assert (await fleet.client.post("/downloads", content=lines)).text.count('"id"') == len(hosts)
        await run.event("job.succeeded", count=1 + len(hosts))
        await silent.until(lambda: len(silent.received) >= slots // 2)
        for number in range(10):
            began = time.monotonic()
            job = job_for(origin.url("/bytes/1"), sink.url(), group=f"innocent-{number}")
            [callback] = await sink.heard_of(await fleet.post(**job))
            say(f"{callback.at - began:.3f} s from the POST, beside {len(silent.received)} that are silent")
        assert len(silent.received) == slots // 2


@pytest.mark.row("F20")
async def test_f20_failing_origins_are_reported_and_free_their_slot(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    brief = {"processor": {"download_timeout": 1, "max_retries": 1, "retry_backoff": 0.1}}
    origin.on("/rst", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", then="rst"))
    expected = {
        "/status/404": ("http_status", 404, 1),
        "/status/503": ("http_status", 503, 2),
        "/hang": ("timeout", 0, 2),
        "/rst": ("truncated", 200, 2),
        "/redirect/20": ("redirects", 302, 1),
    }
    async with open_fleet(folder, server, brief) as fleet:
        await fleet.start("run")
        errors: dict[str, Any] = {"callback_error_type": "http", "callback_error_dst": sink.url("/ok/errors")}
        # All are in one aggregation with one slot: each runs only if the one before has freed the slot.
        posts = [job_for(origin.url(path), sink.url(), **errors) for path in expected]
        posts += [job_for(origin.url("/redirect/3"), sink.url(), **errors)]
        posts += [job_for(f"http://127.0.0.1:{spare_port()}/refused", sink.url(), **errors)]
        posts += [job_for("http://169.254.169.254/meta", sink.url(), **errors)]
        posts += [job_for(origin.url("/drip/20/1"), sink.url(), download_timeout=1, **errors)]
        ids = await fleet.post_all(posts)
        got = await sink.heard_of(*ids, seconds=30)
        for (code, status, attempts), one in zip(expected.values(), got, strict=False):
            payload = one.payload
            assert one.path == "/ok/errors"
            assert (payload["error_code"], payload["response_code"], payload["attempts"]) == (
                code,
                status,
                attempts,
            ), payload
        redirected, refused, egress, late = got[len(expected) :]
        assert (redirected.path, redirected.payload["success"]) == ("/ok", True)
        assert [one.payload["error_code"] for one in (refused, egress, late)] == [
            "connect",
            "egress",
            "timeout",
        ]
        assert origin.peak["/status"] == 1
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            assert history.check() == {"failed": 8, "succeeded": 1}
