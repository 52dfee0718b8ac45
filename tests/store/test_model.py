"""Hypothesis drives the store against a small model: any sequence of transitions keeps the promises.

The server is real; its clock is not, so that a step can move it. After every step all that people and
instances can see is compared with what the model expects.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from downloader.config import RedisSettings
from downloader.model import Kind, State
from downloader.store import asyncio_loop, open_client
from downloader.wire import moment
from servers import store_invariants
from servers.raw_store import RawStore
from servers.store_clock import clocked_library
from servers.store_driver import Driver
from servers.store_model import GROUP_KEPT_MS, JOB_GROUPS, LEASE_MS, OWNERS, TOKENS
from servers.store_steps import ACTIONS, steps
from servers.valkey import Valkey

MORE_EXAMPLES = os.environ.get("DOWNLOADER_TEST_EXAMPLES")
"""How many random sequences are tried. Unset: a few, the same for everybody, as CI has little time."""

ENDS = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
"""States of a download that a group of jobs counts."""

FRUITFUL = 4
"""How often at the least each kind of step has to have had something to do, in all examples together."""


@dataclass(kw_only=True)
class Model(Driver):
    """Compares everything that clients see with what the model expects."""

    async def check(self) -> None:
        """Every job is where it has to be, whatever has happened."""
        store_invariants.check(store_invariants.snapshot(self.raw, self.now_ms))
        self.forget_empty_queues()
        for job_id, job in self.jobs.items():
            view = await self.store.get(job_id)
            assert view is not None
            shown = {Kind.DOWNLOAD: view.download} | ({Kind.CALLBACK: view.callback} if view.callback else {})
            assert {
                kind: (task.state, task.attempts, task.deliveries, task.crashes)
                for kind, task in shown.items()
            } == {
                kind: (task.state, task.attempts, task.deliveries, task.crashes)
                for kind, task in job.tasks.items()
            }
        if self.removed:
            assert await self.store.get(self.removed[-1]) is None
        await self.check_job_groups()
        usage = self.raw.command("HGETALL", self.raw.key("usage", "alice"))
        counted = self.counted()
        assert int(usage.get("jobs", 0)) == len(counted)
        assert (int(usage.get("bytes", 0)) > 0) is bool(counted)
        names = [name for kind, name in self.limits if kind is Kind.DOWNLOAD]
        pending = {name: len(self.due(Kind.DOWNLOAD, name)) for name in names}
        sizes = await self.store.aggregation_sizes()
        working = {name for name in names if pending[name] or self.running(Kind.DOWNLOAD, name)}
        assert sizes == {name: pending[name] for name in working}
        assert int(usage.get("aggregations", 0)) == sum(TOKENS[name] == "alice" for name in working)
        load = await self.store.load(9)
        assert (load.total, load.downloads, load.callbacks) == (
            len(working),
            self.running(Kind.DOWNLOAD),
            self.running(Kind.CALLBACK),
        )
        assert {
            one.aggr_id: (one.pending, one.in_flight, one.limit, one.cooling_until, one.paused)
            for one in load.aggregations
        } == {
            name: (
                pending[name],
                self.running(Kind.DOWNLOAD, name),
                self.limits[Kind.DOWNLOAD, name],
                moment(pace.cooling) if (pace := self.pace[name]).cooling > self.now_ms else None,
                pace.paused,
            )
            for name in names
        }

    async def check_job_groups(self) -> None:
        """A group is complete once it is sealed and its jobs have ended, and not before."""
        for name in JOB_GROUPS:
            view, group = await self.store.group(name), self.job_groups.get(name)
            if group is None:
                assert view is None
                continue
            assert view is not None
            assert (view.state, view.jobs, view.unfinished) == (
                group.state,
                group.jobs,
                len(group.unfinished),
            )
            ended = (view.succeeded, view.failed, view.cancelled)
            assert min(ended) >= 0
            assert ended == tuple(group.ended[state] for state in ENDS)
            assert view.callback_id == (group.callback.id if group.callback and group.complete else "")

    async def drain(self) -> None:
        """Do all the work that is left; nothing may be stuck."""
        await self.move_clock(10 * LEASE_MS)
        for kind, name in list(self.limits):
            if kind is Kind.DOWNLOAD:
                await self.adjust(name, {"paused": False, "limit": None, "rate": None, "delay": None})
        for kind in Kind:
            await self.sweep(kind)
        for owner in OWNERS:
            self.restart_instance(owner)
        for name in JOB_GROUPS:
            await self.seal(name)
        await self.work_off()
        await self.check()
        await self.move_clock(10 * LEASE_MS)
        await self.reap(dies=False)
        assert self.jobs == {}
        await self.move_clock(GROUP_KEPT_MS)
        await self.reap(dies=False)

    async def work_off(self) -> None:
        """End all jobs."""
        for _ in range(2 * len(self.jobs) + 2):
            if all(job.reap_ms is not None for job in self.jobs.values()):
                break
            for kind in Kind:
                await self.lease(kind, "x", 9)
                for lease, _ in self.current():
                    await self.settle_one(lease, "x", "succeeded")
            if self.hosts:  # one start at the slow host, and what else waits for a host tries again
                await self.move_clock(1000 * 60)

    async def leftovers(self) -> set[str]:
        """Keys without a time to live."""
        keys = await self.client.command("KEYS", f"{self.base}*")
        return {key.removeprefix(self.base) for key in keys if await self.client.command("PTTL", key) == -1}


async def play(
    server: Valkey,
    script: list[tuple[Any, ...]],
    hosts: bool,  # noqa: FBT001  # drawn
    prefix: str,
    done: Counter[str],
) -> None:
    redis = RedisSettings(url=server.url, key_prefix=prefix, timeout=60)  # for a busy machine
    raw = RawStore(redis)
    async with asyncio_loop(), open_client(redis, library=clocked_library()) as client:
        model = Model(server=server, client=client, raw=raw, done=done, hosts=hosts)
        try:
            for name, *arguments in script:
                await getattr(model, name)(*arguments)
                await model.check()
            await model.drain()
        except Exception as error:
            error.add_note(f"hosts={hosts}, after the steps {script}")
            raise
        assert await model.leftovers() == {"layout", "clock"}


@pytest.mark.slow
@pytest.mark.timeout(480 + 30 * int(MORE_EXAMPLES or 0))
@pytest.mark.row("F4", "F7")
def test_any_sequence_of_transitions_keeps_the_promises() -> None:
    done: Counter[str] = Counter()
    prefixes = itertools.count()

    @settings(
        max_examples=int(MORE_EXAMPLES or 18),
        deadline=None,  # a store over a socket; the number of examples bounds it
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=MORE_EXAMPLES is None,
        phases=[Phase.generate],  # to shrink an example takes minutes: each try is a run on the server
    )
    @given(script=st.lists(steps, min_size=20, max_size=50), hosts=st.booleans())
    def run(script: list[tuple[Any, ...]], *, hosts: bool) -> None:
        trio.run(play, server, script, hosts, f"m{next(prefixes)}", done)

    # With `everysec` a write may wait for a slow disk, and a killed server would lose it.
    with Valkey("--appendonly", "yes", "--appendfsync", "no") as server:
        run()
    assert {name for name in ACTIONS if done[name] < FRUITFUL} == set(), "these hardly ever do anything"
