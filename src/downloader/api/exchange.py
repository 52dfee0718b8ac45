"""One request and its answer: hypercorn's stream for an ASGI application, with every wait bounded.

Both protocols use it. It calls the application in one task, keeps what arrives of the body until the
application reads it, and sends the answer in pieces, each under a deadline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Protocol, cast
from urllib.parse import unquote_to_bytes

import trio
from hypercorn.config import Config
from hypercorn.protocol.events import Body, EndBody, Event, Request, StreamClosed
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.worker_context import WorkerContext

from downloader.api.asgi import AsgiApp, Gone, Message, send_problem
from downloader.api.places import PIECE_BYTES, Limits, Places
from downloader.api.problems import INTERNAL, Problem, Refused
from downloader.errors import first_leaf
from downloader.observe import Event as LogEvent
from downloader.observe import get_logger

_log = get_logger()


class Shared:
    """What the connections of one server share."""

    def __init__(self, app: AsgiApp, config: Config, limits: Limits, places: Places) -> None:
        self.app = app
        self.config = config
        self.limits = limits
        self.places = places
        self.context = WorkerContext(None)
        self.stopping = False
        """No connection is kept for another request."""
        self.sending: set[trio.CancelScope] = set()
        """Pieces of answers on their way."""

    async def stop(self) -> None:
        """Take no more requests; what is being sent now gets the shorter time."""
        self.stopping = True
        await self.context.terminated.set()
        deadline = trio.current_time() + self.limits.stop_send_s
        for scope in self.sending:
            scope.deadline = min(scope.deadline, deadline)

    async def send_in_time(self, send: Callable[[Any], Awaitable[object]], what: Any) -> None:
        """Send one piece of at most `PIECE_BYTES`.

        Raises:
            Gone: the client did not take it in time.
        """
        limit_s = self.limits.stop_send_s if self.stopping else self.limits.send_s
        with trio.CancelScope(deadline=trio.current_time() + limit_s) as scope:
            self.sending.add(scope)
            try:
                await send(what)
            finally:
                self.sending.discard(scope)
        if scope.cancelled_caught:
            raise Gone


class Transport(Protocol):
    """The connection of an exchange, whatever its protocol."""

    shared: Shared
    reserved: bool
    busy: int
    """Exchanges that do not wait for the client."""

    def update(self) -> None:
        """Note that `busy` has changed."""


class Protocol_(Protocol):  # noqa: N801  the name Protocol is typing's
    """What the protocol does for an exchange."""

    async def want_body(self, stream_id: int) -> None:
        """The application waits for more of the body."""

    async def consumed(self, stream_id: int, size: int) -> None:
        """The application has taken so many bytes of the body."""


class Exchange(HTTPStream):
    """One request. The protocol feeds it by `handle`; it must be the only one to do so."""

    def __init__(
        self, transport: Transport, protocol: Protocol_, *words: Any, head_problem: Problem | None = None
    ) -> None:
        """`words`: `HTTPStream`'s. With `head_problem` the application is not asked."""
        super().__init__(*words)
        self.start_time = 0.0  # hypercorn subtracts it for its access log, which is off
        self.ended = False
        """The request has been received whole."""
        self.finished = False
        """The answer has been sent whole."""
        self.held = 0
        """Bytes of the body that the application has not taken."""
        self._pieces: deque[bytes] = deque()
        self._told_end = False
        self._left = False
        self._failure = Refused(head_problem) if head_problem is not None else None
        self._news: trio.Event | None = None
        self._transport = transport
        self._protocol = protocol
        self._shared = transport.shared
        self._patience_s = transport.shared.limits.body_grace_s
        self._gained = 0

    @property
    def answered(self) -> bool:
        """The application has answered, and all of it has been passed on."""
        return self.state is ASGIHTTPState.CLOSED

    async def handle(self, event: Event) -> None:
        """Take what the protocol has received; never waits."""
        if isinstance(event, Request):
            self._begin(event)
        elif isinstance(event, Body):
            if not self.closed:
                self._pieces.append(event.data)
                self.held += len(event.data)
                self._gained += len(event.data)
        elif isinstance(event, EndBody):
            self.ended = True
        elif isinstance(event, StreamClosed):
            self.closed = True
        self._wake()

    def fail(self, refused: Refused) -> None:
        """The rest of the body cannot be received; told to the application when it asks for it."""
        self._failure = self._failure or refused
        self._wake()

    def leave(self) -> None:
        """The client sends no more: as far as the application can tell, it has left."""
        self._left = True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()

    def _begin(self, request: Request) -> None:
        path, _, query = request.raw_path.partition(b"?")
        self.scope = cast(
            "Any",
            {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.4"},
                "http_version": request.http_version,
                "method": request.method,
                "scheme": self.scheme,
                "path": unquote_to_bytes(path).decode("utf-8", "replace"),
                "raw_path": path,
                "query_string": query,
                "root_path": "",
                "headers": request.headers,
                "client": self.client,
                "server": self.server,
                "extensions": {},
                RESERVED: self._transport.reserved,
            },
        )
        self._transport.busy += 1
        self._transport.update()
        self.task_group.spawn(self._run)

    async def _run(self) -> None:
        try:
            await self._answer()
        except Gone:
            pass
        except Exception:  # noqa: BLE001  one client's trouble must not take the others down
            _log.exception(LogEvent.API_FAILED, path=self.scope["path"])
        finally:
            self._transport.busy -= 1
            self._transport.update()

    async def _answer(self) -> None:
        failure: Problem | None = INTERNAL
        gone = False
        try:
            if self._failure is not None:
                raise self._failure  # noqa: TRY301  answered as if the application had raised it
            await self._shared.app(cast("Message", self.scope), self.receive, self.send_message)
        except* Gone:
            gone = True
        except* Refused as group:
            refused = first_leaf(group)
            assert isinstance(refused, Refused)
            failure = refused.problem
        except* Exception:  # noqa: BLE001  an unforeseen error in a view is one client's 500, not an outage
            if not self.closed:
                _log.exception(LogEvent.API_FAILED, path=self.scope["path"])
        if not gone and failure is not None and self.state is ASGIHTTPState.REQUEST and not self.closed:
            await send_problem(self.send_message, failure)
        if not self.finished:
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def receive(self) -> Message:
        """The next piece of the request's body; after its end, the client's leaving.

        Raises:
            Refused: the body is malformed (400) or does not arrive (408).
        """
        if not self._pieces and not self.ended and not self.closed:
            await self._wait_for_body()
        if self._pieces:
            data = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self.held = 0
            self._told_end = self.ended
            await self._protocol.consumed(self.stream_id, len(data))
            return {"type": "http.request", "body": data, "more_body": not self._told_end}
        if self.ended and not self._told_end:
            self._told_end = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while not self.closed and not self._left:
            self._news = trio.Event()
            await self._news.wait()
        return {"type": "http.disconnect"}

    async def _wait_for_body(self) -> None:
        """Wait for more of the body; only time spent waiting is charged against the client."""
        limits = self._shared.limits
        self._patience_s = min(self._patience_s + self._gained / limits.body_rate, limits.body_grace_s)
        self._gained = 0
        started = trio.current_time()
        await self._protocol.want_body(self.stream_id)
        self._transport.busy -= 1
        self._transport.update()
        try:
            limit_s = self._shared.limits.idle_s if self.scope.get(STREAMED) else self._patience_s
            with trio.move_on_after(limit_s) as scope:
                while not self._pieces and not self.ended and not self.closed and self._failure is None:
                    self._news = trio.Event()
                    await self._news.wait()
        finally:
            self._transport.busy += 1
            self._transport.update()
        if self._failure is not None and not self._pieces:
            raise self._failure
        if scope.cancelled_caught:
            raise Refused(_BODY_TIMEOUT)
        self._patience_s -= trio.current_time() - started

    async def send_message(self, message: Message) -> None:
        """Take the answer from the application; its head goes out with the first piece of its body.

        Raises:
            Gone: the client left or does not read.
        """
        if self.closed:
            raise Gone
        body, more = message.get("body", b""), message.get("more_body", False)
        if message["type"] != "http.response.body" or len(body) <= PIECE_BYTES:
            await self._send_piece(message)
        else:
            view = memoryview(body)
            for start in range(0, len(body), PIECE_BYTES):
                piece = bytes(view[start : start + PIECE_BYTES])
                rest = more or start + PIECE_BYTES < len(body)
                await self._send_piece({"type": "http.response.body", "body": piece, "more_body": rest})
        self.finished = message["type"] == "http.response.body" and not more

    async def _send_piece(self, message: Message) -> None:
        if self.scope["http_version"] == "2":  # whose flow control the client can use to take nothing
            await self._shared.send_in_time(self.app_send, message)
        else:
            await self.app_send(cast("Any", message))
        if self.closed and message.get("more_body", False):
            raise Gone


STREAMED = "downloader.streamed"
"""Key of the ASGI scope, set by an application: the client may take its time between two pieces of the body,
as between two requests."""

RESERVED = "downloader.reserved"
"""Key of the ASGI scope: the connection has a place of the reserve, so only health is answered."""

_BODY_TIMEOUT = Problem(
    status=HTTPStatus.REQUEST_TIMEOUT,
    code="request_timeout",
    detail="The request's body did not arrive in time.",
)
