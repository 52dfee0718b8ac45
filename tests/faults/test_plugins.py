"""A backend of a plugin package that cannot be started, raises, hangs or ends. Fault F19."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from servers.cli import run_cli
from servers.fleet import (
    ASIDE_MAX_S,
    ASIDE_S,
    BRIEF,
    DEFAULTS,
    GRACE_S,
    HUNG,
    LEASE_S,
    SLACK_S,
    Fleet,
    Tables,
    job_for,
    merged,
    open_fleet,
    say,
    to_toml,
)
from servers.origin import Origin
from servers.processes import children
from servers.sink import Sink
from servers.stranger import install
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.plugin, pytest.mark.fault, pytest.mark.timeout(120)]

WAITING = 200
"""How many callbacks the bad backend gets. Each has a destination of its own, so that the limit of a
destination does not bound them."""

SLOTS = 24

CANNOT_IMPORT = "backends.{0}: notifier plugin '{0}' (stranger 2.5) cannot be imported: {1}"


def bad(folder: Path, mode: str, **section: str) -> Tables:
    """Tables that add the bad backend to the configuration, which has `http` already."""
    backend = {"mode": mode, "cure": str(folder / "cure"), "diary": str(folder / "diary"), **section}
    notifier = {"concurrency": SLOTS, "retry_schedule": [0.2, 0.3, 30.0]}
    return merged(BRIEF, {"notifier": notifier, "backends.bad": backend})


def for_bad(origin: Origin, number: int, **more: Any) -> dict[str, Any]:
    job = job_for(origin.url("/bytes/2"), f"loft-{number}", group="bad", limit=9)
    return {**job, "callback_type": "bad", **more}


def diary(folder: Path) -> list[tuple[str, bool]]:
    """The deliveries that the bad backend was asked for: the job, and whether the backend was cured."""
    path = folder / "diary"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line.split()[0], line.split()[1] == "True") for line in lines]


async def asked(folder: Path, count: int) -> None:
    """Wait until the bad backend, in another process, has been asked for this many deliveries."""
    with trio.fail_after(20):
        while len(diary(folder)) < count:  # noqa: ASYNC110  # it only writes a file
            await trio.sleep(0.05)


async def ready(fleet: Fleet) -> dict[str, Any]:
    answer = await fleet.client.get("/health/ready")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def until(fleet: Fleet, what: str, value: object) -> None:
    """Wait until a counter of the notifier has this value; instances report once a second."""
    with trio.fail_after(30):
        while (found := (await fleet.client.get("/stats/notifier")).json()).get(what) != value:
            assert what in found, found
            await trio.sleep(0.1)


@pytest.mark.parametrize("mode", ["raises", "hangs"])
@pytest.mark.row("F19")
async def test_f19_a_backend_that_fails_is_alone_in_it_and_says_so(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, mode: str
) -> None:
    environ = install(folder / "stranger")
    async with open_fleet(folder, server, bad(folder, mode)) as fleet:
        run = await fleet.start("run", environ=environ)
        assert (await ready(fleet))["backends"] == {"bad": True, "http": True}
        before = await fleet.callback_delays(origin, sink, 30)
        ids = await fleet.post_all([for_bad(origin, number) for number in range(WAITING)])
        await asked(folder, 3)
        during = await fleet.callback_delays(origin, sink, 100)
        say(f"{mode}: median {before[15]:.3f} s, p99 {before[-1]:.3f} s without it")
        say(f"{mode}: median {during[50]:.3f} s, p99 {during[98]:.3f} s beside it")
        assert during[50] < before[15] + ASIDE_S
        assert during[98] < before[-1] + ASIDE_MAX_S

        # Log and counters say so, and the readiness too, which stays 200.
        unhealthy = await run.event("backend.unhealthy", backend="bad")
        reason = {"raises": "OSError", "hangs": f"no answer within {2 * LEASE_S:g} s"}[mode]
        assert unhealthy["error"] == f"backend bad failed: {reason}"
        assert (await ready(fleet))["backends"] == {"bad": False, "http": True}
        await until(fleet, "backends_unhealthy", 1)
        after = await fleet.callback_delays(origin, sink, 20)
        assert after[10] < before[15] + ASIDE_S

        # When the backend is cured, all callbacks are delivered. Only the first failures count as attempts.
        tried = len(diary(folder))
        (folder / "cure").touch()
        await run.event("backend.healthy", backend="bad", seconds=45)
        healthy_at = time.monotonic()
        for job_id in ids:
            await run.event("callback.delivered", job_id=job_id, seconds=45)
        say(f"{mode}: {tried} deliveries failed, all delivered {time.monotonic() - healthy_at:.1f} s after")
        await until(fleet, "backends_unhealthy", 0)
        assert len(run.events("backend.unhealthy")) == len(run.events("backend.healthy")) == 1
        jobs = [await fleet.job(job_id) for job_id in ids]
        attempts = [job["callback"]["attempts"] for job in jobs]
        assert sum(attempts) - len(ids) <= 2, "beyond the first failures none counts as an attempt"
        assert all("hunter2" not in str(job) for job in jobs)
        await run.stop()


@pytest.mark.parametrize(
    "nonsense",
    [
        ("defers", "answered RetryLater with an after_s that is not a number of seconds"),
        ("answers", "answered str"),
        ("exits", "SystemExit"),
    ],
)
@pytest.mark.row("F23")
async def test_f23_nonsense_of_a_backend_is_a_retry_with_a_reason(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, nonsense: tuple[str, str]
) -> None:
    mode, reason = nonsense
    environ = install(folder / "stranger")
    async with open_fleet(folder, server, bad(folder, mode)) as fleet:
        run = await fleet.start("run", environ=environ)
        job_id = await fleet.post(**for_bad(origin, 1))
        again = await run.event("callback.retry", job_id=job_id)
        assert again["error"] == f"backend bad failed: {reason}"
        (folder / "cure").touch()
        await run.event("callback.delivered", job_id=job_id)
        await fleet.callback_delays(origin, sink, 1)
        await run.stop()


@pytest.mark.row("F26")
async def test_f26_a_callback_is_left_to_the_notifier_that_has_its_backend(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    environ = install(folder / "stranger")
    (folder / "cure").touch()
    async with open_fleet(folder, server, bad(folder, "answers")) as fleet:
        await fleet.start("api", environ=environ)
        await fleet.start("processor")
        without = await fleet.start("notifier", tables={"backends.bad": {}})
        ids = await fleet.post_all([for_bad(origin, number) for number in range(20)])
        released = await without.event("callback.released", job_id=ids[0])
        assert released["error"] == "backend bad is not configured here: there is no [backends.bad]"
        # Other callbacks go on.
        await fleet.callback_delays(origin, sink, 5)

        within = await fleet.start("notifier", environ=environ)
        for job_id in ids:
            await within.event("callback.delivered", job_id=job_id, seconds=30)
        assert sorted(job for job, _ in diary(folder)) == sorted(ids)
        assert {(await fleet.job(job_id))["callback"]["attempts"] for job_id in ids} == {1}
        assert without.events("callback.retry") == without.events("callback.failed") == []
        assert len(without.events("backend.failed", backend="bad")) == 1


@pytest.mark.parametrize("mode", ["hangs", "clings", "blocks"])
@pytest.mark.row("F19")
async def test_f19_a_backend_that_hangs_does_not_hold_up_a_stop(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, mode: str
) -> None:
    environ = install(folder / "stranger")
    # A delivery may take two leases. Both end after the stop, also on a machine that stalls.
    patient = merged(bad(folder, mode), {"notifier": {"lease": 60.0}})
    async with open_fleet(folder, server, patient) as fleet:
        run = await fleet.start("run", environ=environ)
        await fleet.post_all([for_bad(origin, number) for number in range(3)])
        await asked(folder, 3)
        run.send(signal.SIGTERM)
        status = await run.wait()
        # A thread that is stuck cannot be ended, so the process is killed while it still runs.
        assert status in HUNG if mode == "blocks" else status == 0
        assert len(run.events("callback.released")) == 3, run.tail()


@pytest.mark.row("F19")
async def test_f19_a_backend_stuck_in_threads_is_found(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    environ = install(folder / "stranger")
    async with open_fleet(folder, server, bad(folder, "blocks")) as fleet:
        run = await fleet.start("run", environ=environ)
        before = await fleet.callback_delays(origin, sink, 10)
        await fleet.post_all([for_bad(origin, number) for number in range(WAITING)])
        unhealthy = await run.event("backend.unhealthy", backend="bad")
        assert unhealthy["error"] == "backend bad failed: did not end after a cancel"
        beside = await fleet.callback_delays(origin, sink, 20)
        # A slot of the bad backend is held for two leases, eight seconds.
        assert beside[10] < before[5] + ASIDE_S
        assert beside[-1] < before[-1] + ASIDE_MAX_S


@pytest.mark.row("F19")
async def test_f19_a_backend_whose_background_raises_is_opened_again(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    environ = install(folder / "stranger")
    (folder / "cure").touch()
    async with open_fleet(folder, server, bad(folder, "raises", dies=str(folder / "die"))) as fleet:
        run = await fleet.start("run", environ=environ)
        (folder / "die").touch()
        ended = await run.event("backend.failed", backend="bad")
        assert ended["error"].startswith("backends.bad: has ended by itself: ")
        job_id = await fleet.post(**for_bad(origin, 1))
        await run.event("callback.delivered", job_id=job_id)
        await fleet.callback_delays(origin, sink, 1)
        await run.stop()


@pytest.mark.parametrize(
    ("backend", "section", "expected"),
    [
        ("bad", {"open": "refuses"}, "backends.bad: loft: there is no room for it"),
        ("bad", {"open": "raises"}, "backends.bad: cannot be opened: OSError: the loft is shut"),
        ("bad", {"open": "wrong"}, "backends.bad: the plugin gives a object, which has no method deliver()"),
        ("bad", {}, "backends.bad: cannot be opened: KeyError: 'mode'"),
        (
            "broken",
            {},
            CANNOT_IMPORT.format("broken", "ModuleNotFoundError: No module named 'no_such_library'"),
        ),
        (
            "absent",
            {},
            CANNOT_IMPORT.format(
                "absent", "AttributeError: module 'strangers_bad' has no attribute 'is_not_there'"
            ),
        ),
        ("bad", {"open": "hangs"}, "backends.bad: did not open within 20 s"),
    ],
)
@pytest.mark.row("F19")
def test_f19_a_backend_that_cannot_be_started_is_one_line(
    folder: Path, server: Valkey, backend: str, section: dict[str, str], expected: str
) -> None:
    own: Tables = {"": {"data_dir": str(folder / "data")}, "redis": {"url": server.url, "timeout": 1.0}}
    config = folder / "config.toml"
    section = {"note": "hunter2", **section}
    config.write_text(to_toml(merged(merged(DEFAULTS, own), {f"backends.{backend}": section})))
    ran = run_cli("notifier", "-c", config, environ=install(folder / "stranger"))
    assert (ran.status, ran.complaint) == (2, expected)


@pytest.mark.row("F19")
async def test_f19_what_is_not_configured_is_not_imported(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    environ = install(folder / "stranger")
    async with open_fleet(folder, server) as fleet:
        run = await fleet.start("run", environ=environ)
        job_id = await fleet.post(**job_for(origin.url("/bytes/1"), sink.url()))
        await run.event("callback.delivered", job_id=job_id)
        refused = await fleet.client.post("/download", json=for_bad(origin, 1))
        assert (refused.status_code, refused.json()["code"]) == (422, "unknown_backend")
        await run.stop()
    assert not (folder / "stranger" / "imported").exists()
    broken = run_cli("plugins", "--json", environ=environ)
    assert broken.status == 0
    assert '"broken"' in broken.out
    assert not (folder / "stranger" / "imported").exists(), "listing imports nothing either"


@pytest.mark.row("F35")
async def test_f35_a_plugin_that_hangs_in_closing_does_not_keep_a_crashed_service(folder: Path) -> None:
    environ = install(folder / "stranger")
    async with open_fleet(folder, None, bad(folder, "answers", close="blocks")) as fleet:
        run = await fleet.start("run", environ=environ)
        [server] = children(run.pid)
        began = time.monotonic()
        os.kill(server, signal.SIGKILL)
        assert await run.wait(GRACE_S + SLACK_S) in HUNG
        assert time.monotonic() - began > GRACE_S / 2, "the plugin did not hang"
    [failed] = run.events("service.failed")
    assert "the embedded store ended by itself with status -9" in failed["reason"]
    assert "hangs" in run.events("service.stopped")[-1]["reason"]


@pytest.mark.row("F35")
@pytest.mark.parametrize("neighbours", [0, 1], ids=["alone", "beside work that hangs"])
async def test_f35_a_crash_in_a_role_ends_the_process_although_a_storage_closes_slowly(
    server: Valkey, folder: Path, origin: Origin, neighbours: int
) -> None:
    """The close of the storage is cancelled after its five seconds; the other delivery is in a thread."""
    environ = install(folder / "stranger")
    tables = merged(bad(folder, "interrupts"), {"processor.filestorage": {"type": "slow"}})
    hanging = {"mode": "blocks", "cure": str(folder / "no"), "diary": str(folder / "diary")}
    async with open_fleet(folder, server, merged(tables, {"backends.stuck": hanging})) as fleet:
        run = await fleet.start("run", environ=environ)
        for number in range(1, 1 + neighbours):
            await fleet.post(**{**for_bad(origin, number), "callback_type": "stuck"})
            await asked(folder, number)
        began = time.monotonic()
        await fleet.post(**for_bad(origin, 0))
        status = await run.wait(GRACE_S + SLACK_S)
        say(f"ended with {status} after {time.monotonic() - began:.1f} s")
        assert status != 0
    assert "KeyboardInterrupt" in run.tail() or status == 130
