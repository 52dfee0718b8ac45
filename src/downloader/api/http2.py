"""HTTP/2: hypercorn's protocol, with bounds on a client's streams, memory and CPU.

A client that sends too many useless frames or resets too many requests, in proportion to its requests, gets
ENHANCE_YOUR_CALM and its connection is closed (RFC 9113, 10.5). Priorities (5.3.2) and WebSockets are not
supported. Flow control windows open as the application reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio
from h2 import events, exceptions
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer
from hypercorn.typing import ConnectionState
from hypercorn.utils import filter_pseudo_headers
from hyperframe.frame import GoAwayFrame

from downloader.api.exchange import BodyTaken, BodyWanted, Exchange, Shared
from downloader.api.limits import ClientConnection

FEED_BYTES = 4096
"""Passed to h2 between two checkpoints: in the smallest frames they take it 10 ms."""

WINDOW_BYTES = 1024**2
"""Most unread bytes of bodies on one connection; on one stream, h2's 64 KiB."""

CREDIT = 1000
"""Useless frames that a client may send at first."""

REQUEST_CREDIT = 10
"""Useless frames more for each request and for each response received, which needs window updates."""

RESET_COST = 25
"""Credit that a reset of a request costs: more than the request added."""

USEFUL_BYTES = 32
"""Least size of a DATA frame that counts as useful."""


class Http2(H2Protocol):
    """One HTTP/2 connection. Only its reader calls `handle`."""

    half_head = False
    unread = True
    """The client may be sending a body."""
    streams: dict[int, Exchange]  # type: ignore[assignment]  # none of them is a WebSocket

    def __init__(self, transport: ClientConnection, shared: Shared, send: Any) -> None:
        """`send` handles hypercorn's events of a connection."""
        super().__init__(
            shared.app,  # type: ignore[arg-type]  # called by `Exchange`
            shared.config,
            shared.context,
            shared.tasks,
            ConnectionState({}),
            shared.tls,
            shared.client,
            shared.server,
            send,
        )
        self._transport = transport
        self._shared = shared
        self._limits = shared.config.limits
        self._credit = CREDIT
        self._last_stream = 0
        self._unwanted_bytes = 0
        self._draining = False
        del self.connection.local_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]
        self.connection.decoder.max_header_list_size = self._limits.head_bytes

    async def initiate(
        self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None
    ) -> None:
        """Begin the connection; with `headers` and `settings` of the request if it was upgraded to h2c.

        Raises:
            ProtocolError: the client's settings are malformed.
        """
        await super().initiate(headers, settings)
        self.connection.increment_flow_control_window(WINDOW_BYTES)
        await self._flush()

    async def handle(self, event: Event) -> None:
        """Handle received bytes, or that the connection is closed."""
        if not isinstance(event, RawData):
            await super().handle(event)
            for buffer in list(self.stream_buffers.values()):  # applications may be waiting to write to them
                await buffer.close()
            return
        for start in range(0, len(event.data), FEED_BYTES):
            if self.closed:
                return
            await super().handle(RawData(data=event.data[start : start + FEED_BYTES]))
            await trio.lowlevel.checkpoint()

    async def end_of_stream(self) -> None:
        """The client sends no more."""
        await self.handle(Closed())

    async def drain(self) -> None:
        """Take no more requests, and close the connection after the last response."""
        if not self._draining:
            self._draining = True
            # `close_connection` of h2 would end the requests in flight too.
            frame = GoAwayFrame(last_stream_id=self._last_stream, error_code=ErrorCodes.NO_ERROR)
            await self.send(RawData(data=frame.serialize()))
        if not self.streams:
            await self.send(Closed())

    async def _handle_events(self, found: Sequence[events.Event]) -> None:
        for event in found:
            match event:
                case events.RequestReceived():
                    self._credit += REQUEST_CREDIT
                    await self._request(event)
                case events.DataReceived():
                    await self._data(event)
                case events.StreamEnded() | events.ConnectionTerminated():
                    await super()._handle_events([event])
                case events.StreamReset():
                    self._credit -= RESET_COST
                    await super()._handle_events([event])
                case events.PriorityUpdated():
                    self._credit -= 1
                case _:
                    self._credit -= 1
                    await super()._handle_events([event])
            if self._credit < 0 and not self.closed:
                self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
                await self._flush()
                await self.send(Closed())
            if self.closed:
                return
        await self._flush()

    async def _request(self, event: Any) -> None:
        if self._draining or self.context.terminated.is_set():
            self._reset(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self._last_stream = event.stream_id
        await self._create_stream(event)
        if self.keep_alive_requests >= self.config.keep_alive_max_requests:
            await self.drain()

    async def _data(self, event: Any) -> None:
        self._credit += 1 if len(event.data) >= USEFUL_BYTES else -1
        stream = self.streams.get(event.stream_id)
        useless = event.flow_controlled_length
        if stream is not None:
            await stream.handle(Body(stream_id=event.stream_id, data=event.data))
            useless -= len(event.data)
        else:  # already answered, but some clients read the response only after sending the whole body
            self._unwanted_bytes += len(event.data)
            if self._unwanted_bytes > self._limits.linger_bytes:
                self._reset(event.stream_id, ErrorCodes.NO_ERROR)
        self._acknowledge(event.stream_id, useless)

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        with suppress(exceptions.ProtocolError):  # it has ended meanwhile
            self.connection.reset_stream(stream_id, code)

    def _acknowledge(self, stream_id: int, size: int) -> None:
        """Open the flow control windows by so many bytes."""
        if size and not self.closed:
            with suppress(exceptions.ProtocolError):  # the stream or the connection has ended meanwhile
                self.connection.acknowledge_received_data(size, stream_id)

    async def _create_stream(self, request: Any) -> None:
        stream_id, headers = request.stream_id, list(request.headers)
        found = dict(headers)
        method, path = found.get(b":method", b""), found.get(b":path", b"")
        if not path.startswith(b"/") or not path.isascii() or not method.isalpha():
            self._reset(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        self.streams[stream_id] = Exchange(self._transport, self._shared, self.stream_send, stream_id)
        self.stream_buffers[stream_id] = StreamBuffer(self.context.event_class)
        self.priority.insert_stream(stream_id)
        self.priority.block(stream_id)
        self.keep_alive_requests += 1
        await self.send(Updated(idle=False))
        self.streams[stream_id].begin(
            version="2", method=method.decode(), target=path, headers=filter_pseudo_headers(headers)
        )

    async def stream_send(self, event: StreamEvent) -> None:
        """Handle an event of an exchange.

        Raises:
            Gone: the client did not open its flow control window in time.
        """
        if isinstance(event, BodyTaken):
            self._acknowledge(event.stream_id, event.size)
            await self._flush()
        elif isinstance(event, StreamClosed):
            await self._finish(event)
        elif not isinstance(event, BodyWanted):  # the flow control window asks for the body
            with self._transport.send_deadline():
                await super().stream_send(event)

    async def _finish(self, event: StreamClosed) -> None:
        """End the stream of a finished exchange."""
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        self._credit = min(self._credit + REQUEST_CREDIT, 10 * CREDIT)
        self._acknowledge(event.stream_id, stream.held)
        if not stream.answered:
            self._reset(event.stream_id, ErrorCodes.INTERNAL_ERROR)
            await self._window_updated(event.stream_id)  # so that a waiting sender notices
        await self._flush()
        await super().stream_send(event)
        if not self.streams and (self._draining or self.context.terminated.is_set()):
            await self.send(Closed())
