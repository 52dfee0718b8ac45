"""`run --processes`: failed children do not end the others, hanging children do not keep a failed parent."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from downloader.store import KILLED_S, STOP_S
from servers.fleet import job_for, open_fleet
from servers.origin import Origin
from servers.sink import Sink
from servers.valkey import Valkey, command

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(120)]

GRACE_S = 1.0


def workers(parent: int) -> list[int]:
    """The process ids of the children that run the service."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    pids = [int(pid) for task in tasks for pid in task.read_text().split()]
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.row("F9")
async def test_a_child_that_cannot_start_while_the_store_is_away_is_started_again(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    async with open_fleet(folder, server) as fleet:
        run = await fleet.start("run", "--processes", "2")
        await run.event("service.started", count=2)
        first = workers(run.pid)[0]
        server.kill()
        os.kill(first, signal.SIGKILL)
        # The new child cannot reach the store and ends; the parent and the other child do not end.
        await run.event("service.failed", status=1)
        await trio.to_thread.run_sync(server.start)
        await run.event("service.started", count=3)
        await sink.heard_of(await fleet.post(**job_for(origin.url("/bytes/9"), sink.url())))
        await run.stop()


@pytest.mark.row("F35")
async def test_f35_a_child_that_hangs_does_not_keep_a_parent_whose_store_has_died(folder: Path) -> None:
    tables = {"processor": {"grace": GRACE_S}, "notifier": {"grace": GRACE_S}}
    async with open_fleet(folder, None, tables) as fleet:
        run = await fleet.start("run", "--processes", "2")
        await run.event("service.started", count=2)
        child, _ = workers(run.pid)
        os.kill(child, signal.SIGSTOP)
        command(str(folder / "data" / "valkey" / "valkey.sock"), "SHUTDOWN", "NOSAVE")
        with trio.fail_after(GRACE_S + STOP_S + KILLED_S + 5):
            assert await run.process.wait() != 0
