"""HTTP/1.1 responses of every kind, whole and in pieces, and compared with h11."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import h11
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from downloader.net import BadRequest, BadResponse, ConnectionLost, CutShort, NetError
from downloader.net.connection import (
    BULK_READ_BYTES,
    MAX_HEAD_BYTES,
    MAX_OVERHEAD_BYTES,
    READ_BYTES,
    Connection,
)

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

OFFERED_BYTES = 3_000_000
"""Of a flood: several times as many as are read of one."""


class Wire:
    """The `Stream` of a peer that gives the same answer to every request."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = [piece for piece in pieces if piece]
        self.sent = b""
        self.largest = 0

    async def receive(self, max_bytes: int) -> bytes:
        self.largest = max(self.largest, max_bytes)
        await trio.lowlevel.checkpoint()
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if len(piece) > max_bytes:
            self.pieces.insert(0, piece[max_bytes:])
        return piece[:max_bytes]

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += data


@dataclass(frozen=True)
class Found:
    """The result of one response."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    reusable: bool


def connection(wire: Wire) -> Connection:
    return Connection(cast("Any", wire))


async def receive(pieces: Sequence[bytes], *, method: bytes = b"GET", limit: int | None = None) -> Found:
    talk = connection(Wire(pieces))
    head = await talk.request(method, b"/", [(b"Host", b"h")], limit=limit)
    body = b""
    while (data := await talk.read()) is not None:
        body += data
    fields = tuple((name.lower(), value) for name, value in head.fields)
    return Found(head.status, fields, body, talk.reusable)


def splits(data: bytes) -> list[Sequence[bytes]]:
    return [[data], [data[at : at + 1] for at in range(len(data))], [data[:20], data[20:]]]


UNDERSTOOD: dict[str, tuple[bytes, bytes, bool]] = {
    "length": (OK + b"Content-Length: 3\r\n\r\nabc", b"abc", True),
    "no bytes": (OK + b"Content-Length: 0\r\n\r\n", b"", True),
    "extensions and trailers": (
        CHUNKED + b"1\r\na\r\n02;ext=1\r\nbc\r\n0\r\nTrailer: 1\r\n\r\n",
        b"abc",
        True,
    ),
    "chunks": (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", b"abc", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", b"", True),
    "1xx is a message of its own": (
        b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * 3 + OK + b"Content-Length: 1\r\n\r\nx",
        b"x",
        True,
    ),
    "keep-alive in 1.0": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
        b"x",
        True,
    ),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", b"x", True),
    "upgrade not asked for": (
        OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\nx",
        b"x",
        True,
    ),
    # Clear, but the last on its connection.
    "until the close": (OK + b"\r\nabc", b"abc", False),
    "1.0 until the close": (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc", False),
    "1.0 closes": (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x", False),
    "close": (OK + b"Connection: close\r\nContent-Length: 1\r\n\r\nx", b"x", False),
    "garbage behind the end": (OK + b"Content-Length: 3\r\n\r\nabcgarbage", b"abc", False),
    "a response behind the end": (
        OK + b"Content-Length: 3\r\n\r\nabc" + OK + b"Content-Length: 1\r\n\r\nx",
        b"abc",
        False,
    ),
    "a response behind chunks": (CHUNKED + b"0\r\n\r\n" + OK + b"X: y\r\n\r\nx", b"", False),
    "a body behind 204": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nabcde", b"", False),
    # Odd but clear, read as curl reads them.
    "length beside chunks": (
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"a",
        False,
    ),
    "chunks beside length": (
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"a",
        False,
    ),
    "identity": (OK + b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc", b"abc", False),
    "equal lengths": (OK + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", b"abc", False),
    "equal lengths in one field": (OK + b"Content-Length: 3, 3\r\n\r\nabc", b"abc", False),
    "blank before the colon": (OK + b"Content-Length : 3\r\n\r\nabc", b"abc", False),
    "folded": (OK + b"X: a\r\n b\r\nContent-Length: 3\r\n\r\nabc", b"abc", False),
    "bare LF": (b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", b"abc", False),
    "control character": (OK + b"X: a\x01b\r\nContent-Length: 3\r\n\r\nabc", b"abc", False),
    "1xx that closes": (
        b"HTTP/1.1 103 X\r\nConnection: close\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx",
        b"x",
        False,
    ),
    "1xx with bare LF": (
        b"HTTP/1.1 103 Early Hints\n\nHTTP/1.1 200 OK\nContent-Length: 3\n\nabc",
        b"abc",
        False,
    ),
}
"""What each is, to the response, its body, and whether the connection may be used again."""


@pytest.mark.parametrize("name", UNDERSTOOD)
@pytest.mark.row("H11")
async def test_accepted_responses(name: str) -> None:
    data, body, reusable = UNDERSTOOD[name]
    for pieces in splits(data):
        found = await receive(pieces)
        assert found.status in (200, 204, 304)
        assert found.body == body
        # What comes later than the end is found when the connection is taken up again.
        if len(pieces) == 1:
            assert found.reusable is reusable


async def test_whether_a_connection_is_kept_is_known_in_the_callback_only() -> None:
    """`should_keep_alive` says no once the parser has left the response."""
    wire = Wire([OK + b"Content-Length: 1\r\n\r\nx", b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\ny"])
    talk = connection(wire)
    for reusable in (True, False):
        await talk.request(b"GET", b"/", [])
        assert await talk.read() in (b"x", b"y")
        assert await talk.read() is None
        assert talk.reusable is reusable


async def test_odd_fields_are_kept() -> None:
    found = await receive(
        [OK + b"X-Foo : bar\r\nY: a\r\n  b \r\nTransfer-Encoding: chunked\nContent-Length: 9\r\n\n0\r\n\r\n"]
    )
    assert found.fields == ((b"x-foo", b"bar"), (b"y", b"a b"), (b"transfer-encoding", b"chunked"))


async def test_a_trailer_is_no_header() -> None:
    found = await receive([CHUNKED + b"0\r\nLocation: /x\r\n\r\n"])
    assert found.fields == ((b"transfer-encoding", b"chunked"),)


@pytest.mark.parametrize(
    "data",
    [
        b"<html>HTTP/0.9</html>",
        b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"\x00\xff" * 5000,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b" folded: first\r\n\r\n",
        OK + b"A B: c\r\n\r\n",
        OK + b": c\r\n\r\n",
        OK + b"A: \x00\r\n\r\n",
        OK + b"A: b\rc\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        OK + b"Content-Length: 3, 4\r\n\r\nabcd",
        OK + b"Content-Length: -3\r\n\r\nabc",
        OK + b"Content-Length: +3\r\n\r\nabc",
        OK + b"Content-Length: 0x3\r\n\r\nabc",
        OK + b"Content-Length: \r\n\r\n",
        OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nabc",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: xchunked\r\n\r\nabc",
        CHUNKED + b"xyz\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n",
        CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"3\nabc\n0\n\n",
        CHUNKED + b"f" * 30 + b"\r\nabc",
    ],
)
@pytest.mark.row("H11")
async def test_refused_responses(data: bytes) -> None:
    for pieces in splits(data[:6000]):
        with pytest.raises(BadResponse, match=r"^malformed HTTP response$"):
            await receive(pieces)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTT",
        b"HTTP/1.1 200 OK\nA: b\n",
        OK + b"Content-Length: 10\r\n\r\nabc",
        CHUNKED + b"5\r\nab",
        CHUNKED + b"3\r\nabc\r\n",
        CHUNKED + b"3\r\nabc\r\n0\r\n",
    ],
)
@pytest.mark.row("H11")
async def test_truncated_responses(data: bytes) -> None:
    for pieces in splits(data):
        with pytest.raises(CutShort, match="unexpected EOF"):
            await receive(pieces)


async def test_nothing_at_all() -> None:
    with pytest.raises(ConnectionLost):
        await receive([])


@pytest.mark.parametrize(
    ("start", "unit"),
    [
        (OK + b"X: ", b"a" * 65536),
        (OK, b"X: a\r\n" * 1000),
        (b"HTTP/1.1 200 OK\nA: ", b"a" * 1000),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 10),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * 9000 + b"\r\n\r\n"),
        (CHUNKED, b"1\r\nx\r\n" * 10_000),
        (CHUNKED + b"5;", b"x" * 65536),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"X: a\r\n" * 1000),
        (CHUNKED + b"1\r\nx\r\n0\r\nX: ", b"a" * 65536),
    ],
)
@pytest.mark.row("H12")
async def test_floods_are_bounded(start: bytes, unit: bytes) -> None:
    wire = Wire([start, *[unit] * (1 + OFFERED_BYTES // len(unit))])
    offered = sum(map(len, wire.pieces))
    talk = connection(wire)

    async def take_all() -> None:
        await talk.request(b"GET", b"/", [])
        while await talk.read() is not None:
            pass

    with pytest.raises(BadResponse):
        await take_all()
    taken = offered - sum(map(len, wire.pieces))
    assert taken <= 2 * (MAX_HEAD_BYTES + MAX_OVERHEAD_BYTES)


async def test_small_chunks_of_reasonable_size_are_no_flood() -> None:
    unit = b"10\r\n" + b"x" * 16 + b"\r\n"
    found = await receive([CHUNKED, *[unit * 100] * 1000, b"0\r\n\r\n"])
    assert len(found.body) == 16 * 100_000


@pytest.mark.parametrize(("size", "largest"), [(16, READ_BYTES), (100, READ_BYTES), (65536, BULK_READ_BYTES)])
@pytest.mark.row("H12")
async def test_small_chunks_are_read_in_small_pieces(size: int, largest: int) -> None:
    wire = Wire([CHUNKED, (b"%x\r\n" % size + b"x" * size + b"\r\n") * (3_000_000 // size), b"0\r\n\r\n"])
    talk = connection(wire)
    await talk.request(b"GET", b"/", [])
    while await talk.read() is not None:
        pass
    assert wire.largest == largest


async def test_no_more_than_the_limit_is_read() -> None:
    wire = Wire([OK + b"\r\n", b"x" * 1_000_000])
    talk = connection(wire)

    async def take_all() -> None:
        await talk.request(b"POST", b"/", [], limit=10_000)
        while await talk.read() is not None:
            pass

    with pytest.raises(BadResponse, match="more than 9 KiB"):
        await take_all()
    assert sum(map(len, wire.pieces)) == 1_000_000 + len(OK) + 2 - 10_000


async def test_a_head_has_no_body() -> None:
    found = await receive([OK + b"Content-Length: 9\r\n\r\n"], method=b"HEAD")
    assert (found.body, found.reusable) == (b"", True)
    found = await receive([OK + b"Content-Length: 9\r\n\r\nx"], method=b"HEAD")
    assert (found.body, found.reusable) == (b"", False)


@pytest.mark.parametrize(
    ("method", "target", "fields"),
    [
        (b"GET", b"/a b", []),
        (b"GET", b"/\r\nX: y", []),
        (b"GET", b"/\xff", []),
        (b"GET", b"", []),
        (b"GET\r\n", b"/", []),
        (b"GET", b"/", [(b"X", b"a\r\nInjected: b")]),
        (b"GET", b"/", [(b"X", b"a\nInjected: b")]),
        (b"GET", b"/", [(b"X", b"a\0")]),
        (b"GET", b"/", [(b"X y", b"a")]),
        (b"GET", b"/", [(b"X\r\nInjected", b"a")]),
        (b"GET", b"/", [(b"", b"a")]),
    ],
)
async def test_malformed_requests_are_not_sent(
    method: bytes, target: bytes, fields: list[tuple[bytes, bytes]]
) -> None:
    wire = Wire([OK])
    with pytest.raises(BadRequest):
        await connection(wire).request(method, target, fields)
    assert wire.sent == b""


async def test_a_request_on_the_wire() -> None:
    wire = Wire([OK + b"Content-Length: 0\r\n\r\n"] * 2)
    talk = Connection(cast("Any", wire), prefix=b"http://h", extra=[(b"Proxy-Authorization", b"x")])
    await talk.request(b"POST", b"/p?q", [(b"Host", b"h"), (b"A", "\u00fc".encode())], b"body")
    assert await talk.read() is None
    assert talk.reusable
    assert wire.sent == (
        b"POST http://h/p?q HTTP/1.1\r\nHost: h\r\nA: \xc3\xbc\r\nProxy-Authorization: x\r\n\r\nbody"
    )
    assert (await talk.request(b"GET", b"/", [])).status == 200


# Compared with h11

LINES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 404",
        b"HTTP/1.1 103 Early Hints",
        b"HTTP/1.1 20 X",
        b"HTTP/1.1 999 ",
    ]
)
FIELDS = st.sampled_from(
    [
        b"Content-Length: 3",
        b"Content-Length: 0",
        b"Content-Length: 3, 3",
        b"Content-Length: 4",
        b"content-length:3",
        b"Transfer-Encoding: chunked",
        b"transfer-encoding: CHUNKED",
        b"Transfer-Encoding: gzip",
        b"Connection: close",
        b"Connection: keep-alive",
        b"Connection: keep-alive, close",
        b"X: y",
        b"X: \xff\xfe",
        b"X:",
        b"X : y",
        b" folded",
        b"X y: z",
        b"no colon",
        b"Upgrade: h2c",
        b"Connection: upgrade",
        b"Set-Cookie: a=b; c",
    ]
)
BODIES = st.sampled_from(
    [
        b"",
        b"abc",
        b"abcd",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\nHTTP/1.1 404 X\r\n\r\n",
        b"zz\r\n",
        b"abcHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
    ]
)
ENDS = st.sampled_from([b"\r\n"] * 6 + [b"\n"])


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    data = b""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        data += draw(LINES) + draw(ENDS)
        for field in draw(st.lists(FIELDS, max_size=4)):
            data += field + draw(ENDS)
        data += draw(ENDS)
    data += draw(BODIES)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + draw(st.integers(0, 2)) :]
    return data


def by_h11(data: bytes) -> Found | None:
    """How h11 parses it; `None` if h11 raises."""
    state = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    state.send(h11.Request(method=b"GET", target=b"/", headers=[(b"Host", b"h")]))
    state.send(h11.EndOfMessage())
    status, fields, body = 0, tuple[tuple[bytes, bytes], ...](), b""
    try:
        state.receive_data(data)
        behind = False
        while True:
            event = state.next_event()
            if event is h11.NEED_DATA:
                state.receive_data(b"")
                behind = True
            elif isinstance(event, h11.Response):
                status, fields = event.status_code, tuple((bytes(n), bytes(v)) for n, v in event.headers)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                done = state.their_state is h11.DONE and not state.trailing_data[0] and not behind
                return Found(status, fields, body, done)
            elif event is h11.PAUSED:
                return None
    except h11.RemoteProtocolError:
        return None


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(responses(), st.lists(st.integers(1, 200), max_size=4))
@example(OK + b"Content-Length: 3\r\n\r\nabc\r\n", [])
@example(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc", [])
@example(CHUNKED + b"3\r\nabc\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", [])
def test_as_h11(data: bytes, cuts: list[int]) -> None:
    """What h11 understands we understand alike; what we would use again, h11 would too.

    Only where the response is odd (see the table above) or has a stray line end behind it may ours go
    further than h11.
    """
    bounds = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    pieces = [data[start:end] for start, end in pairwise(bounds)]
    theirs = by_h11(data)
    try:
        ours: Found | None = trio.run(receive, pieces)
    except NetError:
        ours = None
    if theirs is None:
        assert ours is None or not trio.run(receive, [data]).reusable
        return
    assert ours is not None
    assert (ours.status, ours.body) == (theirs.status, theirs.body)
    whole = trio.run(receive, [data])
    if whole.reusable:
        assert theirs.reusable or data.startswith(b"HTTP/1.0") or data.endswith((b"\r", b"\n"))
