"""Requests with retries, and adapters by which one implementation serves programs with and without a loop.

All code of the clients is written once, as coroutines over `httpx2.AsyncClient`. For `Client` the transport
and the pauses block, so that these coroutines never suspend, and `run` carries one out like a function.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import islice
from typing import Any, TypeVar

import anyio
import httpx2

from downloader import backoff
from downloader.client.errors import ApiProblem, ClientError, Unreachable
from downloader.errors import ConfigError
from downloader.model import describe_status
from downloader.net import parse_retry_after

TIMEOUT_S = 30.0
"""For each wait of a request, connecting excepted; the service answers within about 10 s, or with 503."""

CONNECT_S = 5.0

LEAST_S = 1.0
"""Shortest wait for an answer, even if less time is left: so a `timeout_s` of 0 asks once."""

FIRST_PAUSE_S = 0.5
"""Before the first retry; it doubles. The service's own `Retry-After` is 2 s."""

LONGEST_PAUSE_S = 60.0
"""A service that wants a longer pause than this is not asked again."""

_AGAIN = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""The request was not carried out."""

_UNCERTAIN = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT})
"""Answers of a proxy: the request may have been carried out."""

_ERRNO = re.compile(r"^\[Errno -?\d+\] ")

_T = TypeVar("_T")


class Wire:
    """Sends requests to one service, and repeats those that may be repeated."""

    def __init__(self, url: str, *, token: str, transport: httpx2.AsyncBaseTransport, retries: int) -> None:
        self.url = _checked(url)
        if not (token.isascii() and token.isprintable()):
            raise ConfigError("the token has a character that no header can have, such as a line break")
        self.sleep = transport.sleep if isinstance(transport, BlockingTransport) else anyio.sleep
        self._retries = retries
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            transport=transport,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx2.Timeout(TIMEOUT_S, connect=CONNECT_S),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
        until: float = math.inf,
    ) -> httpx2.Response:
        """A request, and its whole answer.

        Args:
            method: of HTTP.
            path: below the service's address, percent-encoded.
            params: the query.
            content: the body.
            headers: further headers.
            repeatable: it does no harm to carry out the request twice. Others are repeated only if they were
                certainly not carried out.
            until: the monotonic time after which there is no further try. An answer is waited for until then,
                and for `LEAST_S` at least.

        Raises:
            ApiProblem: a status other than 2xx.
            Unreachable: no answer.
        """
        for pause_s in self.pauses():
            left_s = max(until - time.monotonic(), 0.0)
            if pause_s is not None and pause_s > left_s:
                pause_s = None  # noqa: PLW2901  # it is the last try
            wait_s = max(left_s, LEAST_S)
            timeout = httpx2.Timeout(min(TIMEOUT_S, wait_s), connect=min(CONNECT_S, wait_s))
            try:
                response = await self._http.request(
                    method, path, params=params, content=content, headers=headers, timeout=timeout
                )
            except httpx2.RequestError as error:
                unsent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                if pause_s is None or not (repeatable or unsent):
                    raise self._no_answer(error) from error
                await self.sleep(pause_s)
                continue
            if response.is_success:
                return response
            again = response.status_code in _AGAIN or (repeatable and response.status_code in _UNCERTAIN)
            wanted_s = parse_retry_after(response.headers.get("retry-after", ""), datetime.now(UTC)) or 0.0
            if pause_s is None or not again or wanted_s > min(LONGEST_PAUSE_S, left_s):
                raise _problem(response)
            await self.sleep(max(pause_s, wanted_s))
        raise AssertionError  # `pauses` ends with None

    async def lines(self, path: str) -> AsyncGenerator[str]:
        """The lines of a stream of events; not repeated.

        Raises:
            ApiProblem: a status other than 2xx.
            ClientError: it is no such stream.
            Unreachable: no answer, or it was cut off.
        """
        try:
            async with self._http.stream("GET", path) as response:
                if not response.is_success:
                    await response.aread()
                    raise _problem(response)
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise not_a_downloader(response.url)
                lines = response.aiter_lines()
                try:
                    async for line in lines:
                        yield line
                finally:
                    await response.aclose()
                    # httpx2's generators do not close each other: reading on raises, which ends them all.
                    with suppress(httpx2.StreamError, httpx2.RequestError):
                        async for _ in lines:
                            pass
        except httpx2.RequestError as error:
            raise self._no_answer(error) from error

    def pauses(self) -> Iterator[float | None]:
        """The pause after each try if it fails, in seconds; `None` after the last."""
        yield from islice(backoff.pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S), self._retries)
        yield None

    def _no_answer(self, error: httpx2.RequestError) -> ClientError:
        if isinstance(error, httpx2.DecodingError):  # the body is not in the encoding that its head names
            return not_a_downloader(error.request.url)
        if isinstance(error, httpx2.TimeoutException):
            reason = "no answer in time"
        else:
            reason = _ERRNO.sub("", str(error)) or type(error).__name__
        return Unreachable(f"cannot reach {self.url}: {reason}")


def _checked(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
        parsed.host.encode("idna")  # as connecting does
    except (httpx2.InvalidURL, UnicodeError):
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 0) >= 2**16:
        raise ConfigError(f"the service's address must be an http or https URL, not {url!r}")
    return parsed


def _problem(response: httpx2.Response) -> ApiProblem:
    with suppress(ClientError):
        document = json_of(response)
        if document.get("code"):
            return ApiProblem.from_document(document, status=response.status_code)
    detail = f"{response.url.copy_with(query=None)} answered {describe_status(response.status_code)}"
    return ApiProblem(code="", detail=detail, status=response.status_code)


def json_of(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object in an answer; raises as `json_object`."""
    return json_object(response.content, response.url)


def json_object(text: str | bytes, url: httpx2.URL) -> dict[str, Any]:
    """The JSON object in a text from this URL.

    Raises:
        ClientError: there is none.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise not_a_downloader(url)
    return document


def not_a_downloader(url: httpx2.URL) -> ClientError:
    """The error for an answer that this service does not give."""
    return ClientError(
        f"{url.copy_with(query=None)} did not answer as a downloader does: is it another service?"
    )


class BlockingTransport(httpx2.AsyncBaseTransport):
    """A blocking transport as one for `httpx2.AsyncClient`; its coroutines never suspend."""

    def __init__(self, transport: httpx2.BaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """See httpx2."""
        response = self._transport.handle_request(request)
        assert isinstance(response.stream, httpx2.SyncByteStream)
        return httpx2.Response(
            status_code=response.status_code,
            headers=response.headers,
            stream=_Stream(response.stream),
            extensions=response.extensions,
        )

    async def sleep(self, seconds: float) -> None:
        """A pause, which blocks too."""
        time.sleep(seconds)  # noqa: ASYNC251  # for callers without an event loop

    async def aclose(self) -> None:
        """See httpx2."""
        self._transport.close()


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._stream:
            yield part

    async def aclose(self) -> None:
        self._stream.close()


def run(awaitable: Awaitable[_T]) -> _T:
    """The result of a coroutine that never suspends."""
    try:
        next(awaitable.__await__())
    except StopIteration as end:
        result: _T = end.value
        return result
    raise AssertionError("it waits for an event loop")
