"""A process is killed between the steps by which a file that jobs share is stored or deleted. Fault F39."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import trio

from downloader.signals import FAILPOINT
from servers.fleet import BRIEF, Fleet, job_for, open_fleet
from servers.origin import Origin
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.row("F39"), pytest.mark.timeout(120)]

BASE = "downloader:1:{0}:"


class Jobs:
    """Jobs with equal files, and what the store and the storage have of them."""

    def __init__(self, fleet: Fleet, server: Valkey, origin: Origin) -> None:
        self.fleet, self.url = fleet, origin.url("/bytes/1000")
        self.raw = redis.Redis.from_url(server.url, decode_responses=True)

    async def post(self) -> str:
        job = job_for(self.url, "", limit=2, callback_type="none", callback_dst=None)
        return await self.fleet.post(**job, key="blobs/{sha256}")

    def files(self) -> list[str]:
        return [path.name for path in self.fleet.files.glob("blobs/*")]

    def sharers(self) -> set[str]:
        return {str(one) for name in self.raw.keys(f"{BASE}sharers:*") for one in self.raw.smembers(name)}

    def kept(self) -> set[str]:
        """Jobs that have ended and are not removed."""
        return set(map(str, self.raw.hkeys(f"{BASE}ended")))

    async def purge(self, *job_ids: str) -> None:
        for job_id in job_ids:
            answer = await self.fleet.client.delete(f"/jobs/{job_id}?purge=1")
            assert answer.status_code == 202, answer.text

    async def are_removed(self, *job_ids: str) -> None:
        """A reaper starts, removes these jobs, and ends."""
        reaper = await self.fleet.start("notifier")
        await until(lambda: not self.kept() & set(job_ids))
        await reaper.stop()

    def let_time_pass(self) -> None:
        """The mark of a dead reaper ends, and its jobs are due."""
        for name in self.raw.keys(f"{BASE}deleting:*"):
            self.raw.delete(name)
        for job_id in self.kept():
            self.raw.zadd(f"{BASE}reap_ended", {job_id: 0}, xx=True, lt=True)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a state of other processes, which nothing tells of."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.02)


@pytest.mark.parametrize("point", ["after-share", "after-rename"])
async def test_f39_who_stores_a_shared_file_dies(
    server: Valkey, folder: Path, origin: Origin, point: str
) -> None:
    async with open_fleet(folder, server, BRIEF) as fleet:
        victim = await fleet.start("processor", environ={FAILPOINT: point})
        await fleet.start("api")
        jobs = Jobs(fleet, server, origin)
        one, two = await jobs.post(), await jobs.post()
        assert await victim.wait() == -signal.SIGKILL
        assert len(jobs.files()) == (point == "after-rename")
        await fleet.start("processor")
        await until(lambda: jobs.kept() == {one, two})
        [path] = fleet.files.glob("blobs/*")
        assert jobs.files() == [hashlib.sha256(path.read_bytes()).hexdigest()]
        await jobs.purge(one, two)
        await jobs.are_removed(one, two)
        assert jobs.files() == []
        assert jobs.sharers() == set()
        await fleet.stop_all()


@pytest.mark.parametrize("point", ["before-delete", "after-delete"])
async def test_f39_who_deletes_a_shared_file_dies_and_another_job_wants_it(
    server: Valkey, folder: Path, origin: Origin, point: str
) -> None:
    async with open_fleet(folder, server, BRIEF) as fleet:
        await fleet.start_all("processor", "api")
        jobs = Jobs(fleet, server, origin)
        one, two = await jobs.post(), await jobs.post()
        await until(lambda: jobs.kept() == {one, two})
        stored = jobs.files()
        await jobs.purge(one, two)
        victim = await fleet.start("notifier", environ={FAILPOINT: point}, ready=False)
        assert await victim.wait() == -signal.SIGKILL
        assert jobs.files() == (stored if point == "before-delete" else [])
        late = await jobs.post()
        await until(lambda: late in jobs.sharers())
        assert late not in jobs.kept()
        jobs.let_time_pass()
        await until(lambda: late in jobs.kept())
        await jobs.are_removed(one, two)
        assert jobs.files() == stored
        assert jobs.sharers() == {late}
        await jobs.purge(late)
        await jobs.are_removed(late)
        assert jobs.files() == []
        assert jobs.sharers() == set()
        await fleet.stop_all()
