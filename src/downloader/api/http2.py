"""HTTP/2 as hypercorn serves it, with bounds on a client's streams, on the memory and on the work it costs.

A client that sends more frames that carry nothing, or resets more requests, than its requests account for is
told ENHANCE_YOUR_CALM and its connection ends (RFC 9113, 10.5). Priorities are ignored (5.3.2), as are
WebSockets; the client's flow control windows open as the application reads.
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
from hypercorn.utils import filter_pseudo_headers
from hyperframe.frame import GoAwayFrame

from downloader.api.exchange import BodyTaken, BodyWanted, Exchange, Transport

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


class Http2(H2Protocol):
    """One HTTP/2 connection. `handle` is called by its reader only."""

    half_head = False
    unread = True
    """The client may be sending."""
    streams: dict[int, Exchange]  # type: ignore[assignment]  # none of them is a WebSocket

    def __init__(self, transport: Transport, *args: Any) -> None:
        """`args`: of `H2Protocol`."""
        super().__init__(*args)
        self._transport = transport
        self._limits = self.config.limits  # type: ignore[attr-defined]  # of our `ServerConfig`
        self._credit = CREDIT
        self._last_stream = 0
        self._unwanted_bytes = 0
        self._draining = False
        del self.connection.local_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]
        self.connection.decoder.max_header_list_size = self._limits.head_bytes

    async def initiate(
        self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None
    ) -> None:
        """Begin, as a rule by what follows the client's preface; `headers`: of a request that upgraded.

        Raises:
            ProtocolError: the client's settings are malformed.
        """
        await super().initiate(headers, settings)
        self.connection.increment_flow_control_window(WINDOW_BYTES)
        await self._flush()

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
            await super().handle(RawData(data=event.data[start : start + FEED_BYTES]))
            await trio.lowlevel.checkpoint()

    async def end_of_stream(self) -> None:
        """The client sends no more."""
        await self.handle(Closed())

    async def drain(self) -> None:
        """Take no more requests; the connection ends with the last one that is being answered."""
        if not self._draining:
            self._draining = True
            # h2's own way ends the requests in flight too.
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
        else:  # it has been answered, but some clients read that only when all is sent
            self._unwanted_bytes += len(event.data)
            if self._unwanted_bytes > self._limits.linger_bytes:
                self._reset(event.stream_id, ErrorCodes.NO_ERROR)
        self._acknowledge(event.stream_id, useless)

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        with suppress(exceptions.ProtocolError):  # it has ended meanwhile
            self.connection.reset_stream(stream_id, code)

    def _acknowledge(self, stream_id: int, size: int) -> None:
        """Let the client send as much again."""
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
        self.streams[stream_id] = Exchange(self._transport, self, stream_id)
        self.stream_buffers[stream_id] = StreamBuffer(self.context.event_class)
        self.priority.insert_stream(stream_id)
        self.priority.block(stream_id)
        self.keep_alive_requests += 1
        await self.send(Updated(idle=False))
        await self.streams[stream_id].begin(
            version="2", method=method, target=path, headers=filter_pseudo_headers(headers)
        )

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what an exchange answers, or do what it asks for.

        Raises:
            Gone: the client did not open its flow control window in time.
        """
        if isinstance(event, BodyTaken):
            self._acknowledge(event.stream_id, event.size)
            await self._flush()
        elif isinstance(event, StreamClosed):
            await self._finish(event)
        elif not isinstance(event, BodyWanted):  # its window lets the client send
            with self._transport.send_deadline():
                await super().stream_send(event)

    async def _finish(self, event: StreamClosed) -> None:
        """An exchange is over: tell the client what it need not send any more."""
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        self._credit = min(self._credit + REQUEST_CREDIT, 10 * CREDIT)
        self._acknowledge(event.stream_id, stream.held)
        if not stream.answered:
            self._reset(event.stream_id, ErrorCodes.INTERNAL_ERROR)
            await self._window_updated(event.stream_id)  # the sender sees that the stream is gone
        await self._flush()
        await super().stream_send(event)
        if not self.streams and (self._draining or self.context.terminated.is_set()):
            await self.send(Closed())
