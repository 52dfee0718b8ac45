"""Responses before the end of the request: each is whole, and there is exactly one (H33)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from servers.api import Served, read_to_end

TIMES = 20
"""The order of two tasks decided whether the response was lost, so each case is tried often."""

WAITS = b"Host: localhost\r\nExpect: 100-continue\r\n"

EARLY = [
    pytest.param(b"POST /nothing", 404, id="404"),
    pytest.param(b"PUT /download", 405, id="405"),
    pytest.param(b"PUT /jobs", 405, id="405 of a view"),
    pytest.param(b"POST /retry/00000000000000", 404, id="404 of a view"),
]


def statuses(data: bytes) -> list[int]:
    """The statuses of all responses; the last response must be whole."""
    head, _, body = data.rpartition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    assert length, data
    assert len(body) == int(length[1]), data
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


async def repeat(call: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(TIMES):
            nursery.start_soon(call)


@pytest.mark.row("H33")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "options", "expected"),
    [
        ("/nothing", (), "404"),
        ("/download", (), "405"),
        ("/jobs", (), "405"),
        ("/download", ("-X", "POST"), "413"),
    ],
)
async def test_curl_uploads_its_input(
    api: Served, tmp_path: Path, path: str, options: tuple[str, ...], expected: str
) -> None:
    """`curl -T -` does not know the size, so it sends chunks, and asks before it sends them."""
    body = tmp_path / "body"
    body.write_bytes(b"x" * 1_000_000)
    url = f"http://127.0.0.1:{api.port}{path}"
    command = ["curl", "-sS", "--max-time", "20", "--noproxy", "*", "-w", "%{http_code}"]
    command += [*options, "-T", "-", url]
    results: list[str] = []
    limiter = trio.CapacityLimiter(4)

    async def upload() -> None:
        async with limiter:
            with body.open("rb") as file:
                done = await trio.run_process(command, stdin=file, capture_stdout=True)
        results.append(done.stdout.decode()[-3:])

    await repeat(upload)
    assert results == [expected] * TIMES


@pytest.mark.row("H33")
@pytest.mark.parametrize(("line", "expected"), EARLY)
@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
async def test_a_client_that_waits_for_100_continue_gets_the_response(
    api: Served, line: bytes, expected: int, framing: bytes
) -> None:
    async def ask() -> None:
        async with await api.connect() as stream:
            await stream.send_all(line + b" HTTP/1.1\r\n" + WAITS + framing + b"\r\n\r\n")
            assert statuses(await read_to_end(stream)) in ([expected], [100, expected])

    await repeat(ask)


@pytest.mark.row("H33")
async def test_a_declared_length_that_is_too_large_is_refused_before_the_body(api: Served) -> None:
    async def ask() -> None:
        answer = await api.say(b"POST /download HTTP/1.1\r\n" + WAITS + b"Content-Length: 10000000\r\n\r\n")
        assert statuses(answer) == [413]

    await repeat(ask)


POST = b"POST /download HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"

HALF = [
    pytest.param(b"GET /hb HTTP/1.1\r\n" + HOST + b"\r\n", 200, id="a whole request"),
    pytest.param(b"GET /hb HTTP/1.1\r\nHost: loc", 400, id="half a head"),
    pytest.param(POST + HOST + b"Content-Length: 9\r\n\r\n{", 400, id="half a body"),
    pytest.param(POST + HOST + CHUNKED + b"5\r\n{", 400, id="half a chunk"),
    pytest.param(b"POST /downloads HTTP/1.1\r\n" + HOST + CHUNKED, 400, id="no chunk"),
    pytest.param(POST + WAITS + b"Content-Length: 9\r\n\r\n", 400, id="no body"),
]


@pytest.mark.row("H33")
@pytest.mark.parametrize(("data", "expected"), HALF)
async def test_a_client_that_half_closes_gets_one_response(api: Served, data: bytes, expected: int) -> None:
    async def ask() -> None:
        async with await api.connect() as stream:
            await stream.send_all(data)
            await stream.send_eof()
            assert [status for status in statuses(await read_to_end(stream)) if status != 100] == [expected]

    await repeat(ask)


@pytest.mark.row("H33")
@pytest.mark.parametrize(("line", "expected"), EARLY)
async def test_a_client_that_half_closes_within_a_refused_request(
    api: Served, line: bytes, expected: int
) -> None:
    """The route or the missing rest may be found first."""

    async def ask() -> None:
        async with await api.connect() as stream:
            await stream.send_all(line + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            await stream.send_eof()
            assert statuses(await read_to_end(stream)) in ([expected], [400])

    await repeat(ask)


@pytest.mark.row("H33")
async def test_a_malformed_body_of_a_refused_request(api: Served) -> None:
    async def ask() -> None:
        answer = await api.say(
            b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"
        )
        assert statuses(answer) in ([404], [400])

    await repeat(ask)
