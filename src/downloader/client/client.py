"""`AsyncClient` and `Client`."""

from __future__ import annotations

import math
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from datetime import datetime
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import httpx2

from downloader.client import bodies
from downloader.client.errors import Unreachable, WaitTimeout
from downloader.client.models import JobFields, Submitted
from downloader.client.wire import BlockingTransport, Wire, json_object, json_of, not_a_downloader, run
from downloader.model import State
from downloader.wire import Aggregation, AggregationChanges, Job, ListedJob

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where `downloader run` listens if it is not told otherwise."""

RETRIES = 5
"""Their pauses are at most about 15 s together, in which a service restarts or fails over."""

FIRST_POLL_S = 0.1
LONGEST_POLL_S = 2.0
"""Pauses of `wait`; they grow while nothing ends."""

POLLED = 100
"""Jobs that `wait_each` asks for in one round, so that waiting for a million jobs is a small load. If none
of them has ended, the next round asks for others."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class AsyncClient:
    """Talks to one service, on Trio or asyncio; close it with `async with` or `aclose`.

    Each method raises `ApiProblem` if the service refuses, and `Unreachable` if it does not answer. Before
    that, a request is tried again up to `retries` times if the service could not be reached or answered 429
    or 503, and, unless repeating it could do harm, if the answer was lost.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str = "",
        retries: int = RETRIES,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            url: the service's address, with a path if a proxy has it below one.
            token: one of its `[[api.tokens]]`.
            retries: further tries of a request.
            transport: sends the requests, instead of httpx2's own: for a proxy, a certificate or a test. The
                client closes it.

        Raises:
            ConfigError: the address is no URL, or the token cannot be sent.
        """
        self._wire = Wire(
            url,
            token=token,
            transport=transport or httpx2.AsyncHTTPTransport(),
            retries=retries,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.aclose()

    async def submit(self, **job: Unpack[JobFields]) -> str:
        """Submit one job; returns its id once the service holds the job.

        It carries an idempotency key, a random one if the job has none, so that a try after a lost answer
        does not submit it twice.
        """
        fields = dict(job)
        key = str(fields.pop("idempotency_key", "") or bodies.new_key())
        response = await self._wire.call(
            "POST", "download", content=bodies.encode(fields), headers={"Idempotency-Key": key}
        )
        return str(bodies.member(response, "id"))

    async def submit_many(
        self, jobs: Iterable[JobFields] | AsyncIterable[JobFields]
    ) -> AsyncGenerator[Submitted]:
        """Submit any number of jobs, in batches; yields the answer to each, in order.

        A job with a problem does not affect the others. A job that was yielded with an id is accepted, even
        if the call fails later. Jobs are taken from the iterable as they are sent. Each carries an
        idempotency key, as for `submit`.
        """
        async with aclosing(bodies.batches(jobs)) as batches:
            async for batch in batches:
                for answer in await self._submit_batch(batch):
                    yield answer

    async def _submit_batch(self, batch: Sequence[tuple[JobFields, bytes]]) -> Sequence[Submitted]:
        answers: dict[int, Submitted] = {}
        left = list(range(len(batch)))
        for pause_s in self._wire.pauses():
            body = b"".join(batch[index][1] for index in left)
            response = await self._wire.call("POST", "downloads", content=body)
            lines = response.text.splitlines()
            if len(lines) != len(left):
                raise not_a_downloader(response.url)
            for index, line in zip(left, lines, strict=True):
                answers[index] = bodies.submitted(batch[index][0], line, response)
            left = [index for index in left if bodies.not_taken(answers[index])]
            if not left or pause_s is None:
                break
            await self._wire.sleep(pause_s)
        return [answers[index] for index in range(len(batch))]

    async def job(self, job_id: str) -> Job:
        """A job's state."""
        return await self._job(job_id)

    async def _job(self, job_id: str, until: float = math.inf) -> Job:
        response = await self._wire.call("GET", f"jobs/{bodies.segment(job_id)}", until=until)
        return bodies.parsed(Job, json_of(response), response)

    async def wait(self, job_id: str, *, callback: bool = False, timeout_s: float | None = None) -> Job:
        """Wait until a job's download has ended; see `wait_each`."""
        async with aclosing(self.wait_each([job_id], callback=callback, timeout_s=timeout_s)) as ended:
            return await anext(ended)

    async def wait_each(
        self, job_ids: Iterable[str], *, callback: bool = False, timeout_s: float | None = None
    ) -> AsyncGenerator[Job]:
        """Wait for jobs; yields each once its download has ended, successfully or not.

        Args:
            job_ids: the jobs.
            callback: wait until the callback has ended too, if there is one.
            timeout_s: for all together; `None` waits for ever.

        Raises:
            WaitTimeout: the time is up.
            ApiProblem: 404, the job never existed, or was deleted meanwhile.
        """
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        left = list(dict.fromkeys(job_ids))
        pause_s = FIRST_POLL_S
        while left:
            ended: set[str] = set()
            for job_id in left[:POLLED]:
                try:
                    job = await self._job(job_id, until)
                except Unreachable as error:
                    if time.monotonic() < until:
                        raise
                    raise _too_late(len(left) - len(ended), timeout_s) from error
                if job.ended and not (callback and job.callback and not job.callback.ended):
                    ended.add(job_id)
                    yield job
            if ended:
                left = [job_id for job_id in left if job_id not in ended]
            else:
                left = left[POLLED:] + left[:POLLED]
            if not left:
                return
            if time.monotonic() + pause_s > until:
                raise _too_late(len(left), timeout_s)
            await self._wire.sleep(pause_s)
            pause_s = FIRST_POLL_S if ended else min(pause_s * 1.5, LONGEST_POLL_S)

    async def retry(self, job_id: str, *, download: bool = False) -> None:
        """Send the failed callback of a job again, or with `download` repeat its failed download."""
        params = {"download": "1"} if download else None
        # A second one would be refused: the job is not failed any more.
        await self._wire.call("POST", f"retry/{bodies.segment(job_id)}", params=params, repeatable=False)

    async def retry_failed(
        self,
        *,
        download: bool = False,
        aggr_id: str | None = None,
        since: datetime | None = None,
        error_code: str | None = None,
        destination: str | None = None,
    ) -> int:
        """Send all failed callbacks again, or with `download` repeat all failed downloads.

        Args:
            download: repeat downloads.
            aggr_id: only those of this aggregation.
            since: only those that failed at this time or later; one without a time zone is local time.
            error_code: only jobs whose download ended with this code.
            destination: only jobs with a callback to this destination, written as in `stats`.

        Returns:
            How many were retried, without those of responses that were lost.
        """
        params = bodies.query(
            download="1" if download else None,
            aggr_id=aggr_id,
            since=since,
            error_code=error_code,
            destination=destination,
        )
        async with aclosing(self._pages("POST", "retry", params)) as pages:
            return sum([int(bodies.member(page, "retried")) async for page in pages])

    async def jobs(
        self,
        *,
        state: str | None = None,
        callback: str | None = None,
        aggr_id: str | None = None,
        since: datetime | None = None,
    ) -> AsyncGenerator[ListedJob]:
        """Yield the jobs of a list, page by page; `docs/api.md` says which lists there are.

        Args:
            state: of their download. `pending` needs `aggr_id`.
            callback: only those whose callback ended so: `failed` or `succeeded`. Needed without `state`.
            aggr_id: only those of this aggregation.
            since: only those that ended at this time or later; one without a time zone is local time.
        """
        params = bodies.query(state=state, callback=callback, aggr_id=aggr_id, since=since)
        # A running job whose lease is renewed comes again on any later page; others, if at all, on the next.
        seen: set[str] = set()
        async with aclosing(self._pages("GET", "jobs", params)) as pages:
            async for page in pages:
                found = [bodies.parsed(ListedJob, row, page) for row in bodies.member(page, "jobs")]
                for job in found:
                    if job.id not in seen:
                        yield job
                ids = {job.id for job in found}
                seen = seen | ids if state == State.RUNNING else ids

    async def cancel(self, job_id: str) -> None:
        """Cancel a job that waits or is being downloaded."""
        await self._wire.call("DELETE", f"jobs/{bodies.segment(job_id)}")

    async def aggregations(self) -> AsyncGenerator[Aggregation]:
        """Yield the aggregations that have unfinished downloads, in no particular order."""
        seen = set()
        async with aclosing(self._pages("GET", "aggregations", {})) as pages:
            async for page in pages:
                for row in bodies.member(page, "aggregations"):
                    found = bodies.parsed(Aggregation, row, page)
                    if found.aggr_id not in seen:
                        seen.add(found.aggr_id)
                        yield found

    async def aggregation(self, aggr_id: str) -> Aggregation:
        """One aggregation that has unfinished downloads."""
        response = await self._wire.call("GET", f"aggregations/{bodies.segment(aggr_id)}")
        return bodies.parsed(Aggregation, json_of(response), response)

    async def adjust(self, aggr_id: str, **changes: Unpack[AggregationChanges]) -> Aggregation:
        """Change an aggregation, at once and over the fleet; fields that are not given stay as they are."""
        path = f"aggregations/{bodies.segment(aggr_id)}"
        response = await self._wire.call("PATCH", path, content=bodies.encode(changes))
        return bodies.parsed(Aggregation, json_of(response), response)

    async def _pages(
        self, method: str, path: str, params: Mapping[str, str]
    ) -> AsyncGenerator[httpx2.Response]:
        cursor = ""
        while True:
            query = {**params, "cursor": cursor} if cursor else params
            response = await self._wire.call(method, path, params=query)
            yield response
            if not (cursor := str(bodies.member(response, "cursor"))):
                return

    async def stats(self, role: str | None = None) -> Mapping[str, Any]:
        """What waits, over the fleet; with a role, the counters of the `processor` or the `notifier`."""
        return json_of(await self._wire.call("GET", f"stats/{bodies.segment(role)}" if role else "stats"))

    async def ping(self) -> None:
        """Raises `Unreachable` if nothing answers."""
        await self._wire.call("GET", "health/live")

    async def events(self) -> AsyncGenerator[Mapping[str, Any]]:
        """The state of the fleet, at once and after each change, until the service stops: `GET /events`."""
        event = ""
        async with aclosing(self._wire.lines("events")) as lines:
            async for line in lines:
                name, _, value = line.partition(": ")
                if name == "event":
                    event = value
                elif name == "data" and event == "snapshot":
                    yield json_object(value, self._wire.url)


def _too_late(left: int, timeout_s: float | None) -> WaitTimeout:
    return WaitTimeout(f"{left} of the jobs have not ended within {timeout_s:g} s")


def _blocking(
    method: Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[Client, _P], _T]:
    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return run(method(self.client, *args, **kwargs))

    update_wrapper(call, method)
    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, _P], AsyncGenerator[_T]],
) -> Callable[Concatenate[Client, _P], Generator[_T]]:
    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> Generator[_T]:
        found = method(self.client, *args, **kwargs)
        try:
            while True:
                try:
                    yield run(anext(found))
                except StopAsyncIteration:
                    return
        finally:
            run(found.aclose())

    update_wrapper(call, method)
    return call


class Client:
    """`AsyncClient` for programs without an event loop; close it with `with` or `close`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str = "",
        retries: int = RETRIES,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Opens nothing yet; arguments as for `AsyncClient`."""
        blocking = BlockingTransport(transport or httpx2.HTTPTransport())
        self.client = AsyncClient(url, token=token, retries=retries, transport=blocking)
        """Its coroutines never suspend here."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    close = _blocking(AsyncClient.aclose)
    submit = _blocking(AsyncClient.submit)
    submit_many = _iterating(AsyncClient.submit_many)
    job = _blocking(AsyncClient.job)
    wait = _blocking(AsyncClient.wait)
    wait_each = _iterating(AsyncClient.wait_each)
    retry = _blocking(AsyncClient.retry)
    retry_failed = _blocking(AsyncClient.retry_failed)
    jobs = _iterating(AsyncClient.jobs)
    cancel = _blocking(AsyncClient.cancel)
    aggregations = _iterating(AsyncClient.aggregations)
    aggregation = _blocking(AsyncClient.aggregation)
    adjust = _blocking(AsyncClient.adjust)
    stats = _blocking(AsyncClient.stats)
    ping = _blocking(AsyncClient.ping)
    events = _iterating(AsyncClient.events)
