"""The real service as separate processes: `python -m downloader ROLE -c FILE`, logs and exit.

A test tells a fleet what to start, waits for log lines (never for time), sends signals, posts jobs through
the real API, and lets `History` judge what is left when all have stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx2
import redis
import trio

from downloader.store import ended
from servers.forked import Forked, start
from servers.origin import Origin
from servers.sink import Sink
from servers.valkey import Valkey, command

Tables = Mapping[str, Mapping[str, Any]]
"""A configuration: tables by dotted name, `""` for the top level."""

START_S = 90.0
"""Imports alone cost a second of CPU, and the machine is shared. Shorter than the tests' own limits, which do
not show a process's log."""

LEASE_S = 4.0
SWEEP_S = LEASE_S / 10
GRACE_S = 8.0
"""An eighth of it is for handing back, less what the exit needs: a second, for a busy machine."""

SLACK_S = 5.0
"""What a busy machine may add: who waits for a poll or for nothing at all takes longer still."""

STOP_S = GRACE_S + SLACK_S
"""Until a process has stopped, whatever it was doing: twice the grace period would be too long."""

QUICK_GRACE_S = 6.0
"""Less than the ten seconds that the API gives a slow client: a stop that waits for those is killed."""

HUNG = (1, -signal.SIGALRM)
"""Exit statuses of a process whose stop hung: ended by the exit timer, or a moment later by the kernel."""

ASIDE_S, ASIDE_MAX_S = 1.0, 5.0
"""How much later callbacks may come, in the middle and at the most, beside a destination that is in trouble:
those that wait for it are held for longer. The numbers themselves are printed."""

RECOVERY_S = LEASE_S + SWEEP_S + SLACK_S
"""From a process's death until another instance has the work."""

DEFAULTS: Tables = {
    "api": {"port": 0},
    "processor": {
        "grace": GRACE_S,
        "stats_interval": 1.0,
        "concurrency": 16,
        "retry_backoff": 0.2,
    },
    "notifier": {
        "grace": GRACE_S,
        "stats_interval": 1.0,
        "retry_schedule": [0.2, 0.3, 0.4],
    },
    "egress.downloads": {"allow": ["127.0.0.0/8"]},
    "egress.callbacks": {"allow": ["127.0.0.0/8"]},
    "log": {"format": "json", "level": "debug"},
    "backends.http": {"timeout": 5.0},
}
"""Short intervals, and all that is logged; held responses wait for slow machines. Leases last as by default,
and the store has as long to answer, so that no machine is too busy for them."""

BRIEF: Tables = {
    "redis": {"timeout": LEASE_S / 2},
    "processor": {"lease": LEASE_S},
    "notifier": {"lease": LEASE_S},
}
"""Leases for tests that wait until one has ended."""

OWN_GRACE_S = 20.0
"""What the service takes without a setting."""

PATIENT: Tables = {"processor": {"grace": OWN_GRACE_S}, "notifier": {"grace": OWN_GRACE_S}}
"""For stops beside much other work."""

QUICK: Tables = {"processor": {"grace": QUICK_GRACE_S}, "notifier": {"grace": QUICK_GRACE_S}}
"""For stops of what has nothing to finish."""


def say(text: str) -> None:
    """Print a measurement, which `pytest -rP` shows."""
    sys.stdout.write(f"{text}\n")


def to_toml(tables: Tables) -> str:
    """A configuration file; keys of `tables` are dotted table names. JSON's values are TOML's."""
    lines = []
    for table in sorted(tables):
        if table:
            lines.append(f"[{table}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in tables[table].items()]
    return "\n".join(lines) + "\n"


def job_for(url: str, callback: str, *, group: str = "a", limit: int = 1, **more: Any) -> dict[str, Any]:
    """A body for `POST /download`."""
    return {
        "aggr_id": group,
        "aggr_limit": limit,
        "url": url,
        "callback_type": "http",
        "callback_dst": callback,
        **more,
    }


@dataclass
class Running:
    """One process of the service."""

    name: str
    process: trio.Process | Forked
    log: list[dict[str, Any]] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    """Lines on standard error that are no JSON: complaints and tracebacks."""
    ended: trio.Event = field(default_factory=trio.Event)
    """Set at the end of standard error."""
    grace_s: float = OWN_GRACE_S
    """The configured grace period."""
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def pid(self) -> int:
        return self.process.pid

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """Log lines of this event with these fields, so far."""
        wanted = {"event": name, **fields}
        return [line for line in self.log if wanted.items() <= line.items()]

    async def event(
        self, name: str, *, count: int = 1, seconds: float = START_S, **fields: Any
    ) -> dict[str, Any]:
        """Wait for the `count`-th such line."""
        with trio.move_on_after(seconds):
            while len(found := self.events(name, **fields)) < count:
                assert not self.ended.is_set(), f"{self.name} ended without {name}: {self.tail()}"
                await self._changed.wait()
            return found[count - 1]
        raise AssertionError(f"{self.name} did not log {name} {fields} in {seconds} s: {self.tail()}")

    def tail(self) -> str:
        """The end of the log."""
        return "\n".join([*self.noise[-20:], *(json.dumps(line) for line in self.log[-20:])])

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def send_group(self, number: signal.Signals) -> None:
        """To the process group, as a terminal does with Ctrl-C."""
        os.killpg(self.pid, number)

    async def wait(self, seconds: float = STOP_S) -> int:
        """The exit status, and the whole log."""
        try:
            with trio.fail_after(seconds):
                status = await self.process.wait()
                await self.ended.wait()
        except trio.TooSlowError:
            raise AssertionError(f"{self.name} still runs after {seconds} s: {self.tail()}") from None
        return status

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self.wait()

    async def stop(self, *, status: int = 0) -> float:
        """Send SIGTERM and wait for the end within the grace period; returns the seconds.

        Measured here too, as the timer that ends a process after its grace period is what is tested.
        """
        began = time.monotonic()
        self.send(signal.SIGTERM)
        assert await self.wait(self.grace_s + SLACK_S) == status, self.tail()
        assert self.noise == [], self.noise
        return time.monotonic() - began

    async def read(self) -> None:
        stderr = self.process.stderr
        assert stderr is not None
        rest = b""
        async for chunk in stderr:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                try:
                    self.log.append(json.loads(line))
                except ValueError:
                    self.noise.append(line.decode(errors="replace"))
            self._notify()
        if rest:
            self.noise.append(rest.decode(errors="replace"))
        self.ended.set()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@dataclass
class Fleet:
    """Processes on one store, and a client of the API."""

    folder: Path
    tables: dict[str, dict[str, Any]]
    nursery: trio.Nursery
    running: list[Running] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    client: httpx2.AsyncClient = field(
        default_factory=lambda: httpx2.AsyncClient(
            timeout=20, trust_env=False, limits=httpx2.Limits(max_connections=None)
        )
    )

    @property
    def files(self) -> Path:
        return self.folder / "data" / "files"

    @property
    def spool(self) -> Path:
        return self.folder / "data" / "spool"

    def stored(self) -> list[Path]:
        """The stored files. What a killed process was writing lies in `.tmp`, under no name of a job."""
        return [path for path in self.files.rglob("*") if path.is_file() and ".tmp" not in path.parts]

    async def start(
        self,
        role: str,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        tables: Tables | None = None,
        ready: bool = True,
    ) -> Running:
        """Start a process; waits for `service.started`, unless told otherwise."""
        config = self.folder / f"{role}-{len(self.running)}.toml"
        own = merged(self.tables, tables or {})
        config.write_text(to_toml(own))
        process = await start([role, "-c", str(config), *arguments], environ=environ)
        grace_s = max(float(own[table]["grace"]) for table in ("processor", "notifier"))
        one = Running(f"{role}-{len(self.running)}", process, grace_s=grace_s)
        self.running.append(one)
        self.nursery.start_soon(one.read)
        if ready:
            await one.event("service.started")
        if ready and role in ("api", "run"):
            port = (await one.event("api.listening"))["port"]
            self.client.base_url = httpx2.URL(f"http://127.0.0.1:{port}")
        return one

    async def start_all(self, *roles: str, **options: Mapping[str, Any]) -> list[Running]:
        """Start several processes at the same time; `options` are keywords of `start` by role."""
        processes: dict[int, Running] = {}

        async def start_one(index: int, role: str) -> None:
            processes[index] = await self.start(role, **options.get(role, {}))

        async with trio.open_nursery() as nursery:
            for index, role in enumerate(roles):
                nursery.start_soon(start_one, index, role)
        return [processes[index] for index in range(len(roles))]

    async def post(self, **job: Any) -> str:
        """Have a job accepted; returns the id."""
        return self._note(await self.client.post("/download", json=job))

    async def insist(self, **job: Any) -> str:
        """Have a job accepted, as by a client that tries again after a 503."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        while True:
            answer = await self.client.post("/download", json=job, headers=key)
            if answer.status_code != 503:
                return self._note(answer)
            await trio.sleep(int(answer.headers["Retry-After"]) / 10)

    def _note(self, answer: httpx2.Response) -> str:
        assert answer.status_code == 201, (answer.status_code, answer.text)
        job_id: str = answer.json()["id"]
        self.accepted.append(job_id)
        return job_id

    async def post_all(self, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Have jobs accepted, several at a time; returns the ids in order."""
        ids = [""] * len(jobs)
        limiter = trio.CapacityLimiter(8)

        async def one(index: int) -> None:
            async with limiter:
                ids[index] = await self.post(**jobs[index])

        async with trio.open_nursery() as nursery:
            for index in range(len(jobs)):
                nursery.start_soon(one, index)
        return ids

    async def callback_delays(
        self, origin: Origin, sink: Sink, count: int, *, group: str = "a"
    ) -> list[float]:
        """For jobs one after the other: seconds from the POST to the HTTP callback, in ascending order."""
        delays = []
        for _ in range(count):
            began = time.monotonic()
            job_id = await self.post(**job_for(origin.url("/bytes/1"), sink.url(), group=group))
            [callback] = await sink.heard_of(job_id)
            delays.append(callback.at - began)
        return sorted(delays)

    async def job(self, job_id: str) -> dict[str, Any]:
        """`GET /jobs/<id>`."""
        answer = await self.client.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def stop_all(self) -> None:
        """Send SIGTERM to the running processes, once the callbacks of all ended jobs are delivered."""
        async with trio.open_nursery() as nursery:
            for one in self.running:
                if one.process.returncode is None:
                    nursery.start_soon(one.stop)

    def all_events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """Log lines of the whole fleet."""
        return [line for one in self.running for line in one.events(name, **fields)]


def merged(tables: Tables, more: Tables) -> dict[str, dict[str, Any]]:
    """Tables with the tables of `more` laid over, key by key; an empty table removes a table."""
    return {
        name: {**tables.get(name, {}), **more.get(name, {})}
        for name in [*tables, *(name for name in more if name not in tables)]
        if name not in more or more[name]
    }


@asynccontextmanager
async def open_fleet(
    folder: Path, server: Valkey | None, tables: Tables | None = None
) -> AsyncIterator[Fleet]:
    """A fleet on this server, or (`None`) on the embedded store; at the end no process is left."""
    own = {
        "": {"data_dir": str(folder / "data")},
        "redis": {"url": server.url if server is not None else "embedded"},
    }
    async with trio.open_nursery() as nursery:
        fleet = Fleet(folder, merged(merged(DEFAULTS, own), tables or {}), nursery)
        try:
            yield fleet
        finally:
            await _end(fleet)
            nursery.cancel_scope.cancel()


async def _end(fleet: Fleet) -> None:
    for one in fleet.running:
        with suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
    with trio.CancelScope(shield=True):
        for one in fleet.running:
            await one.process.wait()
        await fleet.client.aclose()
    # What a killed `run` has left behind.
    orphan = fleet.folder / "data" / "valkey" / "valkey.sock"
    with suppress(OSError):
        command(str(orphan), "SHUTDOWN", "NOSAVE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the store says of a job's two tasks."""

    download: dict[str, str]
    callback: dict[str, str]

    @property
    def state(self) -> str:
        return self.download.get("state", "pending")


class History:
    """What must hold when all is over, whatever has happened on the way (`RELIABILITY`, "Always")."""

    def __init__(self, fleet: Fleet, sink: Sink, *, url: str, prefix: str = "downloader:1:{0}:") -> None:
        self.fleet = fleet
        self.sink = sink
        self.prefix = prefix
        self.redis: redis.Redis = redis.Redis.from_url(url, decode_responses=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.redis.close()

    def record(self, job_id: str) -> Record:
        if record := self.redis.hget(f"{self.prefix}ended", job_id):
            job = ended.parse(str(record))
            return Record(download=job.download, callback=job.callback)
        return Record(download=self._hash("download", job_id), callback=self._hash("callback", job_id))

    def _hash(self, kind: str, job_id: str) -> dict[str, str]:
        fields = self.redis.hgetall(f"{self.prefix}{kind}:task:{job_id}")
        return {str(name): str(value) for name, value in fields.items()}

    def leases(self) -> int:
        """Live leases, of either kind."""
        kinds = ("download", "callback")
        return sum(int(self.redis.zcard(f"{self.prefix}{kind}:leases")) for kind in kinds)

    def check(self, *, accepted: Sequence[str] | None = None, queued: int = 0) -> Counter[str]:
        """Judge a store at rest with `queued` jobs still waiting; returns how many ended in which state."""
        ids = list(self.fleet.accepted if accepted is None else accepted)
        records = {job_id: self.record(job_id) for job_id in ids}
        states = Counter(record.state for record in records.values())
        self._check_commands()
        assert self.leases() == 0
        assert states["pending"] == queued, states
        assert states["running"] == 0, states
        assert states.total() == len(set(ids))
        if not queued:
            self._check_structures()
        self._check_notified(records)
        self._check_files(records)
        self._check_logs()
        return states

    def check_forgotten(self) -> None:
        """Every job has been deleted: what is left has a time to live, or is of the whole fleet."""
        self._check_commands()
        left = {str(key) for key in self.redis.keys("*") if self.redis.ttl(key) < 0}
        kept = {f"{self.prefix}totals:{role}" for role in ("api", "processor", "notifier")}
        kept |= {f"{self.prefix}{name}" for name in ("history", "audit:jobs", "audit:fleet")}
        assert left - kept == {f"{self.prefix}layout"}
        assert self._stored() == {}

    def check_origin(self, origin: Origin | Mapping[str, int], limits: Mapping[str, int]) -> None:
        """No path was ever requested by more clients at once than the aggregation allows."""
        peak = origin.peak if isinstance(origin, Origin) else origin
        for path, limit in limits.items():
            assert peak[path] <= limit, (path, peak)

    def _check_commands(self) -> None:
        used = self.redis.info("commandstats")
        assert not {"cmdstat_keys", "cmdstat_scan", "cmdstat_smembers", "cmdstat_flushall"} & used.keys()

    def _check_structures(self) -> None:
        for kind in ("download", "callback"):
            for name in ("groups", "ready", "timers"):
                assert self.redis.zcard(f"{self.prefix}{kind}:{name}") == 0, (kind, name)

    def _check_notified(self, records: Mapping[str, Record]) -> None:
        deliveries = self.sink.by_job()
        for job_id, record in records.items():
            received = deliveries.get(job_id, [])
            assert {one.webhook_id for one in received} <= {received[0].webhook_id if received else ""}
            assert len({one.body for one in received}) <= 1, received
            if record.callback.get("state") == "succeeded":
                assert received, job_id
                assert received[-1].payload["success"] == (record.state == "succeeded")
                assert received[-1].payload["attempts"] == int(record.download.get("attempts", 0))
            else:
                assert record.callback.get("state") in (None, "failed"), record

    def _check_files(self, records: Mapping[str, Record]) -> None:
        expected = {
            job_id: record.download["sha256"]
            for job_id, record in records.items()
            if record.state == "succeeded"
        }
        # A file that a killed worker of a failed job has stored is deleted with the job.
        unclear = {
            name for name, one in records.items() if one.state == "failed" and "crashes" in one.download
        }
        stored = {name: digest for name, digest in self._stored().items() if name not in unclear}
        differing = {name for name in stored | expected if stored.get(name) != expected.get(name)}
        assert not differing, {name: (stored.get(name), expected.get(name)) for name in differing}
        left = [path for path in self.fleet.spool.rglob("*") if path.is_file()]
        assert left == []

    def _stored(self) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.fleet.stored()}

    def _check_logs(self) -> None:
        ends = [
            line["job_id"]
            for name in ("job.succeeded", "job.failed", "job.poison")
            for line in self.fleet.all_events(name)
        ]
        ends += [line["job_id"] for line in self.fleet.all_events("audit", action="cancel")]
        twice = [job_id for job_id, count in Counter(ends).items() if count > 1]
        assert twice == []
        for one in self.fleet.running:
            assert not [line for line in one.noise if "Traceback" in line], one.noise
            assert not [line for line in one.log if line.get("exception")], one.tail()
