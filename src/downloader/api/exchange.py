"""One request and its response, for both protocols: hypercorn's `HTTPStream` with every wait bounded.

The application runs in one task. Received parts of the body are kept until the application reads them; the
protocol bounds how much is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import trio
from hypercorn.protocol.events import Event, Request
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.typing import ConnectionState

from downloader.api.asgi import Gone, Message, send_problem
from downloader.api.limits import PIECE_BYTES, Connection
from downloader.api.problems import INTERNAL, Problem, Refused
from downloader.errors import first_leaf
from downloader.observe import Event as LogEvent
from downloader.observe import get_logger

STREAMED = "downloader.streamed"
"""Key in the ASGI scope, set by an application: the client may pause between two parts of the body for
`Limits.idle_s`."""

RESERVED = "downloader.reserved"
"""Key in the ASGI scope: the connection is of the reserve, on which only health checks are answered."""

_BODY_TIMEOUT = Problem(
    HTTPStatus.REQUEST_TIMEOUT,
    "request_timeout",
    detail="The request's body did not arrive in time.",
)

_log = get_logger()


@dataclass(frozen=True)
class BodyWanted(Event):
    """The application waits for more of the body; sends 100 Continue if the client expects it."""


@dataclass(frozen=True)
class BodyTaken(Event):
    """The application has read `size` bytes of the body."""

    size: int


class Exchange(HTTPStream):
    """One request and its response. The protocol passes the request to `handle`, which never waits."""

    def __init__(self, transport: Connection, protocol: H11Protocol | H2Protocol, stream_id: int) -> None:
        """`transport` is the connection, and `protocol` the one of it."""
        super().__init__(
            *(protocol.app, protocol.config, protocol.context, protocol.task_group, protocol.ssl),
            *(protocol.client, protocol.server, protocol.stream_send, stream_id),
        )
        self.ended = False
        """The whole request has been received."""
        self.held = 0
        """Received bytes of the body that the application has not read."""
        self.received = 0
        """Received bytes of the body."""
        self.failure: Refused | None = None
        """Why the rest of the body cannot be received."""
        self._transport = transport
        self._limits = self.config.limits  # type: ignore[attr-defined]  # of our `ServerConfig`
        self._body_time_s = self._limits.body_grace_s
        self._messages: deque[Message] = deque()
        self._changed = trio.Event()
        # `HTTPStream` then calls our `spawn_app`: hypercorn's adds a channel and its own error reports.
        self._tasks, self.task_group = self.task_group, self  # type: ignore[assignment]  # `HTTPStream` calls nothing else

    async def begin(
        self, *, version: str, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]
    ) -> None:
        """Start the application; `target` is path and query."""
        await self.handle(
            Request(
                stream_id=self.stream_id,
                headers=headers,
                http_version=version,
                method=method.decode("ascii"),
                raw_path=target,
                state=ConnectionState({}),
            )
        )

    @property
    def answered(self) -> bool:
        """The whole response has been passed to the protocol."""
        return self.state is ASGIHTTPState.CLOSED

    def fail(self, refused: Refused) -> None:
        """The rest of the body cannot be received; `receive` raises this."""
        self.failure = self.failure or refused
        self._changed.set()

    async def put(self, message: Any) -> None:
        """Add a message for the application."""
        body = message.get("body", b"")
        self.held += len(body)
        self.received += len(body)
        self.ended = self.ended or not message.get("more_body", True)
        self._messages.append(message)
        self._changed.set()

    async def spawn_app(
        self, _app: object, _config: object, scope: Any, _send: object
    ) -> Callable[[Any], Awaitable[None]]:
        """Run the application in a task; returns a function for messages to it. Called by `HTTPStream`."""
        scope[RESERVED] = self._transport.reserved
        self._transport.add_busy(1)
        self._tasks.spawn(self._run)
        return self.put

    async def _run(self) -> None:
        try:
            await self._answer()
            await self.app_send(None)  # cuts off an incomplete response
        except Gone:
            pass
        except Exception:  # noqa: BLE001  an error of one request must not end the others
            _log.exception(LogEvent.API_FAILED, path=self.scope["path"])
        finally:
            self._transport.add_busy(-1)

    async def _answer(self) -> None:
        problem: Problem | None = INTERNAL
        try:
            await self.app(self.scope, self.receive, self.send_message)  # type: ignore[call-arg, arg-type]  # without a wrapper
        except* Gone:
            problem = None
        except* Refused as group:
            refused = first_leaf(group)
            assert isinstance(refused, Refused)
            problem = refused.problem
        except* Exception:  # noqa: BLE001  an unforeseen error of a route is a 500, not an outage
            if not self.closed:
                _log.exception(LogEvent.API_FAILED, path=self.scope["path"])
        if problem is not None and self.state is ASGIHTTPState.REQUEST and not self.closed:
            await send_problem(self.send_message, problem)

    async def receive(self) -> Message:
        """The next received part of the body; after its end, wait for the client's disconnect.

        Raises:
            Refused: the body is malformed (400) or does not arrive (408).
        """
        while not self._messages:
            await self._wait_for_message()
        message = self._messages.popleft()
        if message["type"] != "http.request":
            self._messages.append(message)  # each further call gets it too
            return message
        pieces = [message["body"]]
        while self._messages and self._messages[0]["type"] == "http.request":
            message = self._messages.popleft()
            pieces.append(message["body"])
        body = b"".join(pieces)
        self.held -= len(body)
        self._body_time_s += len(body) / self._limits.body_rate
        await self.send(BodyTaken(self.stream_id, len(body)))
        return {"type": "http.request", "body": body, "more_body": message["more_body"]}

    async def _wait_for_message(self) -> None:
        """Wait for a message; the wait for a part of the body is bounded."""
        self._changed = trio.Event()
        if self.ended:
            await self._changed.wait()
            return
        if self.failure is not None:
            raise self.failure
        await self.send(BodyWanted(self.stream_id))
        self._body_time_s = min(self._body_time_s, self._limits.body_grace_s)
        limit_s = self._limits.idle_s if self.scope.get(STREAMED) else self._body_time_s
        self._transport.add_busy(-1)
        try:
            with trio.move_on_after(limit_s) as scope:
                await self._changed.wait()
        finally:
            self._transport.add_busy(1)
        self._body_time_s = scope.deadline - trio.current_time()
        if scope.cancelled_caught and not self._messages:
            raise Refused(_BODY_TIMEOUT)

    async def send_message(self, message: Message) -> None:
        """Send a message of the application, a long body in pieces.

        Raises:
            Gone: the client left or does not read.
        """
        for piece in _pieces(message):
            if self.closed:
                raise Gone
            await self.app_send(piece)  # type: ignore[arg-type]  # ASGI messages are dictionaries here


def _pieces(message: Message) -> Iterator[Message]:
    """The message, with a long body split over several."""
    body = message.get("body", b"")
    last = max(len(body) - 1, 0) // PIECE_BYTES * PIECE_BYTES
    for start in range(0, last, PIECE_BYTES):
        yield message | {"body": body[start : start + PIECE_BYTES], "more_body": True}
    yield message | {"body": body[last:]} if last else message
