"""HTTP/2 as hypercorn serves it, with bounds on what a client may have open, make us keep, or make us do.

Whoever sends more frames that carry nothing, or resets more requests, than its requests account for is told
ENHANCE_YOUR_CALM and its connection ends (RFC 9113, 10.5). Priorities are ignored (5.3.2), as are
WebSockets; the client's flow control windows open as the application reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio
from h2 import events, exceptions
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer
from hypercorn.utils import filter_pseudo_headers
from hyperframe.frame import GoAwayFrame

from downloader.api.exchange import Exchange, Shared, Transport
from downloader.api.problems import Problem, bad_request

FEED_BYTES = 4096
"""Given to h2 between two checkpoints: in the smallest frames, 10 ms of its time."""

WINDOW_BYTES = 1024**2
"""Bodies of one connection that applications have not read; of one stream, h2's 64 KiB."""

CREDIT = 1000
"""Frames without use that a client may send at first."""

REQUEST_CREDIT = 10
"""More with each request and with each answer that it takes, as for window updates."""

RESET_COST = 25
"""Of a request that the client resets: more than it has brought."""

USEFUL_BYTES = 32
"""Of a DATA frame that counts as useful."""

MOST_REQUESTS = 50_000
"""On one connection, for h2 keeps a record of each."""


class Http2(H2Protocol):
    """One HTTP/2 connection. `handle` is called by its reader only."""

    streams: dict[int, Exchange]  # type: ignore[assignment]  # none of them is a WebSocket

    def __init__(self, transport: Transport, *words: Any) -> None:
        """`words`: `H2Protocol`'s."""
        super().__init__(*words)
        self._shared: Shared = transport.shared
        self._transport = transport
        self._credit = CREDIT
        self._last_stream = 0
        self._unwanted = 0
        self._draining = False
        limits = transport.shared.limits
        self.connection.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.head_bytes,
            },
        )
        self.connection.decoder.max_header_list_size = limits.head_bytes

    async def initiate(
        self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None
    ) -> None:
        """Begin, as a rule by what follows the client's preface; `headers`: of a request that upgraded.

        Raises:
            ProtocolError: the client's settings are malformed.
        """
        if settings is None:
            self.connection.initiate_connection()
        else:
            self.connection.initiate_upgrade_connection(settings)
        self.connection.increment_flow_control_window(WINDOW_BYTES)
        await self._flush()
        self.task_group.spawn(self.send_task)
        if headers is not None:
            await self._create_stream(events.RequestReceived(stream_id=1, headers=headers))
            await self.streams[1].handle(EndBody(stream_id=1))

    async def handle(self, event: Event) -> None:
        """Take bytes from the client, or its leaving."""
        if not isinstance(event, RawData):
            await super().handle(event)
            for buffer in list(self.stream_buffers.values()):  # applications may wait for room in them
                await buffer.close()
            return
        for start in range(0, len(event.data), FEED_BYTES):
            if self.closed:
                return
            try:
                found = self.connection.receive_data(event.data[start : start + FEED_BYTES])
            except exceptions.ProtocolError:
                await self._end()
                return
            await self._handle_events(found)
            await trio.lowlevel.checkpoint()

    async def drain(self) -> None:
        """Take no more requests; the connection ends with the last one that is being answered."""
        if not self._draining:
            self._draining = True
            # h2's own way ends the requests in flight too.
            frame = GoAwayFrame(last_stream_id=self._last_stream, error_code=ErrorCodes.NO_ERROR)
            await self.send(RawData(data=frame.serialize()))
        if not self.streams:
            await self.send(Closed())

    async def _end(self, code: ErrorCodes | None = None) -> None:
        if code is not None:
            with suppress(exceptions.ProtocolError):
                self.connection.close_connection(code)
        await self._flush()
        await self.handle(Closed())
        await self.send(Closed())

    async def _handle_events(self, found: Sequence[events.Event]) -> None:
        for event in found:
            match event:
                case events.RequestReceived():
                    self._credit += REQUEST_CREDIT
                    await self._request(event)
                case events.DataReceived():
                    await self._data(event)
                case events.StreamEnded():
                    if event.stream_id in self.streams:
                        await self.streams[event.stream_id].handle(EndBody(stream_id=event.stream_id))
                case events.StreamReset():
                    self._credit -= RESET_COST
                    await self._close_stream(event.stream_id)
                    await self._window_updated(event.stream_id)
                case events.ConnectionTerminated():
                    await self._end()
                    return
                case _:
                    self._credit -= 1
                    await self._windows(event)
            if self._credit < 0:
                await self._end(ErrorCodes.ENHANCE_YOUR_CALM)
                return
        await self._flush()

    async def _windows(self, event: events.Event) -> None:
        if isinstance(event, events.WindowUpdated):
            await self._window_updated(event.stream_id)
        elif isinstance(event, events.RemoteSettingsChanged):
            await self._window_updated(None)

    async def _request(self, event: events.RequestReceived) -> None:
        assert event.stream_id is not None
        if self._draining or self._shared.stopping:
            self.connection.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self._last_stream = event.stream_id
        await self._create_stream(event)
        if self.keep_alive_requests >= MOST_REQUESTS:
            await self.drain()

    async def _data(self, event: events.DataReceived) -> None:
        assert event.stream_id is not None
        assert event.data is not None
        assert event.flow_controlled_length is not None
        self._credit += 1 if len(event.data) >= USEFUL_BYTES else -1
        stream = self.streams.get(event.stream_id)
        unread = 0
        if stream is None:  # it has been answered, but some clients read that only when all is sent
            self._unwanted += len(event.data)
            if self._unwanted > self._shared.limits.linger_bytes:
                self._reset(event.stream_id, ErrorCodes.NO_ERROR)
        if stream is not None and not stream.closed:
            unread = len(event.data)
            await stream.handle(Body(stream_id=event.stream_id, data=event.data))
        self._acknowledge(event.stream_id, event.flow_controlled_length - unread)

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        with suppress(exceptions.ProtocolError):  # it has ended meanwhile
            self.connection.reset_stream(stream_id, code)

    def _acknowledge(self, stream_id: int, size: int) -> None:
        if size and not self.closed:
            with suppress(exceptions.ProtocolError):  # the stream or the connection has ended meanwhile
                self.connection.acknowledge_received_data(size, stream_id)

    async def want_body(self, _stream_id: int) -> None:
        """Nothing: its window lets the client send."""

    async def consumed(self, stream_id: int, size: int) -> None:
        """Open the client's windows by what the application has taken."""
        self._acknowledge(stream_id, size)
        await self._flush()

    async def _create_stream(self, request: events.RequestReceived) -> None:
        headers = list(request.headers or ())
        stream_id = request.stream_id
        assert stream_id is not None
        found = dict(headers)
        method, path = found.get(b":method", b""), found.get(b":path", b"")
        problem: Problem | None = None
        if not path.startswith(b"/") or not path.isascii() or not method.isalpha():
            problem = bad_request(
                "bad_request", "The request has no method or path that could be served."
            ).problem
        words = (self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server)
        exchange = Exchange(self._transport, self, *words, self.stream_send, stream_id, head_problem=problem)
        self.streams[stream_id] = exchange
        self.stream_buffers[stream_id] = StreamBuffer(self.context.event_class)
        self.priority.insert_stream(stream_id)
        self.priority.block(stream_id)
        self.keep_alive_requests += 1
        await self.send(Updated(idle=False))
        await exchange.handle(
            Request(
                stream_id=stream_id,
                headers=filter_pseudo_headers(headers),
                http_version="2",
                method=method.decode("ascii", "replace").upper(),
                raw_path=path,
                state=self.connection_state,
            )
        )

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what an exchange answers; at its end, tell the client what it need not send any more."""
        if isinstance(event, StreamClosed):
            await self._finish(event.stream_id)
        else:
            await super().stream_send(event)

    async def _finish(self, stream_id: int) -> None:
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            return
        self._credit = min(self._credit + REQUEST_CREDIT, 10 * CREDIT)
        whole = stream.answered
        await stream.handle(StreamClosed(stream_id=stream_id))
        self._acknowledge(stream_id, stream.held)
        if not whole:
            self._reset(stream_id, ErrorCodes.INTERNAL_ERROR)
            await self._window_updated(stream_id)  # the sender sees that the stream is gone
        await self._flush()
        await self.has_data.set()
        if self.streams:
            return
        if self._draining or self._shared.stopping:
            await self._end(ErrorCodes.NO_ERROR)
        else:
            await self.send(Updated(idle=True))
