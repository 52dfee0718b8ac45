"""Takes the steps of a store's test in a real store and in the model, and compares each answer."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import trio

from downloader.errors import StoreUnavailable
from downloader.model import Kind, Lease, State
from downloader.store import (
    Accepted,
    Changed,
    JobStore,
    LeaseRequests,
    Settled,
    Settlement,
    Shares,
    StoreClient,
    Submission,
)
from downloader.store.codec import fields
from downloader.wire import AggregationChanges
from servers.jobs import handed_back, spec_for
from servers.raw_store import RawStore
from servers.store_clock import StoreClock
from servers.store_model import (
    DELAY_MS,
    HOLD_MS,
    HOSTS,
    JOB_GROUPS,
    KEEP_MS,
    LEASE_MS,
    OWNERS,
    PLANS,
    QUOTA,
    TOKENS,
    Expected,
    Job,
    JobGroup,
    Task,
)
from servers.store_steps import DELIVERIES, OUTCOMES, Deaf
from servers.valkey import Valkey

SUSPECT_CRASHES = 2
"""What has made so many workers die goes behind the others."""

ANY = Shares(suspects=-99)
"""The model does not know that an instance gets one suspect at a time."""


@dataclass(kw_only=True)
class Driver(Expected):
    """Takes each step in the store and in the model."""

    server: Valkey
    client: StoreClient
    raw: RawStore
    done: Counter[str]
    """How often each step had something to do."""

    def __post_init__(self) -> None:
        self.clock = StoreClock(self.raw)
        self.now_ms = self.clock.now_ms
        self.stores = {owner: self.open() for owner in OWNERS}
        self.requests: defaultdict[tuple[Kind, str], LeaseRequests] = defaultdict(LeaseRequests)
        self.base = self.client.keys.base(0)

    def open(self) -> JobStore:
        return JobStore(self.client, hosts=HOSTS if self.hosts else None)

    @property
    def store(self) -> JobStore:
        return self.stores["x"]

    async def held(self, kind: Kind) -> list[tuple[Lease, str]]:
        """The leases of a kind under which tasks run; if there is none, one is made, so that steps count."""
        for _ in range(2):  # the first call may repeat one whose answer was lost
            if found := [each for each in self.current() if each[0].kind is kind]:
                return found
            await self.fill(kind)
            await self.lease(kind, "x", 2)
        return []

    async def fill(self, kind: Kind) -> None:
        """Make sure that a task waits."""
        if kind is Kind.DOWNLOAD:
            kinds = len(self.jobs) % 4  # with a priority, in a group of jobs, both, neither
            [job_group, *_] = [name for name in JOB_GROUPS if kinds // 2 and self.takes_jobs(name)] or [""]
            await self.submit("a", 3, 3 * (kinds % 2), job_group)
        elif held := await self.held(Kind.DOWNLOAD):
            await self.settle_one(*held[0], "failed")

    def takes_jobs(self, job_group: str) -> bool:
        group = self.job_groups.get(job_group)
        return group is None or not group.sealed

    async def late(self, kind: Kind) -> list[tuple[Lease, str]]:
        """Leases of a kind that were settled or have ended."""
        current = self.current()
        return [each for each in self.leases if each[0].kind is kind and each not in current]

    # Steps

    async def move_clock(self, by_ms: int) -> None:
        self.clock.move(by_ms / 1000)
        self.now_ms = self.clock.now_ms
        self.done["move_clock"] += 1

    async def restart(self) -> None:
        """The server dies, and comes back with the append-only file."""
        self.server.kill()
        await trio.to_thread.run_sync(self.server.start)
        self.done["restart"] += bool(self.jobs)

    async def crash(self, kind: Kind, owner: str) -> None:
        """An instance starts anew: it does not know what it was given, and the time of that runs out."""
        held = await self.held(kind)
        self.done["crash"] += bool(held)
        self.restart_instance(owner)
        await self.move_clock(LEASE_MS)
        await self.sweep(kind)

    def restart_instance(self, owner: str) -> None:
        self.stores[owner] = self.open()
        for kind in Kind:
            self.unheard.pop((kind, owner), None)
            self.requests.pop((kind, owner), None)

    async def submit(
        self, aggr_id: str, limit: int, priority: int = 0, job_group: str = "", host: str = "one.test"
    ) -> None:
        token = TOKENS[aggr_id]
        quota = {"jobs": QUOTA} if token == "alice" else None
        spec = spec_for(
            self.store,
            aggr_id,
            aggr_limit=limit,
            priority=priority,
            token=token,
            counted=quota is not None,
            group=job_group,
            url=f"http://{host}/file",
        )
        expected = Accepted.NEW
        if quota is not None and len(self.counted()) >= QUOTA:
            expected = Accepted.OVER_QUOTA
        if not self.takes_jobs(job_group):
            expected = Accepted.SEALED
        for _ in range(2):  # the second is a repetition
            [(accepted, _)] = await self.store.submit([Submission(spec=spec, quota=quota)])
            assert accepted is expected
        if expected is not Accepted.NEW:
            return
        if job_group:
            group = self.job_groups.setdefault(job_group, JobGroup())
            group.jobs += 1
            group.unfinished.add(spec.id)
        self.jobs[spec.id] = Job(spec, {Kind.DOWNLOAD: Task(aggr_id, self.now_ms, priority)})
        self.pace[aggr_id].asked = limit
        if not self.pace[aggr_id].adjusted:
            self.limits[Kind.DOWNLOAD, aggr_id] = limit
        self.done["submit"] += 1

    async def lease(self, kind: Kind, owner: str, count: int) -> None:
        requests = self.requests[kind, owner]
        batch = await self.stores[owner].lease(
            kind, owner, count, LEASE_MS / 1000, shares=ANY, requests=requests
        )
        asked = count > 0 or (kind, owner) in self.unheard
        self.give(kind, owner, count, [(lease.id, lease.generation) for lease in batch.leases])
        self.unheard.pop((kind, owner), None)
        self.leases += [(lease, owner) for lease in batch.leases]
        assert all(lease.token == TOKENS[lease.spec.aggr_id] for lease in batch.leases)
        if kind is Kind.CALLBACK or not self.hosts:
            assert batch.next_due_s == (self.next_due_s(kind) if asked else None)
        self.done["lease"] += bool(batch.leases)

    async def lose_answer(self, kind: Kind, owner: str, count: int) -> None:
        if (kind, owner) not in self.unheard:
            await self.fill(kind)
        deaf = Deaf(self.client)
        store = JobStore(deaf, hosts=HOSTS if self.hosts else None)  # type: ignore[arg-type]  # as much of a client as is used
        with pytest.raises(StoreUnavailable):
            await store.lease(
                kind, owner, count, LEASE_MS / 1000, shares=ANY, requests=self.requests[kind, owner]
            )
        given = [fields(flat) for flat in fields(deaf.missed)["leases"]]
        missed = [(each["id"], int(each["generation"])) for each in given]
        self.give(kind, owner, count, missed)
        self.unheard[kind, owner] = self.unheard.get((kind, owner)) or missed
        self.done["lose_answer"] += bool(missed)

    async def renew(self, kind: Kind, index: int, late: bool) -> None:  # noqa: FBT001  # drawn
        leases = await (self.late(kind) if late else self.held(kind))
        if not leases:
            return
        lease, owner = leases[index % len(leases)]
        task = self.task_of(lease)
        answer = await self.stores[owner].renew(kind, owner, [lease], LEASE_MS / 1000)
        assert answer == [self.expected(lease, owner)]
        if task is not None and task.held_by(lease, owner):
            task.ends_ms = self.now_ms + LEASE_MS
        self.done["renew"] += 1

    async def settle(self, kind: Kind, index: int, how: str) -> None:
        if held := await self.held(kind):
            await self.settle_one(*held[index % len(held)], how)
            self.done["settle"] += 1

    async def adjust(self, aggr_id: str, changes: dict[str, Any]) -> None:
        """An operator changes an aggregation."""
        self.limits.setdefault((Kind.DOWNLOAD, aggr_id), 1)
        if self.hosts:  # the model does not know when a start is late
            changes = {name: value for name, value in changes.items() if name not in ("rate", "delay")}
        pace = self.pace[aggr_id]
        if not self.running(Kind.DOWNLOAD, aggr_id) and not self.due(Kind.DOWNLOAD, aggr_id):
            pace.asked = 1  # what applies until a job names a limit
        if "limit" in changes:
            pace.adjusted = changes["limit"] is not None
            self.limits[Kind.DOWNLOAD, aggr_id] = changes["limit"] or pace.asked
        for name in ("rate", "delay", "paused"):
            if name in changes:
                setattr(pace, name, changes[name])
        found = await self.store.adjust(aggr_id, cast("AggregationChanges", changes))
        if found is None:
            assert not pace.set_by_operator
            self.forget_empty_queues()
            assert (Kind.DOWNLOAD, aggr_id) not in self.limits, "it has work"
            return
        assert (found.limit, found.rate, found.delay, found.paused) == (
            self.limits[Kind.DOWNLOAD, aggr_id],
            pace.rate,
            pace.delay,
            pace.paused,
        )
        self.done["adjust"] += bool(changes)

    async def throttle(self, index: int) -> None:
        """The origin of a download asks for a pause."""
        if held := await self.held(Kind.DOWNLOAD):
            await self.settle_one(*held[index % len(held)], "throttled")
            self.done["throttle"] += 1

    async def settle_one(self, lease: Lease, owner: str, how: str) -> None:
        assert await self.call_settle(lease, owner, how) is Settled.DONE
        self.note_settled(lease, how)
        self.forget_empty_queues()

    async def settle_late(self, kind: Kind, index: int, how: str) -> None:
        """Settle with a lease that has ended or was settled: a repeated call, or a holder that was frozen."""
        if late := await self.late(kind):
            lease, owner = late[index % len(late)]
            expected = self.expected(lease, owner)
            assert await self.call_settle(lease, owner, how) is expected
            task = self.task_of(lease)
            if task is not None and expected is Settled.CANCELLED:
                task.stopping = False
            swept = task is not None and task.swept == lease.generation and not self.jobs[lease.id].has_ended
            if task is not None and how == "release" and swept:
                task.crashes -= 1
                task.swept = 0
            self.done["settle_late"] += 1

    async def settle_anothers(self, kind: Kind, index: int, how: str) -> None:
        """Settle as an instance that does not hold the lease."""
        if held := await self.held(kind):
            lease, owner = held[index % len(held)]
            other = next(name for name in OWNERS if name != owner)
            assert await self.call_settle(lease, other, how) is Settled.LEASE_LOST
            self.done["settle_anothers"] += 1

    async def call_settle(self, lease: Lease, owner: str, how: str) -> Settled:
        if how == "release":
            settlement = handed_back(lease, "why", DELAY_MS / 1000)
        else:
            end = (OUTCOMES if lease.kind is Kind.DOWNLOAD else DELIVERIES)[how]
            settlement = Settlement.of(
                lease,
                replace(end, retry_after_s=DELAY_MS / 1000),
                callback=PLANS[lease.spec.aggr_id],
                keep_s=KEEP_MS / 1000,
            )
        return (await self.stores[owner].settle(owner, [settlement]))[0]

    async def cancel(self, index: int, runs: bool) -> None:  # noqa: FBT001  # drawn
        if runs:
            await self.held(Kind.DOWNLOAD)
        wanted = [
            job_id for job_id, task in self.tasks(Kind.DOWNLOAD) if (task.state is State.RUNNING) is runs
        ]
        ids = [*wanted, *self.jobs]
        if not ids:
            return
        job = self.jobs[ids[index % len(ids)]]
        task = job.tasks[Kind.DOWNLOAD]
        expected = Changed.DONE
        if task.state in (State.SUCCEEDED, State.FAILED):
            expected = Changed.CONFLICT
        assert await self.store.cancel(job.spec, PLANS[job.spec.aggr_id], KEEP_MS / 1000) is expected
        if task.state in (State.PENDING, State.RUNNING):
            task.stopping = task.state is State.RUNNING
            job.short = not task.stopping and PLANS[job.spec.aggr_id] is None
            task.state = State.CANCELLED
            self.note_over(job)
            if task.stopping and job.reap_ms is not None:  # the holder needs the record
                job.reap_ms = max(job.reap_ms, 2 * task.ends_ms - self.now_ms)
            self.done["cancel"] += 1

    async def sweep(self, kind: Kind) -> None:
        over = [
            (job_id, task)
            for job_id, task in self.tasks(kind)
            if task.state is State.RUNNING and task.ends_ms <= self.now_ms
        ]
        assert set(await self.store.sweep(kind)) == {job_id for job_id, _ in over}
        for _, task in over:
            task.crashes += 1
            task.state, task.owner = State.PENDING, ""
            task.due_ms = task.place_ms if task.crashes < SUSPECT_CRASHES else self.now_ms
            task.swept = task.generation
        for task in [*self.orphans, *(task for _, task in self.tasks(Kind.DOWNLOAD))]:
            task.stopping = task.stopping and task.ends_ms > self.now_ms
        self.orphans = [task for task in self.orphans if task.stopping]
        self.done["sweep"] += bool(over)

    async def reap(self, dies: bool) -> None:  # noqa: FBT001  # drawn
        """What is due is given to a reaper, which forgets it or dies before."""
        if self.jobs and all(job.reap_ms is None for job in self.jobs.values()):
            await self.settle(Kind.CALLBACK, 0, "succeeded")
            await self.move_clock(KEEP_MS)
        batch = await self.store.reap(99, HOLD_MS / 1000)
        await self.store.tend_groups(batch.groups)
        due = {
            job_id: job
            for job_id, job in self.jobs.items()
            if job.reap_ms is not None and job.reap_ms <= self.now_ms
        }
        assert {job.spec.id: job.has_file for job in batch.jobs} == {
            job_id: (download := job.tasks[Kind.DOWNLOAD]).state is State.SUCCEEDED
            or download.deliveries > download.attempts
            for job_id, job in due.items()
        }
        for job in due.values():
            job.reaping, job.reap_ms = True, self.now_ms + HOLD_MS
        if not dies:
            await self.forget(list(due))
        self.done["reap"] += bool(due)

    async def remove(self, index: int) -> None:
        """Remove any job: it is removed only if a reaper was given it."""
        if self.jobs:
            job_id = list(self.jobs)[index % len(self.jobs)]
            await self.forget([job_id])
            self.done["remove"] += 1

    async def forget(self, job_ids: list[str]) -> None:
        await self.store.remove(job_ids)
        for job_id in job_ids:
            if self.jobs[job_id].reaping:
                download = self.jobs.pop(job_id).tasks[Kind.DOWNLOAD]
                self.orphans += [download] if download.stopping else []
                self.removed.append(job_id)

    async def purge(self, index: int) -> None:
        """A client wants a job deleted."""
        if all(job.reap_ms is None for job in self.jobs.values()):
            await self.settle(Kind.CALLBACK, index, "failed")
        ended = [job_id for job_id, job in self.jobs.items() if job.reap_ms is not None]
        ids = ended if ended and index % 2 else [*self.jobs, *self.removed]
        if ids:
            job_id = ids[index % len(ids)]
            expected = self.expected_of_purge(job_id)
            assert await self.store.purge(job_id) is expected
            if expected is Changed.DONE:
                self.jobs[job_id].reaping, self.jobs[job_id].reap_ms = True, self.now_ms
                self.done["purge"] += 1

    async def define(self, name: str) -> None:
        """A client sets the callback of a group of jobs; the first id stays."""
        plan = PLANS[name]
        assert plan is not None
        spec = spec_for(self.store, name, token=TOKENS[name])
        await self.store.set_group_callback(spec, plan)
        group = self.job_groups.setdefault(name, JobGroup())
        if not group.complete:
            group.callback = group.callback or spec
            self.done["define"] += 1

    async def seal(self, name: str) -> None:
        group = self.job_groups.setdefault(name, JobGroup())
        self.done["seal"] += bool(group.unfinished)
        group.sealed = True
        self.complete(group)
        view = await self.store.seal_group(name)
        assert view is not None
        assert view.state == group.state

    async def reopen(self, name: str) -> None:
        """A client wants to add jobs to a complete group; any other group stays as it is."""
        if name not in self.job_groups or not self.job_groups[name].unfinished:
            await self.seal(name)
        group, callback_id = self.job_groups[name], self.store.new_id(name)
        view = await self.store.reopen_group(name, callback_id)
        if group.complete:
            group.complete = group.sealed = False
            group.callback = group.callback and replace(group.callback, id=callback_id)
            self.done["reopen"] += 1
        assert view is not None
        assert view.state == group.state

    async def retry(self, index: int, download: bool) -> None:  # noqa: FBT001  # drawn
        kind = Kind.DOWNLOAD if download else Kind.CALLBACK
        if all(task.state is not State.FAILED for _, task in self.tasks(kind)):
            await self.settle(kind, index, "failed")
        failed = [job_id for job_id, task in self.tasks(kind) if task.state is State.FAILED]
        ids = failed if failed and index % 4 else [*self.jobs, *self.removed]
        job_id = ids[index % len(ids)]
        answer = await self.store.retry(job_id, download=download, limit=2)
        assert answer is self.expected_of_retry(job_id, download=download)
        if answer is not Changed.DONE:
            return
        job = self.jobs[job_id]
        self.note_unfinished(job)
        task = job.tasks[kind]
        if download and Kind.CALLBACK in job.tasks:
            job.last_callback = job.tasks.pop(Kind.CALLBACK).generation
        limit = job.spec.aggr_limit if download else 2
        if download and not self.running(kind, task.queue) and not self.due(kind, task.queue):
            pace = self.pace[task.queue]
            pace.asked = limit
            if not pace.adjusted:
                self.limits[kind, task.queue] = limit
        self.limits.setdefault((kind, task.queue), limit)
        task.state, task.due_ms, task.attempts, task.crashes = State.PENDING, self.now_ms, 0, 0
        task.swept = 0
        self.done["retry"] += 1
