"""The calls of the clients: the requests of each, and what the responses say. No I/O.

Each method of `Calls` is a generator, which both clients carry out. It yields a request and gets the response
or the error of httpx2; it yields a `Pause` and gets nothing. A method with many results also yields `Items`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar, Unpack

import httpx2
from pydantic import BaseModel

from downloader import backoff
from downloader.client import messages
from downloader.client.messages import JobFields, JobFilters, Submitted, Unreachable, WaitTimeout
from downloader.model import StateName
from downloader.wire import (
    Accepted,
    Aggregation,
    AggregationChanges,
    AggregationPage,
    AuditEntry,
    BacklogPoint,
    CancelledJobs,
    Failures,
    Group,
    GroupPage,
    Job,
    JobPage,
    ListedJob,
    Retried,
)

TIMEOUT_S = 30.0
"""For each wait of a request, connecting excepted; the service answers within about 10 s, or with 503."""

CONNECT_S = 5.0

LEAST_S = 1.0
"""Shortest wait for a response, even if less time is left: so a `timeout_s` of 0 asks once."""

FIRST_PAUSE_S = 0.5
"""Pause before the first retry; later pauses double. The service's own `Retry-After` is 2 s."""

LONGEST_PAUSE_S = 60.0
"""If the service wants a longer pause, the request is not repeated."""

FIRST_POLL_S = 0.1
LONGEST_POLL_S = 2.0
"""Pauses of `wait`, which grow while nothing ends."""

POLLED = 100
"""Jobs that `wait_each` asks for in one round, so that waiting for a million jobs is a small load. The next
round asks for others."""

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
P = TypeVar("P", JobPage, GroupPage, AggregationPage)


@dataclass(frozen=True, slots=True)
class Pause:
    """The client is to wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Items(Generic[T]):
    """Results for the caller of the client."""

    items: Sequence[T]


Step = httpx2.Request | Pause
Reply = httpx2.Response | httpx2.RequestError | None
Steps = Generator[Step, Reply, T]
"""A call with one result."""
ManySteps = Generator[Step | Items[T], Reply, None]
"""A call with many results."""


def one(steps: Steps[T]) -> ManySteps[T]:
    """A call with the result as the only item."""
    yield Items([(yield from steps)])


class Calls:
    """The calls to one service. `AsyncClient` documents the errors."""

    def __init__(self, build: Callable[..., httpx2.Request], url: str, retries: int) -> None:
        """`build` is `build_request` of a client of httpx2; each request is tried `retries` times more."""
        self._build = build
        self.url = httpx2.URL(url)
        """The service's address."""
        self._retries = retries

    def submit(self, **job: Unpack[JobFields]) -> Steps[str]:
        """Submit one job; returns the id once the service holds the job.

        The request has an idempotency key, a random one if the job has none, so that a try after a lost
        response does not submit the job twice.
        """
        fields = dict(job)
        headers = {"Idempotency-Key": str(fields.pop("idempotency_key", "") or messages.new_key())}
        accepted = yield from self._read(
            Accepted, "POST", "download", content=messages.encode(fields), headers=headers
        )
        return accepted.id

    def submit_batch(self, batch: messages.Lines) -> Steps[Sequence[Submitted]]:
        """Submit some jobs; returns the response to each, in order."""
        responses_by_place: dict[int, Submitted] = {}
        left, pauses = list(range(len(batch))), self._pauses()
        while left:
            body = b"".join(batch[place][1] for place in left)
            response = yield from self._call("POST", "downloads", content=body)
            lines = response.text.splitlines()
            if len(lines) != len(left):
                raise messages.not_a_downloader(response.url)
            for place, line in zip(left, lines, strict=True):
                responses_by_place[place] = messages.submitted(batch[place][0], line, response)
            left = [place for place in left if responses_by_place[place].not_taken]
            pause_s = next(pauses, None)
            if pause_s is None:
                break
            if left:
                yield Pause(pause_s)
        return [responses_by_place[place] for place in range(len(batch))]

    def job(self, job_id: str) -> Steps[Job]:
        """A job's state."""
        return self._job(job_id)

    def _job(self, job_id: str, until: float = math.inf) -> Steps[Job]:
        return self._read(Job, "GET", f"jobs/{messages.segment(job_id)}", until=until)

    def wait(self, job_id: str, *, callback: bool = False, timeout_s: float | None = None) -> Steps[Job]:
        """Wait until a job's download has ended; see `wait_each`."""
        steps = self.wait_each([job_id], callback=callback, timeout_s=timeout_s)
        step = next(steps)
        while not isinstance(step, Items):
            step = steps.send((yield step))
        return step.items[0]

    def wait_each(
        self, job_ids: Iterable[str], *, callback: bool = False, timeout_s: float | None = None
    ) -> ManySteps[Job]:
        """Wait for jobs; yields a job once the download has ended, successfully or not.

        Args:
            job_ids: the jobs.
            callback: wait until the callback has ended too, if there is one.
            timeout_s: for all together; `None` waits for ever.

        Raises:
            WaitTimeout: the time is up.
            ApiProblem: 404, the job never existed, or was deleted meanwhile.
        """
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        waiting = deque(dict.fromkeys(job_ids))
        pause_s = FIRST_POLL_S
        while waiting:
            any_ended = False
            for _ in range(min(POLLED, len(waiting))):
                try:
                    job = yield from self._job(waiting[0], until)
                except Unreachable as error:
                    if time.monotonic() < until:
                        raise
                    raise _too_late(len(waiting), timeout_s) from error
                waiting.rotate(-1)
                if job.ended and not (callback and job.callback and not job.callback.ended):
                    waiting.pop()
                    any_ended = True
                    yield Items([job])
            if not waiting:
                return
            if time.monotonic() + pause_s > until:
                raise _too_late(len(waiting), timeout_s)
            yield Pause(pause_s)
            pause_s = FIRST_POLL_S if any_ended else min(pause_s * 1.5, LONGEST_POLL_S)

    def retry(self, job_id: str, *, download: bool = False) -> Steps[None]:
        """Send the failed callback of a job again, or with `download` repeat the failed download."""
        params = {"download": "1"} if download else None
        # A second request would be refused: the job is no longer failed.
        yield from self._call("POST", f"retry/{messages.segment(job_id)}", params=params, repeatable=False)

    def retry_failed(self, *, download: bool = False, **filters: Unpack[JobFilters]) -> Steps[int]:
        """Send failed callbacks again, or with `download` repeat failed downloads; see `JobFilters`.

        Returns:
            Number of retried jobs. Jobs in a response that was lost are not counted.
        """
        params = messages.query(download="1" if download else None, **filters)
        retried, cursor = 0, None
        while cursor != "":
            page = yield from self._read(Retried, "POST", "retry", params=_at(cursor, params))
            retried, cursor = retried + page.retried, page.cursor
        return retried

    def failures(self, *, aggr_id: str | None = None, q: str | None = None) -> Steps[Failures]:
        """Count what failed for good, by aggregation and reason; the service counts for at most a second.

        Args:
            aggr_id: only jobs of this aggregation.
            q: only jobs of aggregations whose name contains this text, in upper or lower case.
        """
        return self._read(Failures, "GET", "failures", params=messages.query(all="1", aggr_id=aggr_id, q=q))

    def jobs(
        self,
        *,
        state: StateName | None = None,
        callback: Literal["failed", "succeeded"] | None = None,
        **filters: Unpack[JobFilters],
    ) -> ManySteps[ListedJob]:
        """Yield the jobs of a list, page by page; `docs/api/jobs.md` says which lists there are.

        Args:
            state: of their download. `pending` needs `aggr_id`.
            callback: only jobs whose callback ended as `failed` or `succeeded`. Needed without `state` or
                `group`.
            filters: see `JobFilters`.
        """
        params = messages.query(state=state, callback=callback, **filters)
        # A running job whose lease is renewed comes again on any later page; others, if at all, on the next.
        often = state == "running"
        return self._pages(JobPage, "jobs", attrgetter("jobs"), attrgetter("id"), params, often=often)

    def cancel(self, job_id: str) -> Steps[None]:
        """Cancel a job that waits or is being downloaded."""
        yield from self._call("DELETE", f"jobs/{messages.segment(job_id)}")

    def purge(self, job_id: str) -> Steps[None]:
        """Delete the file and the record of a job that has ended, before their time."""
        yield from self._call("DELETE", f"jobs/{messages.segment(job_id)}", params={"purge": "1"})

    def cancel_jobs(self, aggr_id: str) -> Steps[int]:
        """Cancel all jobs of an aggregation that wait or are being downloaded; returns how many.

        Jobs of responses that were lost are not counted.
        """
        return self._cancel_all(f"aggregations/{messages.segment(aggr_id)}/jobs")

    def _cancel_all(self, path: str) -> Steps[int]:
        cancelled, complete = 0, False
        while not complete:
            result = yield from self._read(CancelledJobs, "DELETE", path)
            cancelled, complete = cancelled + result.cancelled, result.complete
        return cancelled

    def groups(self) -> ManySteps[Group]:
        """Yield the groups of jobs, in no particular order."""
        return self._pages(GroupPage, "groups", attrgetter("groups"), attrgetter("name"))

    def group(self, name: str) -> Steps[Group]:
        """A group of jobs, with its progress."""
        return self._read(Group, "GET", f"groups/{messages.segment(name)}")

    def set_group_callback(
        self, name: str, *, callback_type: str = "http", callback_dst: str, extra: Any = ""
    ) -> Steps[Group]:
        """Set the callback of a group; possible until the group is complete."""
        fields = {"callback_type": callback_type, "callback_dst": callback_dst, "extra": extra}
        return self._read(Group, "POST", f"groups/{messages.segment(name)}", content=messages.encode(fields))

    def seal_group(self, name: str) -> Steps[Group]:
        """Seal a group, because all its jobs are submitted."""
        return self._read(Group, "POST", f"groups/{messages.segment(name)}/seal")

    def reopen_group(self, name: str) -> Steps[Group]:
        """Accept jobs in a complete group again. When it is complete again, a second callback is sent."""
        return self._read(Group, "POST", f"groups/{messages.segment(name)}/reopen")

    def wait_group(self, name: str, *, timeout_s: float | None = None) -> Steps[Group]:
        """Wait until a group is sealed and all its jobs have ended.

        Raises:
            WaitTimeout: the time is up; `None` waits for ever.
            ApiProblem: 404, there is no such group.
        """
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        pause_s = FIRST_POLL_S
        while True:
            group = yield from self.group(name)
            if group.state == "complete":
                return group
            if time.monotonic() + pause_s > until:
                raise WaitTimeout(
                    f"the group is {group.state} after {timeout_s:g} s, and {group.unfinished} of its jobs"
                    " have not ended"
                )
            yield Pause(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_POLL_S)

    def cancel_group(self, name: str) -> Steps[int]:
        """Cancel all jobs of a group that wait or are being downloaded, as `cancel_jobs`."""
        return self._cancel_all(f"groups/{messages.segment(name)}/jobs")

    def aggregations(self) -> ManySteps[Aggregation]:
        """Yield the aggregations that have unfinished downloads, in no particular order."""
        return self._pages(AggregationPage, "aggregations", attrgetter("aggregations"), attrgetter("aggr_id"))

    def aggregation(self, aggr_id: str) -> Steps[Aggregation]:
        """One aggregation that has unfinished downloads."""
        return self._read(Aggregation, "GET", f"aggregations/{messages.segment(aggr_id)}")

    def adjust(self, aggr_id: str, **changes: Unpack[AggregationChanges]) -> Steps[Aggregation]:
        """Change an aggregation, at once and over the fleet; fields that are not given stay unchanged."""
        path = f"aggregations/{messages.segment(aggr_id)}"
        return self._read(Aggregation, "PATCH", path, content=messages.encode(changes))

    def pause_all(self, *, paused: bool = True) -> Steps[None]:
        """Pause all present and later aggregations, or end this pause."""
        yield from self._call("PATCH", "aggregations", content=messages.encode({"paused": paused}))

    def stats(self, role: str | None = None) -> Steps[Mapping[str, Any]]:
        """Pending work of the fleet; with a `role` (`processor`, `notifier`), its counters."""
        response = yield from self._call("GET", f"stats/{messages.segment(role)}" if role else "stats")
        return messages.json_object(response.content, response.url)

    def backlog(self) -> Steps[Sequence[BacklogPoint]]:
        """The backlog of the last day, the oldest point first."""
        response = yield from self._call("GET", "backlog")
        points = messages.json_array(response.content, response.url)
        return [messages.as_model(BacklogPoint, point, response.url) for point in points]

    def audit(self, count: int = 100) -> Steps[Sequence[AuditEntry]]:
        """The newest `count` changes and by which token, the newest first."""
        response = yield from self._call("GET", "audit", params={"count": count})
        entries = messages.json_array(response.content, response.url)
        return [messages.as_model(AuditEntry, entry, response.url) for entry in entries]

    def ping(self) -> Steps[None]:
        """Check that the service responds; raises `Unreachable` otherwise."""
        yield from self._call("GET", "health/live")

    def _pages(
        self,
        model: type[P],
        path: str,
        rows_of: Callable[[P], Sequence[T]],
        name_of: Callable[[T], str],
        params: Mapping[str, str] | None = None,
        *,
        often: bool = True,
    ) -> ManySteps[T]:
        """Yield the rows of all pages once; `often`: a row may come again on any later page."""
        seen: set[str] = set()
        cursor = None
        while cursor != "":
            page = yield from self._read(model, "GET", path, params=_at(cursor, params or {}))
            names = {name_of(row): row for row in rows_of(page)}
            yield Items([row for name, row in names.items() if name not in seen])
            if not often:
                seen.clear()
            seen.update(names)
            cursor = page.cursor

    def _read(self, model: type[M], method: str, path: str, **request: Any) -> Steps[M]:
        """The model in the response to a request; arguments as for `_call`."""
        response = yield from self._call(method, path, **request)
        return messages.as_model(model, messages.json_object(response.content, response.url), response.url)

    def _call(
        self, method: str, path: str, *, repeatable: bool = True, until: float = math.inf, **request: Any
    ) -> Steps[httpx2.Response]:
        """Send a request; returns the whole response.

        Args:
            method: of HTTP.
            path: below the service's address, percent-encoded.
            repeatable: it does no harm to carry out the request twice. Others are repeated only if they were
                certainly not carried out.
            until: the monotonic time after which there is no further try; the wait for a response ends then,
                but not before `LEAST_S`.
            request: `params`, `content` and `headers`.

        Raises:
            ApiProblem: a status other than 2xx.
            Unreachable: no response.
        """
        pauses = self._pauses()
        while True:
            left_s = max(until - time.monotonic(), 0.0)
            wait_s = max(left_s, LEAST_S)
            timeout = httpx2.Timeout(min(TIMEOUT_S, wait_s), connect=min(CONNECT_S, wait_s))
            result = yield self._build(method, path, timeout=timeout, **request)
            assert result is not None
            pause_s, wanted_s = next(pauses, None), messages.pause_wanted(result, repeatable=repeatable)
            if pause_s is None or wanted_s is None or wanted_s > LONGEST_PAUSE_S:
                break
            pause_s = max(pause_s, wanted_s)
            if pause_s > left_s:
                break
            yield Pause(pause_s)
        return messages.success(result, self.url)

    def _pauses(self) -> Iterator[float]:
        """The pauses before the further tries."""
        return islice(backoff.pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S), self._retries)


def _at(cursor: str | None, params: Mapping[str, str]) -> Mapping[str, str]:
    """The parameters of the page at this cursor, `None` for the first."""
    return params if cursor is None else {**params, "cursor": cursor}


def _too_late(left: int, timeout_s: float | None) -> WaitTimeout:
    return WaitTimeout(f"{left} of the jobs have not ended within {timeout_s:g} s")
