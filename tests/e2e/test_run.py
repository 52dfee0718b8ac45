"""`downloader run`: everything in one command, with the embedded store, one process or several."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio

from servers.fleet import BRIEF, Fleet, History, Running, job_for, open_fleet
from servers.forked import environment
from servers.origin import Origin, gate, respond
from servers.processes import children, gone
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = pytest.mark.slow


def socket_of(fleet: Fleet) -> Path:
    return fleet.folder / "data" / "valkey" / "valkey.sock"


def named(parent: Running, name: bytes) -> list[int]:
    """The children whose command line has this word."""
    return [pid for pid in children(parent.pid) if name in Path(f"/proc/{pid}/cmdline").read_bytes()]


def workers(parent: Running) -> list[int]:
    """The children that multiprocessing has spawned to run the service."""
    return named(parent, b"spawn_main")


async def test_a_killed_run_starts_again_with_its_queue(folder: Path, sink: Sink, origin: Origin) -> None:
    hold = trio.Event()
    origin.on("/held", gate(hold, respond(200, b"held")))
    async with open_fleet(folder, None, BRIEF) as fleet:
        first = await fleet.start("run")
        ids = await fleet.post_all([job_for(origin.url("/held"), sink.url(), limit=2) for _ in range(5)])
        await origin.seen("/held", 2)
        [server] = children(first.pid)
        await first.kill()
        assert await gone(server)

        again = await fleet.start("run")
        assert (await fleet.client.get("/health/ready")).status_code == 200
        assert [(await fleet.job(job_id))["id"] for job_id in ids] == ids
        hold.set()
        await sink.heard_of(*ids)
        await again.event("callback.delivered", count=5)
        [server] = children(again.pid)
        with History(fleet, sink, url=f"unix://{socket_of(fleet)}") as history:
            assert history.check()["succeeded"] == 5
        await again.stop()
        assert await gone(server)
        assert not socket_of(fleet).exists()


async def test_a_second_run_on_the_same_folder_is_refused(folder: Path) -> None:
    async with open_fleet(folder, None) as fleet:
        first = await fleet.start("run")
        second = await fleet.start("run", ready=False)
        assert await second.wait() == 2
        assert second.noise == [f"downloader: data_dir: {folder / 'data'} is in use by another instance"]
        assert second.log == []
        assert (await fleet.client.get("/hb")).status_code == 200
        await first.stop()


async def test_h24_a_name_that_is_not_loopback_s_is_refused(folder: Path) -> None:
    async with open_fleet(folder, None) as fleet:
        run = await fleet.start("run")
        answer = await fleet.client.get("/hb", headers={"Host": "rebound.example"})
        assert (answer.status_code, answer.json()["code"]) == (421, "misdirected_request")
        assert (await fleet.client.get("/hb", headers={"Host": "localhost"})).status_code == 200
        await run.stop()


@pytest.mark.parametrize("processes", [1, 2])
async def test_ctrl_c_drains(folder: Path, sink: Sink, origin: Origin, processes: int) -> None:
    hold = trio.Event()
    origin.on("/held", gate(hold, respond(200, b"held")))
    async with open_fleet(folder, None) as fleet:
        run = await fleet.start("run", "--processes", str(processes))
        await run.event("service.started", count=processes)
        job_id = await fleet.post(**job_for(origin.url("/held"), sink.url()))
        await origin.seen("/held")
        family = children(run.pid)
        run.send_group(signal.SIGINT)
        await run.event("service.stopping", count=processes)
        hold.set()
        # In flight when the signal came: finished, and told of, before the end.
        [callback] = await sink.heard_of(job_id)
        assert callback.payload["success"]
        assert await run.wait() == 0, run.tail()
        assert run.noise == []
        assert await gone(*family)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.fault)])
async def test_an_embedded_store_that_dies_ends_the_run_with_one_line(folder: Path, processes: int) -> None:
    async with open_fleet(folder, None) as fleet:
        run = await fleet.start("run", "--processes", str(processes))
        await run.event("service.started", count=processes)
        [server] = named(run, b"valkey-server")
        os.kill(server, signal.SIGKILL)
        assert await run.wait() == 1
        assert run.noise == ["downloader: the embedded store ended by itself with status -9"]


async def test_a_second_signal_stops_at_once(folder: Path, sink: Sink, origin: Origin) -> None:
    origin.on("/held", gate(trio.Event(), respond(200)))
    async with open_fleet(folder, None, {"processor": {"grace": 600}, "notifier": {"grace": 600}}) as fleet:
        run = await fleet.start("run")
        job_id = await fleet.post(**job_for(origin.url("/held"), sink.url()))
        await origin.seen("/held")
        [server] = children(run.pid)
        run.send(signal.SIGTERM)
        await run.event("service.stopping")
        run.send(signal.SIGTERM)
        await run.wait()
        assert run.noise == []
        assert await gone(server)
        assert sink.by_job().get(job_id) is None


@pytest.mark.fault
async def test_a_child_that_dies_is_started_again(
    folder: Path, sink: Sink, origin: Origin, server: Valkey
) -> None:
    async with open_fleet(folder, server) as fleet:
        run = await fleet.start("run", "--processes", "2")
        await run.event("service.started", count=2)
        first, second = workers(run)
        os.kill(first, signal.SIGKILL)
        await run.event("service.failed", status=-9)
        # The other one carries on meanwhile.
        await sink.heard_of(await fleet.post(**job_for(origin.url("/bytes/9"), sink.url())))
        await run.event("service.started", count=3)
        family = children(run.pid)
        assert second in family
        ids = await fleet.post_all(
            [job_for(origin.url(f"/bytes/{n}"), sink.url(), limit=4) for n in range(20)]
        )
        await sink.heard_of(*ids)
        await run.stop()
        assert await gone(*family)
        with History(fleet, sink, url=server.url) as history:
            assert history.check()["succeeded"] == 21


@pytest.mark.fault
async def test_children_end_with_a_killed_parent(folder: Path, server: Valkey) -> None:
    async with open_fleet(folder, server) as fleet:
        run = await fleet.start("run", "--processes", "2")
        await run.event("service.started", count=2)
        run.send(signal.SIGKILL)
        # Standard error ends when the last of them has closed it.
        await run.wait()
        assert len(run.events("service.stopped")) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_the_start_leaves_no_server_behind(
    folder: Path, number: signal.Signals
) -> None:
    async with open_fleet(folder, None) as fleet:
        run = await fleet.start("run", ready=False)
        with trio.fail_after(20):
            while not socket_of(fleet).exists():  # noqa: ASYNC110 - nothing tells of this moment
                await trio.sleep(0.002)
        family = children(run.pid)
        run.send(number)
        status = await run.wait()
        assert status in (0, 130), run.tail()
        assert run.noise == []
        assert await gone(*family)


async def test_run_without_any_configuration(folder: Path) -> None:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "downloader", "run", "--port", "0", "--data-dir", str(folder / "d")],
        stderr=-1,
        env=environment({"DOWNLOADER_LOG__FORMAT": "json"}),
        start_new_session=True,
    )
    run = Running("run", process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.read)
        try:
            line = await run.event("api.listening", host="127.0.0.1")
            assert line["page"] == f"http://127.0.0.1:{line['port']}/"
            await run.event("service.started", roles=["api", "notifier", "processor"])
            await run.stop()
        finally:
            process.kill()
