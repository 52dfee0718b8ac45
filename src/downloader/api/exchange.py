"""One request and its response, for both protocols, as an ASGI application sees them; every wait is bounded.

The application runs in one task. Received parts of the body are kept until the application reads them; the
protocol bounds how much is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import trio
from hypercorn.protocol.events import Body, EndBody, Event, Response, StreamClosed
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import build_and_validate_headers, suppress_body

from downloader.api.asgi import AsgiApp, Gone, Headers, Message, send_problem
from downloader.api.limits import PIECE_BYTES, ClientConnection
from downloader.api.problems import INTERNAL, Problem, Refused
from downloader.errors import first_leaf
from downloader.observe import Event as LogEvent
from downloader.observe import get_logger

STREAMED = "downloader.streamed"
"""Key in the ASGI scope, set by an application: the client may pause between two parts of the body for
`Limits.idle_s`."""

ENDLESS = "downloader.endless"
"""Key in the ASGI scope, set by an application: its response does not end before the client leaves."""

RESERVED = "downloader.reserved"
"""Key in the ASGI scope: the connection is of the reserve, on which only health checks are answered."""

HEAD_TOO_LARGE = Problem(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "head_too_large",
    detail="The request line and headers are too large, or there are too many headers.",
)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all exchanges of a connection have in common."""

    app: AsgiApp
    config: Any
    """A `ServerConfig`."""
    context: WorkerContext
    tasks: TaskGroup
    """The nursery of the applications."""
    tls: bool
    client: tuple[str, int] | None
    server: tuple[str, int] | None


class Exchange:
    """One request and its response. The protocol passes the request on, without ever waiting."""

    idle = False
    """Read by hypercorn's `H2Protocol`; true of a WebSocket only."""

    def __init__(
        self,
        transport: ClientConnection,
        shared: Shared,
        send: Callable[[Event], Awaitable[None]],
        stream_id: int,
    ) -> None:
        """`transport` is the connection; `send` handles the events of this exchange."""
        self.closed = False
        self.answered = False
        """The whole response has been passed to the protocol."""
        self.ended = False
        """The whole request has been received."""
        self.held = 0
        """Received bytes of the body that the application has not read."""
        self.received = 0
        """Received bytes of the body."""
        self.failure: Refused | None = None
        """Why the rest of the body cannot be received."""
        self._transport = transport
        self._shared = shared
        self._send = send
        self._stream_id = stream_id
        self._scope: Message = {}
        self._head_too_large = False
        self._status = 0
        """The response's status, once it has begun."""
        self._limits = shared.config.limits
        self._body_time_s = self._limits.body_grace_s
        self._messages: deque[Message] = deque()
        self._changed = trio.Event()

    @property
    def endless(self) -> bool:
        """Whether the response does not end before the client leaves."""
        return ENDLESS in self._scope

    def begin(self, *, version: str, method: str, target: bytes, headers: Headers) -> None:
        """Start the application; `target` is path and query."""
        shared = self._shared
        self._head_too_large = len(headers) > self._limits.headers
        path, _, query = target.partition(b"?")
        self._scope = {
            "type": "http",
            "http_version": version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": method,
            "scheme": "https" if shared.tls else "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": [] if self._head_too_large else headers,
            "client": shared.client,
            "server": shared.server,
            "extensions": {},
            RESERVED: self._transport.reserved,
        }
        self._transport.add_busy(1)
        shared.tasks.spawn(self._run)

    async def handle(self, event: Event) -> None:
        """Handle an event of HTTP/2."""
        if isinstance(event, Body):
            self.put({"type": "http.request", "body": bytes(event.data), "more_body": True})
        elif isinstance(event, EndBody):
            self.put({"type": "http.request", "body": b"", "more_body": False})
        elif isinstance(event, StreamClosed):
            self.close()

    def close(self) -> None:
        """The response is complete, or the client has left."""
        if not self.closed:
            self.closed = True
            self.put({"type": "http.disconnect"})

    def fail(self, refused: Refused) -> None:
        """The rest of the body cannot be received; `receive` raises this."""
        self.failure = self.failure or refused
        self._changed.set()

    def put(self, message: Message) -> None:
        """Add a message for the application."""
        body = message.get("body", b"")
        self.held += len(body)
        self.received += len(body)
        self.ended = self.ended or not message.get("more_body", True)
        self._messages.append(message)
        self._changed.set()

    async def _run(self) -> None:
        try:
            await self._answer()
            if not self.closed:  # the response is incomplete: cut it off
                await self._send(StreamClosed(self._stream_id))
        except Gone:
            pass
        except Exception:  # noqa: BLE001  an error of one request must not end the others
            _log.exception(LogEvent.API_FAILED, path=self._scope["path"])
        finally:
            self._transport.add_busy(-1)

    async def _answer(self) -> None:
        problem: Problem | None = INTERNAL
        if self._head_too_large:
            await send_problem(self.send_message, HEAD_TOO_LARGE)
            return
        try:
            await self._shared.app(self._scope, self.receive, self.send_message)
        except* Gone:
            problem = None
        except* Refused as group:
            refused = first_leaf(group)
            assert isinstance(refused, Refused)
            problem = refused.problem
        except* Exception:  # noqa: BLE001  an unforeseen error of a route is a 500, not an outage
            if not self.closed:
                _log.exception(LogEvent.API_FAILED, path=self._scope["path"])
        if problem is not None and not self._status and not self.closed:
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
        await self._send(BodyTaken(self._stream_id, len(body)))
        return {"type": "http.request", "body": body, "more_body": message["more_body"]}

    async def _wait_for_message(self) -> None:
        """Wait for a message; the wait for a part of the body is bounded."""
        self._changed = trio.Event()
        if self.ended:
            await self._changed.wait()
            return
        if self.failure is not None:
            raise self.failure
        await self._send(BodyWanted(self._stream_id))
        self._body_time_s = min(self._body_time_s, self._limits.body_grace_s)
        limit_s = self._limits.idle_s if self._scope.get(STREAMED) else self._body_time_s
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
            await self._send_piece(piece)

    async def _send_piece(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._status:
            status, headers = int(message["status"]), build_and_validate_headers(message["headers"])
            await self._send(Response(self._stream_id, headers, status))
            self._status = status
        elif message["type"] == "http.response.body" and self._status:
            body = message.get("body", b"")
            if body and not suppress_body(self._scope["method"], self._status):
                await self._send(Body(self._stream_id, bytes(body)))
            if not message.get("more_body", False):
                await self._send(EndBody(self._stream_id))
                self.answered = True
                await self._send(StreamClosed(self._stream_id))
        else:
            raise RuntimeError(f"unexpected {message['type']}")


def _pieces(message: Message) -> Iterator[Message]:
    """The message, with a long body split over several."""
    body = message.get("body", b"")
    last = max(len(body) - 1, 0) // PIECE_BYTES * PIECE_BYTES
    for start in range(0, last, PIECE_BYTES):
        yield message | {"body": body[start : start + PIECE_BYTES], "more_body": True}
    yield message | {"body": body[last:]} if last else message
