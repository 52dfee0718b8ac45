"""Breaks a real fleet under load, by a schedule made from a seed, and then checks every promise."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import redis
import trio

from chaos.history import History, judge
from chaos.job_groups import JobGroups
from chaos.load import Load
from chaos.reading import (
    look_at_group,
    read_fleet,
    read_groups,
    read_keys,
    read_load,
    read_records,
)
from chaos.report import Report
from chaos.schedule import STORE, Fault, Kind, make_schedule
from chaos.stores import Stores, open_stores
from servers.fault_proxy import FaultProxy, open_fault_proxy
from servers.fleet import BRIEF, GRACE_S, SLACK_S, SWEEP_S, Fleet, Running, merged, open_fleet
from servers.origin import open_origin
from servers.sink import open_sink

LATE_S = SWEEP_S + SLACK_S
"""How long after the end of a lease another instance must have the task."""

SETTLE_S = 60.0
"""How long after the faults no further job or group of jobs may end before the rest is given up."""

STOP_S = GRACE_S + 10.0
"""A stop takes at most the grace period; the rest is for a busy machine."""

_LOOK_S = 0.2
_RESTART_S = 0.2
_LOG_S = 5.0
"""For the rest of the log of a process that has ended."""

_MARK_S = 60.0
"""How long a mark on a shared file lasts here, instead of four minutes: longer than any process is frozen."""

_START_S = 600.0
"""Until all members work: more than twenty may start at once, on a busy machine."""

TABLES: dict[str, dict[str, Any]] = {
    "redis": {"timeout": 1.0},
    # Fewer than the limits allow together, so that one process alone cannot take all downloads.
    "processor": {"concurrency": 8, "download_url": "http://files.test"},
    # Many quick retries: the receiver never fails for long, but this machine may be slow.
    "notifier": {"retry_schedule": [0.2] * 20, "concurrency": 16},
}


@dataclass
class Member:
    """One place in the fleet, with the process that runs there now. A process that ends is replaced."""

    name: str
    role: str
    arguments: tuple[str, ...]
    proxy: FaultProxy
    running: Running | None = None
    frozen: bool = False
    meant: bool = False
    """Whether the process ends because of a fault that we caused."""
    pause_s: float = _RESTART_S

    @property
    def works(self) -> bool:
        """Whether the member has started, is not frozen, and can reach the store."""
        return (
            self.running is not None
            and bool(self.running.events("service.started"))
            and not (self.frozen or self.proxy.black_hole)
        )

    def ports(self) -> list[int]:
        """Where the member's API listens."""
        return sorted({line["port"] for line in self.running.events("api.listening")}) if self.running else []

    def children(self) -> list[int]:
        """The children that run the service, if this is a `run --processes`."""
        if self.running is None:
            return []
        with suppress(OSError):
            tasks = Path(f"/proc/{self.running.pid}/task").glob("*/children")
            pids = [int(word) for task in tasks for word in task.read_text().split()]
            return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return []


@dataclass
class Chaos:
    """One run."""

    stores: Stores
    fleet: Fleet
    load: Load
    members: dict[str, Member]
    say: Callable[[str], None]
    history: History
    done: Counter[str] = field(default_factory=Counter)
    store_up: bool = True
    over: bool = False
    """No member is to be started again."""
    watching: bool = True
    late: dict[str, float] = field(default_factory=dict)
    """By lease: for how many seconds after its end no instance took its task, although one could have."""
    resumed_s: list[float] = field(default_factory=list)
    """For each outage of the store: seconds from when it was back until the next callback arrived."""
    starting: trio.Lock = field(default_factory=trio.Lock)
    breaking_store: trio.Lock = field(default_factory=trio.Lock)
    """Allows one fault of the store at a time: a kill would end a start that another fault waits for."""

    async def keep(self, member: Member) -> None:
        """Start the member, and start the member again after each end."""
        while not self.over:
            tables = {"redis": self.stores.settings(member.proxy)}
            async with self.starting:  # the fleet numbers its processes
                member.meant = False
                running = await self.fleet.start(member.role, *member.arguments, tables=tables, ready=False)
            member.running = running
            status = await running.process.wait()
            member.running, member.frozen = None, False
            with trio.move_on_after(_LOG_S):
                await running.ended.wait()
            # A process that starts while its store does not answer ends with this message, and so does a
            # `run` that starts a child then.
            refused = any("cannot reach the store" in line for line in running.noise)
            if not any((member.meant, self.over, refused)):
                self.history.complaints.append(f"{running.name} ended with {status}: {running.tail()}")
            await trio.sleep(member.pause_s)
            member.pause_s = _RESTART_S

    async def play(self, schedule: Iterable[Fault]) -> None:
        """Carry out each fault at the planned time; returns when all faults are over."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for fault in schedule:
                await trio.sleep_until(began + fault.at_s)
                nursery.start_soon(self._carry_out, fault)

    async def _carry_out(self, fault: Fault) -> None:
        if fault.target == STORE:
            async with self.breaking_store:
                await self._to_store(fault)
            if fault.kind is not Kind.FUNCTION_FLUSH:
                await self._resume()
        else:
            member = self.members[fault.target]
            if member.running is None:
                self.say(f"{fault}: not there")
                return
            await self._to_member(fault, member, member.running)
        self.done[fault.kind] += 1

    async def _to_store(self, fault: Fault) -> None:
        node = random.Random(fault.at_s).choice(self.stores.primaries)
        if fault.kind is Kind.FUNCTION_FLUSH:
            with suppress(OSError):
                await trio.to_thread.run_sync(node.command, "FUNCTION", "FLUSH")
            return
        self.store_up = False
        match fault.kind:
            case Kind.STORE_KILL:
                if not self.stores.clustered:
                    self.history.killed_s.append(time.time())
                node.kill()
                await trio.sleep(fault.for_s)
                await trio.to_thread.run_sync(self.stores.start, node)
            case Kind.STORE_MOVE:
                await trio.to_thread.run_sync(self.stores.move)
                # Open connections still lead to the old primary, which answers READONLY.
                for member in self.members.values():
                    member.proxy.target = self.stores.primaries[0].socket
            case _:
                node.freeze()
                await trio.sleep(fault.for_s)
                node.thaw()
        self.store_up = True

    async def _resume(self) -> None:
        """Measure the time until the next callback arrives."""
        began, before = time.monotonic(), len(self.load.sink.received)
        with suppress(trio.TooSlowError):
            await self.load.sink.until(lambda: len(self.load.sink.received) > before, seconds=SETTLE_S)
        self.resumed_s.append(time.monotonic() - began)

    async def _to_member(self, fault: Fault, member: Member, running: Running) -> None:
        proxy = member.proxy
        match fault.kind:
            case Kind.KILL:
                member.meant, member.pause_s = True, fault.for_s
                _signal(running, signal.SIGKILL)
            case Kind.KILL_CHILD:
                if pids := member.children():
                    with suppress(ProcessLookupError):
                        os.kill(pids[0], signal.SIGKILL)
            case Kind.FREEZE:
                member.frozen = True
                _signal(running, signal.SIGSTOP)
                await trio.sleep(fault.for_s)
                _signal(running, signal.SIGCONT)
                member.frozen = False
            case Kind.STOP:
                member.meant, member.pause_s = True, fault.for_s
                await self.stop_member(running)
            case Kind.CUT:
                proxy.black_hole = True
                await trio.sleep(fault.for_s)
                proxy.heal()
            case Kind.DELAY:
                proxy.delay_s = 0.1
                await trio.sleep(fault.for_s)
                proxy.delay_s = 0.0
            case Kind.RESET:
                proxy.reset_all()
            case Kind.LOSE:
                rng = random.Random(fault.at_s)
                proxy.lose_reply_to = lambda _: rng.random() < 0.05
                await trio.sleep(fault.for_s)
                proxy.lose_reply_to = lambda _: False
            case _:
                raise AssertionError(fault)

    async def stop_member(self, running: Running) -> None:
        """Send SIGTERM; the process must end within the grace period, whatever else is broken."""
        with suppress(ProcessLookupError):
            running.send(signal.SIGTERM)
        with trio.move_on_after(STOP_S):
            await running.process.wait()
            return
        self.history.complaints.append(
            f"{running.name} still ran {STOP_S:g} s after SIGTERM: {running.tail()}"
        )
        _signal(running, signal.SIGKILL)

    async def watch_leases(self) -> None:
        """Measure how long ended leases stay while some instance could sweep the leases."""
        able_since: dict[str, float] = {}
        roles = {"download": ("processor", "run"), "callback": ("notifier", "run")}
        while self.watching:
            await trio.sleep(_LOOK_S)
            for kind, able in roles.items():
                if self.store_up and any(m.works and m.role in able for m in self.members.values()):
                    able_since.setdefault(kind, time.monotonic())
                else:
                    able_since.pop(kind, None)
            with suppress(redis.RedisError):
                for kind, lease, seconds in await trio.to_thread.run_sync(self.stores.overdue):
                    since = able_since.get(kind)
                    if since is not None:
                        late_s = min(seconds, time.monotonic() - since)
                        self.late[lease] = max(late_s, self.late.get(lease, 0.0))

    async def end_marks(self) -> None:
        """End the marks of dead reapers on shared files, which would last for longer than most runs."""
        while True:
            await trio.sleep(_MARK_S / 10)
            with suppress(redis.RedisError):
                await trio.to_thread.run_sync(self.stores.end_marks, _MARK_S)

    async def settle(self) -> None:
        """Wait until all tasks in the store have ended, and all groups of jobs are complete."""
        left: set[str] = set(self.history.job_groups)
        with trio.move_on_after(SETTLE_S) as scope:
            async with httpx2.AsyncClient(timeout=5, trust_env=False) as client:
                received = 0
                while left or (await trio.to_thread.run_sync(self.stores.unfinished)) > 0:
                    for name in list(left):
                        await _until(lambda: bool(self.apis()))
                        record = await look_at_group(client, self.apis()[0], name)
                        if record is not None and record.callback in ("succeeded", "failed"):
                            left.discard(name)
                    if len(self.load.sink.received) > received:
                        received = len(self.load.sink.received)
                        scope.deadline = trio.current_time() + SETTLE_S
                    await trio.sleep(_LOOK_S)

    def apis(self) -> list[int]:
        """The ports of the APIs that should answer now."""
        return _ports(self.members)

    def read_rest(self) -> None:
        """Read what must be read after all processes have ended."""
        with self.stores.clients() as clients:
            for client in clients:
                read_keys(self.history, client)
        read_fleet(self.history, self.fleet)
        read_load(self.history, self.load, self.fleet)
        self.history.late, self.history.late_s = list(self.late.items()), LATE_S


async def _until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await trio.sleep(_LOOK_S)


def _ports(members: Mapping[str, Member]) -> list[int]:
    return [port for member in members.values() if member.works for port in member.ports()]


def _signal(running: Running, number: signal.Signals) -> None:
    """Send a signal to the process and the children."""
    with suppress(ProcessLookupError):
        running.send_group(number)


async def run_chaos(
    folder: Path,
    *,
    seed: int,
    seconds: float,
    say: Callable[[str], None],
    pace_s: float = 1.2,
    processors: int = 2,
    clustered: bool = False,
) -> Report:
    """Break a fleet for `seconds`, let the fleet recover, stop the fleet, and check every promise.

    The fleet has an API, processors, a notifier, and a `run --processes 2` (two children with all roles),
    on a store whose primary changes, or (`clustered`) on a Cluster.
    """
    layout = {
        "api": ("api", ()),
        **{f"processor-{number}": ("processor", ()) for number in range(processors)},
        "notifier": ("notifier", ()),
        "run": ("run", ("--processes", "2")),
    }
    schedule = make_schedule(
        seed,
        seconds=seconds,
        members={name: bool(more) for name, (_, more) in layout.items()},
        pace_s=pace_s,
        with_links=not clustered,
    )
    say(f"seed {seed}: {len(schedule)} faults")
    for fault in schedule:
        say(str(fault))
    async with AsyncExitStack() as stack:
        stores = stack.enter_context(open_stores(clustered=clustered))
        origin = await stack.enter_async_context(open_origin())
        origin.record = False
        sink = await stack.enter_async_context(open_sink())
        members = {
            name: Member(
                name,
                role,
                more,
                await stack.enter_async_context(open_fault_proxy(stores.primaries[0].socket)),
            )
            for name, (role, more) in layout.items()
        }
        fleet = await stack.enter_async_context(open_fleet(folder, None, merged(BRIEF, TABLES)))
        chaos = Chaos(
            stores,
            fleet,
            Load(origin, sink, random.Random(seed), partial(_ports, members), files=fleet.files),
            members,
            say,
            History(),
        )
        await _run(chaos, schedule)
        chaos.read_rest()
        for line in chaos.load.slots.exceeded:
            say(line)
    return Report(
        seed=seed,
        seconds=seconds,
        schedule=schedule,
        done=chaos.done,
        history=chaos.history,
        violations=judge(chaos.history),
        repeated_gets=chaos.load.repeated_gets(),
        repeated_deliveries=_repeated(chaos),
        refused=chaos.load.refused,
        deleted=chaos.load.deleted,
        worst_s=max(chaos.late.values(), default=0.0),
        resumed_s=max(chaos.resumed_s, default=0.0),
    )


def _repeated(chaos: Chaos) -> int:
    """Callbacks that were delivered more often than needed; `/flaky/1` needs two deliveries."""
    return sum(
        max(0, len(received) - (2 if received[0].path.startswith("/flaky") else 1))
        for job_id, received in chaos.load.sink.by_job().items()
        if job_id
    )


async def _run(chaos: Chaos, schedule: list[Fault]) -> None:
    """Start the fleet, break the fleet, wait for the recovery, read what is left, and stop the fleet."""
    async with trio.open_nursery() as keeping:
        for member in chaos.members.values():
            keeping.start_soon(chaos.keep, member)
        with trio.fail_after(_START_S):
            await _until(lambda: all(member.works for member in chaos.members.values()))
        keeping.start_soon(chaos.watch_leases)
        keeping.start_soon(chaos.end_marks)
        async with trio.open_nursery() as loading:
            loading.start_soon(chaos.load.run)
            loading.start_soon(JobGroups(chaos.load, chaos.history.job_groups).run)
            await chaos.play(schedule)
            chaos.load.stopping = True
            loading.cancel_scope.deadline = trio.current_time() + _START_S
        with trio.move_on_after(_START_S):
            await _until(lambda: all(member.works for member in chaos.members.values()))
        await chaos.settle()
        await _until(lambda: bool(chaos.apis()))
        with chaos.stores.clients() as clients:
            for client in clients:
                await read_records(chaos.history, client, chaos.apis()[0])
        await read_groups(chaos.history, chaos.history.job_groups, chaos.apis()[0])
        chaos.watching, chaos.over = False, True
        # The start of a processor deletes the spool files of those that were killed.
        own = {"redis": chaos.stores.settings(chaos.members["api"].proxy)}
        fresh = await chaos.fleet.start("processor", tables=own)
        async with trio.open_nursery() as stopping:
            stopping.start_soon(chaos.stop_member, fresh)
            for member in chaos.members.values():
                if member.running is not None:
                    stopping.start_soon(chaos.stop_member, member.running)
        keeping.cancel_scope.cancel()
