"""HTTP/2 clients that make the server work for nothing: the connection ends, the others are served."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from itertools import count

import pytest
import trio
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from downloader.api.limits import Limits
from servers.api import JOB, Served, Serving

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

GROWTH_KIB = 32 * 1024
"""Most growth of the process, this client and its frames included."""

REQUEST = Encoder().encode(
    [(":method", "POST"), (":path", "/download"), (":scheme", "http"), (":authority", "127.0.0.1")],
    huffman=False,
)
"""Its size in the dynamic table does not matter: each connection starts with the same one."""


def headers(stream_id: int, *flags: str) -> Frame:
    return HeadersFrame(stream_id, REQUEST, flags=flags)


def rapid_reset() -> Iterator[Frame]:
    for stream_id in count(1, 2):
        yield headers(stream_id, "END_HEADERS")
        yield RstStreamFrame(stream_id, error_code=8)


def streams() -> Iterator[Frame]:
    """Requests whose bodies never come."""
    for stream_id in count(1, 2):
        yield headers(stream_id, "END_HEADERS")


def continuation() -> Iterator[Frame]:
    """A head without end."""
    yield headers(1)
    while True:
        yield ContinuationFrame(1, b"\0\x01a\x01b" * 10)


def settings() -> Iterator[Frame]:
    while True:
        yield SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65_535})


def pings() -> Iterator[Frame]:
    while True:
        yield PingFrame(0, b"12345678")


def priorities() -> Iterator[Frame]:
    for stream_id in count(1, 2):
        yield PriorityFrame(stream_id, depends_on=0, stream_weight=1)


def empty_data() -> Iterator[Frame]:
    yield headers(1, "END_HEADERS")
    while True:
        yield DataFrame(1, b"")


def window_updates() -> Iterator[Frame]:
    yield headers(1, "END_HEADERS")
    while True:
        yield WindowUpdateFrame(0, window_increment=1)


async def flood(stream: trio.SocketStream, frames: Iterator[Frame]) -> None:
    """Send frames until the server has closed."""
    await stream.send_all(PREFACE + SettingsFrame(0).serialize())
    try:
        while True:
            await stream.send_all(b"".join(next(frames).serialize() for _ in range(100)))
    except trio.BrokenResourceError:
        pass


async def goaway(stream: trio.SocketStream) -> int | None:
    """Read to the connection's end; the error code that the server gave as the reason, if it did."""
    data = b""
    try:
        while piece := await stream.receive_some():
            data += piece
    except trio.BrokenResourceError:
        pass
    reasons = [frame.error_code for frame in frames_in(data) if isinstance(frame, GoAwayFrame)]
    return reasons[-1] if reasons else None


def frames_in(data: bytes) -> Iterator[Frame]:
    """The whole frames of what was received."""
    while len(data) >= 9:
        frame, size = Frame.parse_frame_header(memoryview(data[:9]))
        if len(data) < 9 + size:
            return
        frame.parse_body(memoryview(data[9 : 9 + size]))
        yield frame
        data = data[9 + size :]


@pytest.mark.slow
@pytest.mark.row("H17")
@pytest.mark.parametrize(
    "frames",
    [rapid_reset, streams, continuation, settings, pings, priorities, empty_data, window_updates],
)
async def test_a_flood_of_frames_ends_its_connection(
    serving: Serving, frames: Callable[[], Iterator[Frame]]
) -> None:
    api = await serving(limits=Limits(linger_s=0.2))
    await api.client.get("/hb")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reasons: list[int | None] = []
    async with await api.connect() as stream, trio.open_nursery() as nursery:

        async def read() -> None:
            reasons.append(await goaway(stream))

        nursery.start_soon(read)
        with trio.fail_after(30):
            await flood(stream, frames())
            assert (await api.client.post("/download", json=JOB)).status_code == 201
    assert reasons != [0], "it was told why"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_KIB


@pytest.mark.slow
@pytest.mark.row("H16")
async def test_a_window_that_the_client_never_opens(serving: Serving) -> None:
    """Its request is reset; a request that needs no window is still answered on the connection."""
    api = await serving(limits=Limits(send_s=0.2, idle_s=0.5))
    get = Encoder().encode(
        [(":method", "GET"), (":path", "/hb"), (":scheme", "http"), (":authority", "127.0.0.1")],
        huffman=False,
    )
    async with await api.connect() as stream:
        await stream.send_all(
            PREFACE
            + SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}).serialize()
            + HeadersFrame(1, get, flags=["END_HEADERS", "END_STREAM"]).serialize()
        )
        with trio.fail_after(20):
            received = b"".join([piece async for piece in stream])
    kinds = [type(frame) for frame in frames_in(received)]
    assert HeadersFrame in kinds
    assert RstStreamFrame in kinds
    assert DataFrame not in kinds


@pytest.mark.row("H16")
async def test_a_connection_that_never_asks_for_anything(serving: Serving) -> None:
    api = await serving(limits=Limits(idle_s=0.05, linger_s=0.05))
    async with await api.connect() as stream:
        await stream.send_all(PREFACE + SettingsFrame(0).serialize())
        with trio.fail_after(20):
            assert b"".join([piece async for piece in stream])


@pytest.mark.slow
@pytest.mark.row("H17")
async def test_no_more_requests_at_once_than_allowed(api: Served) -> None:
    """The hundred and first stream is refused, whatever the client has read of the limit."""
    async with await api.connect() as stream:
        frames = [headers(stream_id, "END_HEADERS") for stream_id in range(1, 2 * 101 + 1, 2)]
        await stream.send_all(
            PREFACE + SettingsFrame(0).serialize() + b"".join(frame.serialize() for frame in frames)
        )
        with trio.fail_after(20):
            assert await goaway(stream) not in (None, 0)
    assert (await api.client.get("/hb")).status_code == 200
