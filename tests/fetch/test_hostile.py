"""Hostile origins: bounded time and memory, nothing left, and the right verdict (H5, H10-H13)."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from pathlib import Path

import pytest
import trio
import trio.testing

from downloader.fetch.response import Gunzip
from downloader.model import ErrorCode, Outcome, Verdict
from servers.lab import Lab, open_lab, small
from servers.origin import BLOCK_BYTES, Exchange, Handler, Origin, body_of, gate, raw, repeat, respond

MIB = 1024 * 1024

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def end(outcome: Outcome) -> tuple[Verdict, str]:
    return outcome.verdict, outcome.error_code


FINAL = (Verdict.FAILED, ErrorCode.PROTOCOL)
TRUNCATED = (Verdict.RETRY, ErrorCode.TRUNCATED)
TIMEOUT = (Verdict.RETRY, ErrorCode.TIMEOUT)


# The lengths of H11.


@pytest.mark.parametrize(
    "data",
    [
        OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        OK + b"Content-Length: 3, 4\r\n\r\nabcd",
        OK + b"Content-Length: -3\r\n\r\nabc",
        OK + b"Content-Length: 0x3\r\n\r\nabc",
        OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nabc",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"xyz\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n",
        CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"f" * 30 + b"\r\nabc",
    ],
)
@pytest.mark.row("H11")
async def test_contradictory_framing_is_final(lab: Lab, origin: Origin, data: bytes) -> None:
    assert end(await lab.fetch(origin.on("/x", raw(data)))) == FINAL
    assert lab.files() == []


@pytest.mark.parametrize(
    "data",
    [
        OK + b"\r\nabc",
        b"HTTP/1.0 200 OK\r\n\r\nabc",
        CHUNKED + b"1\r\na\r\n02;ext=1\r\nbc\r\n0\r\nTrailer: 1\r\n\r\n",
        OK + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc",
        OK + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        OK + b"Content-Length : 3\r\n\r\nabc",
        OK + b"X: a\r\n folded\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
@pytest.mark.row("H11")
async def test_unusual_framing_is_understood(lab: Lab, origin: Origin, data: bytes) -> None:
    outcome = await lab.fetch(origin.on("/x", raw(data)))
    assert (outcome.verdict, outcome.file.size) == (Verdict.SUCCEEDED, 3)
    assert lab.stored() == b"abc"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.row("H11")
async def test_bytes_behind_the_end_spoil_no_other_job(lab: Lab, origin: Origin, late: bool) -> None:  # noqa: FBT001
    extra = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    sent = trio.Event()

    async def liar(exchange: Exchange) -> None:
        await raw(OK + b"Content-Length: 3\r\n\r\nabc" + (b"" if late else extra), "keep")(exchange)
        if late:
            await raw(extra, "keep")(exchange)
        sent.set()

    first = await lab.fetch(origin.on("/liar", liar))
    assert (first.verdict, first.file.size) == (Verdict.SUCCEEDED, 3)
    await sent.wait()
    assert (await lab.fetch(origin.url("/bytes/10"))).verdict is Verdict.SUCCEEDED
    assert origin.connections == 2


# Floods, drips and bombs of H12.


@pytest.mark.row("H12")
async def test_a_huge_head(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.on("/x", repeat(OK + b"X: ", b"a" * BLOCK_BYTES, count=160)))
    assert end(outcome) == FINAL


@pytest.mark.row("H12")
async def test_many_headers(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.on("/x", repeat(OK, b"X: a\r\n" * 1000, count=200)))
    assert end(outcome) == FINAL


@pytest.mark.row("H12")
async def test_a_flood_of_103(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(
        origin.on("/x", repeat(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 10))
    )
    assert end(outcome) == FINAL


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (repeat(OK, b"X: a\r\n", interval_s=0.01), TIMEOUT),
        (repeat(OK + b"X: ", b"a", interval_s=0.01), TIMEOUT),
        (repeat(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", interval_s=0.05), TIMEOUT),
        (repeat(b"", b"\r\n", interval_s=0.05), FINAL),
    ],
)
@pytest.mark.row("H12")
async def test_a_dripped_head_is_bounded_as_a_whole(
    tmp_path: Path, origin: Origin, handler: Handler, expected: tuple[Verdict, str]
) -> None:
    async with open_lab(tmp_path, response_timeout=0.2) as lab:
        with trio.fail_after(20):
            outcome = await lab.fetch(origin.on("/x", handler))
    assert end(outcome) == expected
    assert outcome.response_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("start", [OK + b"\r\n", OK + b"Content-Length: 1000\r\n\r\n", CHUNKED])
@pytest.mark.row("H12")
async def test_a_dripped_body(tmp_path: Path, origin: Origin, start: bytes) -> None:
    unit = b"1\r\nx\r\n" if start is CHUNKED else b"x"
    async with open_lab(tmp_path, limits=small(stall_s=0.3, stall_bytes_per_s=1000)) as lab:
        with trio.fail_after(20):
            outcome = await lab.fetch(origin.on("/x", repeat(start, unit, interval_s=0.02)))
        assert end(outcome) == TIMEOUT
        assert outcome.response_code == 200
        assert outcome.error == "slower than 1000 bytes per second for 0.3 s"


@pytest.mark.slow
async def test_a_body_that_stops_after_a_fast_start(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(tmp_path, limits=small(stall_s=0.3)) as lab:
        data = OK + b"Content-Length: 9000000\r\n\r\n" + b"x" * 3_000_000
        with trio.fail_after(20):
            assert end(await lab.fetch(origin.on("/x", raw(data, "hang")))) == TIMEOUT


@pytest.mark.slow
async def test_a_slow_disk_is_not_the_peers_slowness(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(tmp_path, limits=small(stall_s=0.6)) as lab, trio.open_nursery() as nursery:
        threads = lab.fetcher.tools.spool.threads
        threads.total_tokens = 1
        await threads.acquire_on_behalf_of("the disk")

        async def let_go() -> None:
            await origin.seen("/bytes/9000000")
            await trio.sleep(1.5)  # how slow the disk is
            threads.release_on_behalf_of("the disk")

        nursery.start_soon(let_go)
        assert (await lab.fetch(origin.url("/bytes/9000000"))).verdict is Verdict.SUCCEEDED


@pytest.mark.slow
async def test_slow_but_steady_is_fine(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(tmp_path, limits=small(stall_s=1.0, stall_bytes_per_s=1000)) as lab:
        body = repeat(OK + b"Content-Length: 75000\r\n\r\n", b"x" * 1000, interval_s=0.02, count=75)
        assert (await lab.fetch(origin.on("/x", body))).verdict is Verdict.SUCCEEDED


@pytest.mark.row("H12")
async def test_endless_chunks_end_at_max_size(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(tmp_path, max_size=4 * MIB) as lab:
        unit = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        outcome = await lab.fetch(origin.on("/x", repeat(CHUNKED, unit, end=b"0\r\n\r\n", count=4 * 64)))
        assert end(outcome) == (Verdict.FAILED, ErrorCode.TOO_LARGE)


@pytest.mark.slow
@pytest.mark.row("H12")
async def test_endless_chunks_of_a_byte_are_refused_before_they_cost_much(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.on("/x", repeat(CHUNKED, b"1\r\nx\r\n" * 10_000)))
    assert end(outcome) == FINAL
    assert outcome.response_code == 200


async def test_an_endless_chunk_header(lab: Lab, origin: Origin) -> None:
    assert end(await lab.fetch(origin.on("/x", repeat(CHUNKED + b"5;", b"x" * BLOCK_BYTES)))) == FINAL


async def test_endless_trailers(lab: Lab, origin: Origin) -> None:
    start = CHUNKED + b"1\r\nx\r\n0\r\n"
    assert end(await lab.fetch(origin.on("/x", repeat(start, b"X: a\r\n" * 1000)))) == FINAL


@pytest.mark.row("H12")
async def test_gzip_that_was_asked_for_is_stored_as_sent(lab: Lab, origin: Origin) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    url = origin.on("/x", respond(200, bomb, [("Content-Encoding", "gzip")]))
    outcome = await lab.fetch(url, request_headers={"Accept-Encoding": "br, gzip"})
    assert (outcome.verdict, outcome.file.size) == (Verdict.SUCCEEDED, len(bomb))
    assert lab.stored() == bomb


ZSTD_BOMB = b"\x28\xb5\x2f\xfd\xa0\x00\x00\x00\x40" + (b"\x02\x00\x10\x00" * 8191 + b"\x03\x00\x10\x00")
"""A frame of 8,192 blocks that each stand for 128 KiB of one byte: 32 KiB that stand for a gibibyte."""


@pytest.mark.parametrize("name", ["zstd", "br", "deflate", "gzip, zstd"])
@pytest.mark.row("H12")
async def test_other_encodings_are_stored_as_sent(lab: Lab, origin: Origin, name: str) -> None:
    outcome = await lab.fetch(origin.on("/x", respond(200, ZSTD_BOMB, [("Content-Encoding", name)])))
    assert (outcome.verdict, outcome.file.size) == (Verdict.SUCCEEDED, len(ZSTD_BOMB))
    assert lab.stored() == ZSTD_BOMB


@pytest.mark.parametrize("name", ["gzip", "x-gzip", " GZip "])
@pytest.mark.parametrize("size", [0, 1000, 3_000_000])
async def test_unrequested_gzip_is_decoded(lab: Lab, origin: Origin, name: str, size: int) -> None:
    body = body_of(size)
    data = gzip.compress(body[: size // 2]) + gzip.compress(body[size // 2 :]) + b"behind it"
    outcome = await lab.fetch(origin.on("/x", respond(200, data, [("Content-Encoding", name)])))
    assert (outcome.verdict, outcome.file.size) == (Verdict.SUCCEEDED, size)
    assert outcome.file.sha256 == hashlib.sha256(body).hexdigest()
    assert lab.stored() == body
    assert origin.requests[0].headers["accept-encoding"] == "identity"


async def test_an_empty_body_in_gzip_is_an_empty_file(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.on("/x", respond(200, b"", [("Content-Encoding", "gzip")])))
    assert (outcome.verdict, outcome.file.size) == (Verdict.SUCCEEDED, 0)


@pytest.mark.parametrize("cut", [1, 8, 9, 500])
@pytest.mark.row("H11")
async def test_gzip_without_its_end_is_truncated(lab: Lab, origin: Origin, cut: int) -> None:
    data = gzip.compress(body_of(100_000))[:-cut]
    assert (
        end(await lab.fetch(origin.on("/x", respond(200, data, [("Content-Encoding", "gzip")])))) == TRUNCATED
    )
    assert lab.files() == []


@pytest.mark.parametrize("data", [b"not gzip at all", gzip.compress(b"abc", mtime=0)[:-8] + bytes(8)])
async def test_malformed_gzip_is_final(lab: Lab, origin: Origin, data: bytes) -> None:
    assert end(await lab.fetch(origin.on("/x", respond(200, data, [("Content-Encoding", "gzip")])))) == FINAL


@pytest.mark.row("H12")
@pytest.mark.parametrize("content", [b"", b"x"])
async def test_gzip_in_members_of_next_to_nothing_is_refused(
    lab: Lab, origin: Origin, content: bytes
) -> None:
    data = gzip.compress(content) * 20_000
    assert end(await lab.fetch(origin.on("/x", respond(200, data, [("Content-Encoding", "gzip")])))) == FINAL
    assert lab.files() == []


@pytest.mark.row("H12")
@pytest.mark.parametrize("content", [b"", b"x"])
async def test_many_members_of_gzip_hold_nobody_up(content: bytes) -> None:
    chunks, turns = [gzip.compress(content) * 1000], 0

    async def source() -> bytes | None:
        return chunks.pop() if chunks else None

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        unpacked = Gunzip(source)
        while await unpacked.read() is not None:
            pass
        nursery.cancel_scope.cancel()
    assert turns > 900


@pytest.mark.row("H12")
async def test_a_gzip_bomb_ends_at_max_size(tmp_path: Path, origin: Origin) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    url = origin.on("/x", respond(200, bomb, [("Content-Encoding", "gzip")]))
    async with open_lab(tmp_path, max_size=MIB) as lab:
        tracemalloc.start()
        try:
            outcome = await lab.fetch(url)
            assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
        finally:
            tracemalloc.stop()
    assert end(outcome) == (Verdict.FAILED, ErrorCode.TOO_LARGE)


# What is no HTTP/1.1 response (H13).


@pytest.mark.parametrize(
    "data",
    [
        b"<html>HTTP/0.9</html>",
        b"<html>\r\n\r\nHTTP/0.9</html>",
        b"\x00\xff" * 5000,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA B: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",
    ],
)
@pytest.mark.row("H13")
async def test_garbage(lab: Lab, origin: Origin, data: bytes) -> None:
    outcome = await lab.fetch(origin.on("/x", raw(data)))
    assert end(outcome) == FINAL
    assert outcome.response_code == 0
    assert outcome.error == "malformed HTTP response"


# connections


async def test_no_more_idle_connections_than_the_limit(lab: Lab, origin: Origin) -> None:
    go = trio.Event()
    url = origin.on("/x", gate(go, respond(200, b"x")))
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(lambda: lab.fetch(url, limit=2))
        await origin.seen("/x", 5)
        go.set()
    await origin.wait_until(lambda: origin.open_connections == 2)


async def test_idle_connections_are_bounded_in_all(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(tmp_path, concurrency=3) as lab:
        for number in range(6):
            await lab.fetch(origin.url("/bytes/1"), aggregation=str(number))
        await origin.wait_until(lambda: origin.open_connections == 3)


# cancel


@pytest.mark.parametrize(
    "handler",
    [
        raw(b"", "hang"),
        raw(OK, "hang"),
        raw(OK + b"Content-Length: 9\r\n\r\nabc", "hang"),
        raw(OK + b"Content-Length: 9000000\r\n\r\n" + body_of(3_000_000), "hang"),
    ],
    ids=["before the head", "in the head", "in memory", "spooled"],
)
async def test_a_cancel_leaves_nothing(lab: Lab, origin: Origin, handler: Handler) -> None:
    url = origin.on("/x", handler)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await origin.seen("/x")
                await trio.testing.wait_all_tasks_blocked(0.05)
                scope.cancel()

            nursery.start_soon(cancel)
            await lab.fetch(url)
    assert scope.cancelled_caught
    assert lab.spooled() == []
    assert lab.files() == []
    await origin.wait_until(lambda: origin.open_connections == 0)


async def test_a_cancel_in_the_tls_handshake(lab: Lab, origin: Origin) -> None:
    # A listener that accepts and says nothing.
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    accepted = trio.Event()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                async with await listeners[0].accept() as stream:
                    await stream.receive_some()
                    accepted.set()
                    await trio.sleep_forever()

            async def cancel() -> None:
                await accepted.wait()
                scope.cancel()

            nursery.start_soon(accept)
            nursery.start_soon(cancel)
            await lab.fetch(f"https://127.0.0.1:{port}/")
    assert scope.cancelled_caught
    await listeners[0].aclose()


@pytest.mark.slow
async def test_cancels_at_any_moment(lab: Lab, origin: Origin) -> None:
    urls = [
        origin.url(path) for path in ("/bytes/1000", "/bytes/3000000", "/redirect/5", "/slow/0.01/100000")
    ]
    for step in range(120):
        with trio.move_on_after(step * 0.0004):
            await lab.fetch(urls[step % len(urls)], limit=1)
    assert lab.spooled() == []
    assert (await lab.fetch(urls[0], limit=1)).verdict is Verdict.SUCCEEDED
