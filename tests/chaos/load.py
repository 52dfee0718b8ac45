"""Jobs for a fleet that is being broken: an origin with known answers, and clients that retry."""

from __future__ import annotations

import hashlib
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
import trio

from chaos.history import Closed, Job
from servers.fleet import job_for
from servers.origin import Exchange, Origin, Then, body_of
from servers.sink import Sink

CANCELLED, COOLED, RATED, PAUSED, SHARED = "cancelled", "cooled", "rated", "paused", "shared"
"""Five special aggregations: jobs of the first are cancelled, the origin of the second asks for pauses, the
third has a rate, the fourth is paused and resumed now and then, and jobs of the fifth share their files."""

LIMITS = {"g1": 1, "g2": 2, "g3": 4, "g4": 8, CANCELLED: 4, COOLED: 4, RATED: 8, PAUSED: 4, SHARED: 4}
"""By aggregation. Its name is the first segment of the paths of its jobs, by which the origin counts."""

RATE = 5.0
RETRY_AFTER_S = 1

HOSTS = 8
"""How many hosts callbacks go to: 127.0.0.2 and the following."""

_HELD_S = 0.6
"""The longest time of an answer: far below a lease, so that the request of a dead process ends first."""

_CANCELLED_SHARE = 0.5
_PAUSE_S = (0.5, 2.0)
"""The shortest and the longest pause, and likewise the time between two pauses."""

_SHARING = 8
"""How many ended jobs of `SHARED` there are before one is deleted. Fewer than its different files, so that a
file is often deleted while the next job wants it."""

_DELETED_S = 1.0
"""How long a reaper may take before the request to delete is repeated."""

_SEALED = "sealed"
"""In place of the id of a job that was refused because its group takes no more jobs."""

_BODY_BYTES = 300_000
_AGAIN_S = 0.1
_REQUEST_S = 5.0


@dataclass
class Slots:
    """How many requests of each aggregation the origin answers now, and the highest number so far.

    A request stops counting just before the bytes are sent on which the processor acts, the last byte of a
    file or the head of any other response: with those bytes the processor may send the next request before
    this process runs again. If the processor is frozen, the response waits in the kernel and the connection
    outlives the lease; `docs/guarantees.md` lists that as not promised.
    """

    limits: Mapping[str, int]
    now: dict[str, dict[Exchange, float]] = field(default_factory=lambda: defaultdict(dict))
    """By aggregation: each request in progress, with the time of the begin."""
    peak: Counter[str] = field(default_factory=Counter)
    exceeded: list[str] = field(default_factory=list)
    """A line for each new peak above a limit, with the path and the age of each request, and the time."""

    def enter(self, group: str, exchange: Exchange) -> None:
        now = time.time()
        self.now[group][exchange] = now
        if (count := len(self.now[group])) > self.peak[group]:
            self.peak[group] = count
            if count > self.limits[group]:
                ages = [f"{each.request.path} {now - began:.2f} s" for each, began in self.now[group].items()]
                self.exceeded.append(f"{group}: {count} at once at {now:.3f}: {', '.join(ages)}")

    def leave(self, group: str, exchange: Exchange) -> None:
        del self.now[group][exchange]


@dataclass
class Load:
    """Submits jobs until `stopping` is set, and knows how each must end."""

    origin: Origin
    sink: Sink
    rng: random.Random
    apis: Callable[[], list[int]]
    """The ports of the APIs that should answer now."""
    limits: Mapping[str, int] = field(default_factory=lambda: LIMITS)
    backlog: int = 15
    """Most unfinished jobs of an aggregation; more jobs would only wait."""
    job_groups: list[str] = field(default_factory=list)
    """Groups of jobs that take jobs now. Some new jobs belong to one of them."""
    unsure: set[str] = field(default_factory=set)
    """Groups that refused a job when its request was repeated: an earlier request may still arrive."""
    accepted: dict[str, Job] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    """By reason: how many submissions had to be repeated."""
    complaints: list[str] = field(default_factory=list)
    slots: Slots = field(init=False)
    gets: Counter[str] = field(default_factory=Counter)
    """By path: number of requests that the origin received."""
    paths: dict[str, str] = field(default_factory=dict)
    """By job id: the path of the URL."""
    throttled_s: dict[str, float] = field(default_factory=dict)
    """By path: when the origin asked for a pause."""
    closed: list[Closed] = field(default_factory=list)
    """The pauses of `PAUSED`."""
    resumed_s: dict[str, float] = field(default_factory=dict)
    """By the address of a client: when the client began to send requests that end a pause."""
    files: Path = Path()
    """The folder in which the fleet stores files."""
    deleted: int = 0
    """How many jobs of `SHARED` were deleted with their records."""
    stopping: bool = False
    _submitted: bool = False
    """Whether no more jobs will be submitted."""
    _told: set[str] = field(default_factory=set)
    _waiting: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By aggregation: accepted jobs, without those whose callback is known to have arrived."""
    _read: int = 0
    """How many of the sink's deliveries are in `_told` already."""
    sent: Counter[str] = field(default_factory=Counter)
    """By path: how often `insist` has sent the request."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.slots = Slots(self.limits)

    async def run(self) -> None:
        """Submit jobs to each aggregation until `stopping`; a submission that has begun is finished first.

        Then resume `PAUSED` until none of its jobs waits, and delete all jobs of `SHARED`.
        """
        async with (
            httpx2.AsyncClient(timeout=_REQUEST_S, trust_env=False) as client,
            trio.open_nursery() as ending,
        ):
            ending.start_soon(self._delete_shared, client)
            if PAUSED in self.limits:
                ending.start_soon(self._pause, client)
            async with trio.open_nursery() as nursery:
                for group in self.limits:
                    nursery.start_soon(self._client, client, group)
            self._submitted = True

    def waiting(self, group: str) -> int:
        """How many accepted jobs have had no callback yet."""
        received = self.sink.received
        self._told.update(one.job_id for one in received[self._read :])
        self._read = len(received)
        self._waiting[group] -= self._told
        return len(self._waiting[group])

    def waiting_of(self, job_group: str) -> int:
        """How many accepted jobs of a group of jobs have had no callback yet."""
        return sum(
            self.accepted[job_id].job_group == job_group
            for group in self.limits
            if self.waiting(group)
            for job_id in self._waiting[group]
        )

    def failed_of(self, job_group: str) -> list[str]:
        """The jobs of a group of jobs that have failed or will."""
        jobs = self.accepted.values()
        return [
            job.id
            for job in jobs
            if job.job_group == job_group and not job.succeeds and job.group != CANCELLED
        ]

    async def _client(self, client: httpx2.AsyncClient, group: str) -> None:
        while not self.stopping:
            if self.waiting(group) < self.backlog:
                await self._submit(client, group)
            else:
                await trio.sleep(_AGAIN_S)

    async def _submit(self, client: httpx2.AsyncClient, group: str) -> None:
        number = next(self._numbers)
        path, job = self._offer(group, number)
        if group != SHARED:  # a group counts its jobs, and those of `SHARED` are deleted
            job = replace(job, job_group=self.rng.choice([*self.job_groups, ""]))
        callback = self.rng.choice(["/ok", "/ok", "/flaky/1", "/slow/0.1"])
        body = job_for(
            self.origin.url(path),
            self.sink.url(callback, host=f"127.0.0.{2 + number % HOSTS}"),
            group=group,
            limit=self.limits[group],
            **({"aggr_rate": RATE} if group == RATED else {}),
            **({"key": f"{SHARED}/{{sha256}}"} if group == SHARED else {}),
        ) | ({"group": job.job_group} if job.job_group else {})
        tries = 0
        while True:
            tries += 1
            ports = self.apis()
            if ports and (job_id := await self._post(client, self.rng.choice(ports), body, f"k{number}")):
                break
            await trio.sleep(_AGAIN_S)
        if job_id == _SEALED:
            if tries > 1:
                self.unsure.add(job.job_group)
            return
        self.accepted[job_id] = replace(job, id=job_id)
        self.paths[job_id] = path
        self._waiting[group].add(job_id)
        if group == CANCELLED and self.rng.random() < _CANCELLED_SHARE:
            await trio.sleep(self.rng.uniform(0, _HELD_S))
            answer = await self.insist(client, "DELETE", f"/jobs/{job_id}", (202, 409))
            self.accepted[job_id] = replace(job, id=job_id, cancelled=answer.status_code == 202)

    async def retry(self, client: httpx2.AsyncClient, job_id: str) -> bool:
        """Repeat a failed download; returns whether an answer said that it is repeated."""
        path = f"/retry/{job_id}?download=1"
        answer = await self.insist(client, "POST", path, (201, 409))
        self.accepted[job_id] = replace(self.accepted[job_id], retries=self.sent[path])
        return answer.status_code == 201

    async def _pause(self, client: httpx2.AsyncClient) -> None:
        """Pause and resume `PAUSED`, each time from another address, which the API's log has."""
        path = f"/aggregations/{PAUSED}"
        while not self.stopping:
            await trio.sleep(self.rng.uniform(*_PAUSE_S))
            number = len(self.closed)
            address = f"127.2.{number // 256}.{number % 256}"
            transport = httpx2.AsyncHTTPTransport(local_address=address)
            async with httpx2.AsyncClient(timeout=_REQUEST_S, trust_env=False, transport=transport) as own:
                await self.insist(own, "PATCH", path, (200,), paused=True)
                after_s = time.time()
                await trio.sleep(self.rng.uniform(*_PAUSE_S))
                self.resumed_s[address] = until_s = time.time()
                self.closed.append(Closed(group=PAUSED, why="paused", after_s=after_s, until_s=until_s))
                # A repeated request finds nothing to end if the aggregation has no job.
                await self.insist(own, "PATCH", path, (200, 404), paused=False)
        # An API that was frozen may still pause once more, and that pause would stay.
        while not self._submitted or self.waiting(PAUSED):
            await trio.sleep(_AGAIN_S)
            await self.insist(client, "PATCH", path, (200, 404), paused=False)

    async def _delete_shared(self, client: httpx2.AsyncClient) -> None:
        """Delete jobs that have ended, all in the end. Before that, the file of each must be there."""
        deleting: set[str] = set()
        async with trio.open_nursery() as nursery:
            is_last = False
            while not is_last:
                await trio.sleep(_AGAIN_S)
                is_last = self._submitted and not self.waiting(SHARED)
                jobs = [job for job in self.accepted.values() if job.group == SHARED]
                ended = [job for job in jobs if job.id in self._told and job.id not in deleting]
                for job in ended:
                    if job.succeeds and not (self.files / SHARED / job.sha256).exists():
                        self.complaints.append(f"{job.id} has no file {job.sha256} any more")
                self.rng.shuffle(ended)
                for job in ended[0 if self._submitted else _SHARING :]:
                    deleting.add(job.id)
                    nursery.start_soon(self._delete, client, job.id)

    async def _delete(self, client: httpx2.AsyncClient, job_id: str) -> None:
        """Delete a job that has ended, until it has no record: the reaper that was given it may die."""
        path = f"/jobs/{job_id}?purge=1"
        while True:
            answer = await self.insist(client, "DELETE", path, (202, 404, 409))
            if answer.status_code == 404:
                break
            await trio.sleep(_DELETED_S)
        del self.accepted[job_id], self.paths[job_id]
        self.deleted += 1

    async def insist(
        self, client: httpx2.AsyncClient, method: str, path: str, good: tuple[int, ...], **body: object
    ) -> httpx2.Response:
        """Repeat a request until the response has one of the given statuses."""
        while True:
            if ports := self.apis():
                self.sent[path] += 1
                with suppress(httpx2.TransportError):
                    url = f"http://127.0.0.1:{self.rng.choice(ports)}{path}"
                    answer = await client.request(method, url, json=body or None)
                    if answer.status_code in good:
                        return answer
                    self._refused(answer, f"{method} {path}")
            await trio.sleep(_AGAIN_S)

    def _refused(self, answer: httpx2.Response, what: str) -> None:
        self.refused[str(answer.status_code)] += 1
        if answer.status_code != 503 or "retry-after" not in answer.headers:
            self.complaints.append(f"{what}: {answer.status_code} {answer.text[:200]}")

    async def _post(self, client: httpx2.AsyncClient, port: int, body: dict[str, object], key: str) -> str:
        """The job's id, `""` if the request must be repeated, or `_SEALED`."""
        try:
            answer = await client.post(
                f"http://127.0.0.1:{port}/download", json=body, headers={"Idempotency-Key": key}
            )
        except httpx2.TransportError as exc:
            self.refused[type(exc).__name__] += 1
            return ""
        if answer.status_code == 201:
            job_id: str = answer.json()["id"]
            return job_id
        if answer.status_code == 409 and answer.json()["code"] == "group_sealed":
            return _SEALED
        self._refused(answer, "POST /download")
        return ""

    def _offer(self, group: str, number: int) -> tuple[str, Job]:
        """Put a file or a failure at a new path; returns the path and the job, which has no id yet."""
        path = f"/{group}/{number}"
        seed = path if group != SHARED else str(self.rng.randrange(4))
        body = body_of(self.rng.choice([0, 1, 1000, 70_000, _BODY_BYTES]), seed)
        pause_s = self.rng.uniform(0, _HELD_S)
        kinds = {"whole": 6, "halting": 3, "busy": 2, "cut": 2, "moved": 1, "missing": 1}
        if group == COOLED:
            kinds["throttled"] = 3
        [kind] = self.rng.choices(list(kinds), list(kinds.values()))
        # A 503 with Retry-After asks for a pause, like a 429; a 503 without it is a failure, like a 500.
        busy, throttled = self.rng.choice([500, 503]), self.rng.choice([429, 503])
        failures = 1 if kind in ("busy", "cut") else 0

        async def answer(exchange: Exchange) -> None:
            here = exchange.request.path
            self.gets[here] += 1
            first = _response(200, body)
            then: Then = "keep"
            match kind:
                case "busy" if self.gets[here] == 1:
                    first = _response(busy, b"no")
                case "cut" if self.gets[here] == 1:
                    first, then = _response(200, body, length=len(body) + 1), "rst"
                case "throttled" if self.gets[here] == 1:
                    first = _response(throttled, b"no", f"Retry-After: {RETRY_AFTER_S}\r\n")
                    self.throttled_s[here] = time.time()
                case "moved" if here == path:
                    first = _response(302, b"", f"Location: {path}/there\r\n")
                case "missing":
                    first = _response(404, b"no")
                case _:
                    pass
            held_back = 1 if first.startswith(b"HTTP/1.1 200 ") else len(first)
            exchange.buffer(len(first))
            self.slots.enter(group, exchange)
            try:
                if kind == "halting":
                    await exchange.send(first[: len(first) // 2])
                    first = first[len(first) // 2 :]
                with trio.move_on_after(pause_s):
                    # Until the peer closes the connection, which it does when its lease has ended.
                    await trio.lowlevel.wait_readable(exchange.raw.socket)
                await exchange.send(first[:-held_back])
            finally:
                self.slots.leave(group, exchange)
            await exchange.send(first[-held_back:])
            await exchange.end(then)

        self.origin.on(path, answer)
        self.origin.on(f"{path}/there", answer)
        digest = hashlib.sha256(body).hexdigest()
        if kind == "missing":
            return path, Job(id="", group=group, succeeds=False)
        return path, Job(
            id="", group=group, succeeds=True, size=len(body), sha256=digest, attempts=1 + failures
        )

    def repeated_gets(self) -> int:
        """Requests that were not needed. They are allowed, because downloads run at least once."""
        return sum(
            max(0, self.gets[path] - self.accepted[job_id].attempts) for job_id, path in self.paths.items()
        )


def _response(status: int, body: bytes, more: str = "", *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status} X\r\nContent-Length: {size}\r\n{more}\r\n".encode() + body
