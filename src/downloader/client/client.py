"""`AsyncClient` and `Client`: both carry out `Calls`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import aclosing, closing, suppress
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import anyio
import httpx2

from downloader.client.calls import Calls, Items, ManySteps, Pause, Reply, Step, Steps, one
from downloader.client.messages import (
    Batches,
    JobFields,
    Snapshots,
    Submitted,
    no_response,
    not_a_downloader,
    success,
)
from downloader.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:8000"
"""The address of `downloader run` by default."""

RETRIES = 5
"""The pauses between tries are at most about 15 s in total: a service restarts or fails over in less."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _awaited(
    method: Callable[Concatenate[Calls, _P], Steps[_T]],
) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, _T]]:
    async def call(self: AsyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._run(method(self._calls, *args, **kwargs))

    return update_wrapper(call, method)


def _async_iterated(
    method: Callable[Concatenate[Calls, _P], ManySteps[_T]],
) -> Callable[Concatenate[AsyncClient, _P], AsyncGenerator[_T]]:
    def call(self: AsyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> AsyncGenerator[_T]:
        return self._each(method(self._calls, *args, **kwargs))

    return update_wrapper(call, method)


def _blocking(
    method: Callable[Concatenate[Calls, _P], Steps[_T]],
) -> Callable[Concatenate[Client, _P], _T]:
    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._run(method(self._calls, *args, **kwargs))

    return update_wrapper(call, method)


def _iterated(
    method: Callable[Concatenate[Calls, _P], ManySteps[_T]],
) -> Callable[Concatenate[Client, _P], Generator[_T]]:
    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> Generator[_T]:
        return self._each(method(self._calls, *args, **kwargs))

    return update_wrapper(call, method)


class AsyncClient:
    """A client of one service, on Trio or asyncio; close with `async with` or `aclose`.

    Each method raises `ApiProblem` if the service refuses, and `Unreachable` if it does not respond. A
    request is repeated up to `retries` times if the service could not be reached or responded 429 or 503. If
    the response was lost, the request is repeated only if a second execution does no harm.
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
        self._http = httpx2.AsyncClient(
            **_arguments(url, token), transport=transport or httpx2.AsyncHTTPTransport()
        )
        self._calls = Calls(self._http.build_request, url, retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    submit = _awaited(Calls.submit)

    async def submit_many(
        self, jobs: Iterable[JobFields] | AsyncIterable[JobFields]
    ) -> AsyncGenerator[Submitted]:
        """Submit any number of jobs, in batches; yields the response to each, in order.

        A job with a problem does not affect the others. A job that was yielded with an id is accepted, even
        if the call fails later. Jobs are taken from the iterable as they are sent. Each carries an
        idempotency key, as for `submit`.
        """
        batches = Batches()
        async with aclosing(_items(jobs)) as items:
            async for job in items:
                for submitted in await self._run(self._calls.submit_batch(batches.add(job))):
                    yield submitted
        for submitted in await self._run(self._calls.submit_batch(batches.rest())):
            yield submitted

    job = _awaited(Calls.job)
    wait = _awaited(Calls.wait)
    wait_each = _async_iterated(Calls.wait_each)
    retry = _awaited(Calls.retry)
    retry_failed = _awaited(Calls.retry_failed)
    failures = _awaited(Calls.failures)
    jobs = _async_iterated(Calls.jobs)
    cancel = _awaited(Calls.cancel)
    purge = _awaited(Calls.purge)
    cancel_jobs = _awaited(Calls.cancel_jobs)
    groups = _async_iterated(Calls.groups)
    group = _awaited(Calls.group)
    set_group_callback = _awaited(Calls.set_group_callback)
    seal_group = _awaited(Calls.seal_group)
    reopen_group = _awaited(Calls.reopen_group)
    wait_group = _awaited(Calls.wait_group)
    cancel_group = _awaited(Calls.cancel_group)
    aggregations = _async_iterated(Calls.aggregations)
    aggregation = _awaited(Calls.aggregation)
    adjust = _awaited(Calls.adjust)
    pause_all = _awaited(Calls.pause_all)
    stats = _awaited(Calls.stats)
    backlog = _awaited(Calls.backlog)
    audit = _awaited(Calls.audit)
    ping = _awaited(Calls.ping)

    async def events(self) -> AsyncGenerator[Mapping[str, Any]]:
        """The state of the fleet, at once and after each change, until the service stops: `GET /events`.

        The request is not repeated.
        """
        snapshots = Snapshots(self._calls.url)
        try:
            async with self._http.stream("GET", "events") as response:
                if not response.is_success:
                    await response.aread()
                _check_events(response)
                lines = response.aiter_lines()
                try:
                    async for line in lines:
                        if (snapshot := snapshots.read(line)) is not None:
                            yield snapshot
                finally:
                    await response.aclose()
                    # httpx2's generators do not close each other: reading on raises, which ends them all.
                    with suppress(httpx2.StreamError, httpx2.RequestError):
                        async for _ in lines:
                            pass
        except httpx2.RequestError as error:
            raise no_response(error, self._calls.url) from error

    async def _run(self, steps: Steps[_T]) -> _T:
        async with aclosing(self._each(one(steps))) as results:
            return await anext(results)

    async def _each(self, steps: ManySteps[_T]) -> AsyncGenerator[_T]:
        reply: Reply = None
        with closing(steps), suppress(StopIteration):
            while True:
                step = steps.send(reply)
                if isinstance(step, Items):
                    reply = None
                    for item in step.items:
                        yield item
                else:
                    reply = await self._do(step)

    async def _do(self, step: Step) -> Reply:
        if isinstance(step, Pause):
            await anyio.sleep(step.seconds)
            return None
        try:
            return await self._http.send(step)
        except httpx2.RequestError as error:
            return error


class Client:
    """`AsyncClient` for programs without an event loop; close with `with` or `close`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str = "",
        retries: int = RETRIES,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Opens nothing yet; arguments as for `AsyncClient`."""
        self._http = httpx2.Client(**_arguments(url, token), transport=transport or httpx2.HTTPTransport())
        self._calls = Calls(self._http.build_request, url, retries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    submit = _blocking(Calls.submit)

    def submit_many(self, jobs: Iterable[JobFields]) -> Generator[Submitted]:
        """Submit any number of jobs, in batches; yields the response to each, as `AsyncClient` does."""
        batches = Batches()
        for job in jobs:
            yield from self._run(self._calls.submit_batch(batches.add(job)))
        yield from self._run(self._calls.submit_batch(batches.rest()))

    job = _blocking(Calls.job)
    wait = _blocking(Calls.wait)
    wait_each = _iterated(Calls.wait_each)
    retry = _blocking(Calls.retry)
    retry_failed = _blocking(Calls.retry_failed)
    failures = _blocking(Calls.failures)
    jobs = _iterated(Calls.jobs)
    cancel = _blocking(Calls.cancel)
    purge = _blocking(Calls.purge)
    cancel_jobs = _blocking(Calls.cancel_jobs)
    groups = _iterated(Calls.groups)
    group = _blocking(Calls.group)
    set_group_callback = _blocking(Calls.set_group_callback)
    seal_group = _blocking(Calls.seal_group)
    reopen_group = _blocking(Calls.reopen_group)
    wait_group = _blocking(Calls.wait_group)
    cancel_group = _blocking(Calls.cancel_group)
    aggregations = _iterated(Calls.aggregations)
    aggregation = _blocking(Calls.aggregation)
    adjust = _blocking(Calls.adjust)
    pause_all = _blocking(Calls.pause_all)
    stats = _blocking(Calls.stats)
    backlog = _blocking(Calls.backlog)
    audit = _blocking(Calls.audit)
    ping = _blocking(Calls.ping)

    def events(self) -> Generator[Mapping[str, Any]]:
        """The state of the fleet, at once and after each change, as from `AsyncClient`."""
        snapshots = Snapshots(self._calls.url)
        try:
            with self._http.stream("GET", "events") as response:
                if not response.is_success:
                    response.read()
                _check_events(response)
                for line in response.iter_lines():
                    if (snapshot := snapshots.read(line)) is not None:
                        yield snapshot
        except httpx2.RequestError as error:
            raise no_response(error, self._calls.url) from error

    def _run(self, steps: Steps[_T]) -> _T:
        return next(self._each(one(steps)))

    def _each(self, steps: ManySteps[_T]) -> Generator[_T]:
        reply: Reply = None
        with closing(steps), suppress(StopIteration):
            while True:
                step = steps.send(reply)
                if isinstance(step, Items):
                    reply = None
                    yield from step.items
                else:
                    reply = self._do(step)

    def _do(self, step: Step) -> Reply:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            return self._http.send(step)
        except httpx2.RequestError as error:
            return error


def _arguments(url: str, token: str) -> dict[str, Any]:
    """The arguments of httpx2's clients."""
    try:
        parsed = httpx2.URL(url)
        parsed.host.encode("idna")  # as connecting does
    except (httpx2.InvalidURL, UnicodeError):
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 0) >= 2**16:
        raise ConfigError(f"the service's address must be an http or https URL, not {url!r}")
    if not (token.isascii() and token.isprintable()):
        raise ConfigError("the token has a character that no header can have, such as a line break")
    return {"base_url": parsed, "headers": {"Authorization": f"Bearer {token}"} if token else {}}


def _check_events(response: httpx2.Response) -> None:
    """Check that a response is a stream of events; raises as `success` does."""
    success(response, response.url)
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        raise not_a_downloader(response.url)


async def _items(jobs: Iterable[JobFields] | AsyncIterable[JobFields]) -> AsyncGenerator[JobFields]:
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
    else:
        for job in jobs:
            yield job
