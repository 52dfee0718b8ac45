"""One client's HTTP/1.1 connection: h11 between a Trio stream and an ASGI application.

Every wait has a bound (`Limits`), nothing is sent under a shield, and a head that invites request
smuggling is answered 400 and the connection closed (`downloader.api.wire`).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import h11
import trio

from downloader.api.problems import INTERNAL, Problem, Refused, bad_request
from downloader.api.shared import CHUNK_BYTES, Gone, Message, Shared
from downloader.api.wire import END_OF_HEAD, Head, check_lines, check_request
from downloader.observe import Event, get_logger

_log = get_logger()


class Connection:
    """One connection. Its buffer holds what was received and has not been given to h11 yet."""

    def __init__(self, shared: Shared, stream: trio.SocketStream) -> None:
        self.limits = shared.limits
        self.h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=shared.limits.head_bytes)
        self.buffer = bytearray()
        self._shared = shared
        self._stream = stream
        self._first = True
        self._peers = (_address(stream.socket.getpeername()), _address(stream.socket.getsockname()))

    async def serve(self) -> None:
        """Serve requests until one side has had enough; the caller closes the stream.

        Raises:
            Gone: the client left or does not read.
        """
        try:
            while await self._serve_request():
                self.h11.start_next_cycle()
                self._first = False
        except Refused as refused:
            await self.refuse(refused.problem)

    async def _serve_request(self) -> bool:
        """One request and its answer; true when the connection is fit for another."""
        data = await self._read_head()
        if data is None:
            return False
        head = self._parse_head(data)
        exchange = Exchange(self, head)
        failure = await self._call_app(head, exchange)
        if not exchange.started:
            await self.refuse(failure or INTERNAL, head_only=exchange.head_only)
        elif exchange.finished and not exchange.body_done:
            await self._linger()
        return (
            exchange.finished
            and self.h11.our_state is h11.DONE
            and self.h11.their_state is h11.DONE
            and not self._shared.stopping
        )

    async def _call_app(self, head: Head, exchange: Exchange) -> Problem | None:
        scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": head.version,
            "method": head.method,
            "scheme": "http",
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "root_path": "",
            "headers": head.headers,
            "client": self._peers[0],
            "server": self._peers[1],
            "extensions": {},
        }
        failure, gone = None, False
        try:
            await self._shared.app(scope, exchange.receive, exchange.send)
        except* Gone:
            gone = True  # raised below: whatever is raised here would come out in a group
        except* Refused as group:
            failure = _leaf(group).problem
        except* Exception:  # noqa: BLE001  an unforeseen error in a view is one client's 500, not an outage
            if not exchange.gone:
                _log.exception(Event.API_FAILED, path=head.path)
        if gone or exchange.gone:
            raise Gone
        return failure

    async def _read_head(self) -> bytes | None:
        """The next request's head, `None` when none came in time or the connection is to end."""
        if not self.buffer:
            limit_s = self.limits.head_s if self._first else self.limits.idle_s
            with trio.move_on_after(limit_s) as idle:
                self._shared.idle[self] = idle
                try:
                    if self._shared.stopping or not await self.fill():
                        return None
                finally:
                    self._shared.idle.pop(self, None)
            if idle.cancelled_caught:
                return None
        if self.buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: one empty line before a request is ignored
            del self.buffer[:2]
        if (end := self.buffer.find(END_OF_HEAD)) < 0:
            end = await self._read_rest_of_head()
        if end > self.limits.head_bytes:
            raise _HEAD_TOO_LARGE
        if end < 0:
            return None
        data = bytes(self.buffer[: end + 4])
        del self.buffer[: end + 4]
        return data

    async def _read_rest_of_head(self) -> int:
        with trio.move_on_after(self.limits.head_s) as scope:
            while (end := self.buffer.find(END_OF_HEAD)) < 0:
                if len(self.buffer) > self.limits.head_bytes:
                    raise _HEAD_TOO_LARGE
                check_lines(self.buffer, complete=False)
                if not await self.fill():
                    return -1
        if scope.cancelled_caught:
            raise _timeout("The request's head did not arrive in time.")
        return end

    def _parse_head(self, data: bytes) -> Head:
        check_lines(data)
        self.h11.receive_data(data)
        try:
            request = self.h11.next_event()
        except h11.RemoteProtocolError as error:
            raise malformed(error) from None
        if not isinstance(request, h11.Request):
            raise bad_request("bad_request", "This is not an HTTP request.")
        return check_request(request)

    async def fill(self) -> bool:
        """Receive some bytes into the buffer; false at the end of the stream.

        Raises:
            Gone: the connection is broken.
        """
        try:
            data = await self._stream.receive_some(CHUNK_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Gone from None
        self.buffer += data
        return bool(data)

    async def write(self, data: bytes) -> None:
        """Send all of it, under a deadline for each 64 KiB.

        Raises:
            Gone: the client left, or did not read in time.
        """
        try:
            for start in range(0, len(data), CHUNK_BYTES):
                with trio.fail_after(self.limits.send_s):
                    await self._stream.send_all(memoryview(data)[start : start + CHUNK_BYTES])
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            raise Gone from None

    async def refuse(self, problem: Problem, *, head_only: bool = False) -> None:
        """Answer with a problem where an answer is still possible, and give the client time to read it.

        Raises:
            Gone: the client left or does not read.
        """
        if self.h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = problem.body()
        headers = [*problem.headers(), (b"content-length", b"%d" % len(body))]
        data = self.response_head(problem.status, headers, close=True)
        await self.write(data if head_only else data + body)
        await self._linger()

    def response_head(self, status: int, headers: list[tuple[bytes, bytes]], *, close: bool) -> bytes:
        """Status line and headers as bytes, with `Date`, and `Connection: close` where that will follow."""
        headers.append((b"date", self._shared.date()))
        if close or self._shared.stopping:
            headers.append((b"connection", b"close"))
        return self.h11.send(h11.Response(status_code=status, headers=headers)) or b""

    async def _linger(self) -> None:
        left = self.limits.linger_bytes
        with trio.move_on_after(self.limits.linger_s):
            try:
                await self._stream.send_eof()
                while left > 0 and (data := await self._stream.receive_some(CHUNK_BYTES)):
                    left -= len(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return


class Exchange:
    """One request and its response: the `receive` and `send` of an ASGI application."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self.started = False
        """The response's head has been sent."""
        self.finished = False
        """The whole response has been sent."""
        self.body_done = False
        """The whole request has been received."""
        self.gone = False
        """The application was told by `send` that the client has left; how it then ends is its own affair
        (Quart 0.23 makes an exception of its own of `Gone`)."""
        self.head_only = head.method == "HEAD"
        self._connection = connection
        self._chunked = head.chunked
        self._unfed = head.content_length
        """Bytes of the body that h11 has not been given; the next request's stay out of it."""
        self._patience_s = connection.limits.body_grace_s
        self._response: Message | None = None
        self._bodiless = not head.chunked and not head.content_length
        """Nothing of the body has been asked for yet, and there is none."""
        if self._bodiless:  # whether the application asks or not, the connection is fit for another request
            self.body_done = isinstance(connection.h11.next_event(), h11.EndOfMessage)

    async def receive(self) -> Message:
        """The next piece of the request's body; after its end, the client's leaving.

        Raises:
            Refused: the body is malformed (400) or does not arrive (408).
        """
        if self._bodiless:
            self._bodiless = False
            return {"type": "http.request", "body": b"", "more_body": False}
        if not self.body_done:
            return await self._receive_body()
        try:
            while len(self._connection.buffer) < CHUNK_BYTES and await self._connection.fill():
                pass
            if len(self._connection.buffer) >= CHUNK_BYTES:
                await trio.sleep_forever()  # it sends ahead: its next request is read after this answer
        except Gone:
            pass
        return {"type": "http.disconnect"}

    async def _receive_body(self) -> Message:
        connection = self._connection
        if connection.h11.they_are_waiting_for_100_continue:
            go_ahead = h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[])
            await connection.write(connection.h11.send(go_ahead) or b"")
        event = await self._next_event()
        data = b""
        if isinstance(event, h11.Data):
            data = bytes(event.data)
            if not self._chunked and not self._unfed:
                event = await self._next_event()
        self.body_done = isinstance(event, h11.EndOfMessage)
        return {"type": "http.request", "body": data, "more_body": not self.body_done}

    async def _next_event(self) -> object:
        connection = self._connection
        while True:
            try:
                event = connection.h11.next_event()
            except h11.RemoteProtocolError as error:
                raise malformed(error) from None
            if event is not h11.NEED_DATA:
                return event
            if not connection.buffer:
                await self._fill()
            data = connection.buffer if self._chunked else connection.buffer[: self._unfed]
            connection.h11.receive_data(bytes(data))
            self._unfed -= 0 if self._chunked else len(data)
            del connection.buffer[: len(data)]

    async def _fill(self) -> None:
        """Wait for more of the body; only time spent waiting is charged against the client."""
        started = trio.current_time()
        with trio.move_on_after(self._patience_s) as scope:
            if not await self._connection.fill():
                raise Gone
        if scope.cancelled_caught:
            raise _timeout("The request's body did not arrive in time.")
        gained = len(self._connection.buffer) / self._connection.limits.body_rate
        self._patience_s += gained - (trio.current_time() - started)

    async def send(self, message: Message) -> None:
        """Take the response from the application; its head goes out with the first piece of its body.

        Raises:
            Gone: the client left or does not read.
        """
        if message["type"] == "http.response.start":
            self._response = message
            return
        connection, body = self._connection, message.get("body", b"")
        more = message.get("more_body", False)
        data = b""
        if not self.started:
            data = self._head()
        if body and not self.head_only:
            data += connection.h11.send(h11.Data(data=body)) or b""
        if not more:
            data += connection.h11.send(h11.EndOfMessage()) or b""
        if data:
            try:
                await connection.write(data)
            except Gone:
                self.gone = True
                raise
        self.finished = not more

    def _head(self) -> bytes:
        if self._response is None:
            raise RuntimeError("a response's body came before its start")
        # A chunked request may hide bytes that h11 reads otherwise than a proxy does (a bare LF in its
        # trailers), and an unfinished one leaves bytes behind: neither connection is used again.
        close = self._chunked or not self.body_done
        head = self._connection.response_head(
            self._response["status"], list(self._response["headers"]), close=close
        )
        self.started = True
        return head


_HEAD_TOO_LARGE = Refused(
    Problem(
        status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        code="head_too_large",
        detail="The request line and headers are too large.",
    )
)


def malformed(error: h11.RemoteProtocolError) -> Refused:
    """What to answer where h11 does not understand the client; its text may quote it and is not passed on."""
    if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return _HEAD_TOO_LARGE
    return bad_request("bad_request", "This is not a well-formed HTTP/1.1 request.")


def _timeout(detail: str) -> Refused:
    return Refused(Problem(status=HTTPStatus.REQUEST_TIMEOUT, code="request_timeout", detail=detail))


def _leaf(group: BaseException) -> Refused:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    assert isinstance(group, Refused)
    return group


def _address(name: Any) -> tuple[str, int] | None:
    """`(host, port)`; `None` for a unix socket, whose peers have no name."""
    return (name[0], name[1]) if isinstance(name, tuple) else None
