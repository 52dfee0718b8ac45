"""A running service whose disk is filling up, full or read-only. Fault F13."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.fleet import History, Tables, job_for, open_fleet
from servers.mounts import Disk, tiny_disk
from servers.origin import Origin
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(120)]

DISK_KIB = 48 * 1024
"""A disk on which two files of a third of its size fit, but not one when it is three quarters full."""
AGAIN_S = 60.0
"""After a fault of the disk, a job waits for up to 30 s before it is tried again."""


@pytest.fixture
def disk(folder: Path) -> Iterator[Disk]:
    """A small disk, mounted at the fleet's data folder."""
    with tiny_disk(folder / "data", kib=DISK_KIB) as mounted:
        yield mounted


@pytest.mark.row("F13")
async def test_f13_leasing_pauses_while_the_disk_is_too_full(
    server: Valkey, folder: Path, disk: Disk, sink: Sink, origin: Origin
) -> None:
    marks: Tables = {
        "processor": {"disk_high": 60, "disk_low": 40},
        "processor.filestorage": {"type": "filesystem", "rootdir": str(folder / "data/files")},
    }
    async with open_fleet(folder, server, marks) as fleet:
        processor, _, _ = await fleet.start_all("processor", "notifier", "api")

        async def one_job() -> None:
            await sink.heard_of(await fleet.post(**job_for(origin.url("/bytes/1"), sink.url())))

        await one_job()
        filler = disk.fill(0.7)
        await processor.event("disk.full")  # it checks the disk regularly, also without a job
        elsewhere: Tables = {"processor": {"storage_dir": str(folder / "spool"), "disk_high": 100}}
        other = await fleet.start("processor", tables=elsewhere)
        # Each of these jobs wakes both processors; only the other one may lease it.
        for _ in range(10):
            await one_job()
        assert len(processor.events("job.succeeded")) == 1
        filler.unlink()
        await processor.event("disk.resumed")
        await other.stop()
        await one_job()
        await fleet.stop_all()
        assert fleet.all_events("job.released") == []
        with History(fleet, sink, url=server.url) as history:
            assert history.check()["succeeded"] == 12


@pytest.mark.row("F13")
async def test_f13_a_disk_that_takes_nothing_uses_up_no_attempt(
    server: Valkey, folder: Path, disk: Disk, sink: Sink, origin: Origin
) -> None:
    async with open_fleet(folder, server) as fleet:
        processor, _, _ = await fleet.start_all("processor", "notifier", "api")
        url = origin.url(f"/bytes/{disk.size_bytes // 3}")
        ids = []

        async def meets(fault: str) -> None:
            ids.append(await fleet.post(**job_for(url, sink.url(), group=fault, max_retries=0)))
            released = await processor.event("job.released", job_id=ids[-1])
            assert (released["code"], fault in released["error"]) == ("storage", True), released

        # The file does not fit, but the disk is not so full that leasing pauses.
        filler = disk.fill(0.75)
        await meets("No space left")
        filler.unlink()
        disk.remount("ro")
        await meets("Read-only")
        disk.remount("rw")
        for callback in await sink.heard_of(*ids, seconds=AGAIN_S):
            assert (callback.payload["success"], callback.payload["attempts"]) == (True, 1)
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            assert history.check()["succeeded"] == 2
