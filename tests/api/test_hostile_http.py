"""Clients that are slow, silent or greedy, or send ambiguous requests; and the stop of the server."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from downloader.server import Limits
from downloader.storage import StoredFile
from servers.api import JOB, Served, Serving, read_to_end
from servers.steps import LIVE_S, measured_steps

QUICK = Limits(head_s=0.5, idle_s=0.5, body_grace_s=0.5, send_s=0.5, linger_s=0.5)
"""Short limits, so that the tests need not wait as long as clients may."""

GET = b"GET /hb HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSING_GET = b"GET /hb HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = b"POST /download HTTP/1.1\r\nHost: localhost\r\n"


def status(answer: bytes) -> int:
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert match, answer[:80]
    return int(match[1])


def answers(data: bytes) -> int:
    return len(re.findall(rb"HTTP/1\.1 \d{3} ", data))


def code(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"x-content-type-options: nosniff" in head.lower()
    assert b"connection: close" in head.lower()
    value: str = json.loads(body)["code"]
    return value


SMUGGLING = [
    # Two framings, and a proxy may believe the other one.
    (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET", 400, "bad_framing"),
    (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", 400, "bad_framing"),
    (b"POST /hb HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_framing"),
    (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, "bad_request"),
    (POST + b"Content-Length: 5, 6\r\n\r\nhello", 400, "bad_request"),
    (POST + b"Content-Length: +5\r\n\r\nhello", 400, "bad_request"),
    (POST + b"Content-Length: -1\r\n\r\n", 400, "bad_request"),
    (POST + b"Content-Length: 0x5\r\n\r\nhello", 400, "bad_request"),
    (POST + b"Content-Length : 5\r\n\r\nhello", 400, "bad_request"),
    (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400, "bad_request"),
    (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400, "bad_request"),
    (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, "bad_request"),
    (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, "bad_request"),
    (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n", 400, "bad_request"),
    (POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_request"),
    # Line ends that some take for one and some do not.
    (b"\rGET /hb HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
    (b"\n\r\rGET /hb HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
    (b"GET /hb\r\nX: HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
    (b"GET /hb HTTP/1.1\nHost: localhost\n\n", 400, "bad_request"),
    (b"GET /hb HTTP/1.1\r\nHost: localhost\n\r\n", 400, "bad_request"),
    (b"GET /hb HTTP/1.1\r\nHost: localhost\r\nA: b\rc\r\n\r\n", 400, "bad_request"),
    (b"GET /hb HTTP/1.1\r\nHost: localhost\r\nA: b\r\n c: d\r\n\r\n", 400, "bad_request"),
    (b"GET /hb HTTP/1.1\r\nHost: localhost\r\nA: b\x00\r\n\r\n", 400, "bad_request"),
    (b"GET /hb HTTP/1.1\r\n Host: localhost\r\n\r\n", 400, "bad_request"),
    # Other protocols.
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0", 400, "bad_request"),
    (b"PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version"),
    (b"GET /hb HTTP/3.0\r\nHost: localhost\r\n\r\n", 505, "http_version"),
    (b"GET /hb\r\n\r\n", 400, "bad_request"),
    (b"get /hb HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
    (b"post /download HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", 400, "bad_request"),
    (b"GET  /hb HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
    (b"GET /hb HTTP/0.9\r\nHost: localhost\r\n\r\n", 505, "http_version"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad_request"),
    (b"nonsense\r\n\r\n", 400, "bad_request"),
    # Hosts and targets.
    (b"GET /hb HTTP/1.1\r\n\r\n", 400, "bad_request"),
    (b"GET /hb HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n", 400, "bad_request"),
    (b"GET hb HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
    (b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
    (b"GET http:///hb HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
]


@pytest.mark.parametrize(("data", "expected", "reason"), SMUGGLING, ids=lambda value: repr(value)[:60])
@pytest.mark.row("H17")
async def test_one_refusal_and_the_connection_ends(
    serving: Serving, data: bytes, expected: int, reason: str
) -> None:
    api = await serving(limits=QUICK)
    answer = await api.say(data + GET)
    assert (status(answer), code(answer)) == (expected, reason)
    assert answers(answer) == 1
    assert (await api.client.get("/hb")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"xyz\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"-1\r\n\r\n",
        b"5\nhello\n0\n\n" + b"x" * 20_000,
        b"2\r\n{}\r\n0\r\n\n",
        b"2\r\n{}\r\n0\r\nA: b\nC: d\r\n\r\n",
        b"5;" + b"x" * 20_000,
    ],
)
@pytest.mark.row("H17")
async def test_malformed_chunks(serving: Serving, body: bytes) -> None:
    api = await serving(limits=QUICK)
    answer = await api.say(POST + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert status(answer) in (400, 431)
    assert answers(answer) == 1


@pytest.mark.row("H25")
@pytest.mark.parametrize("path", [b"/download", b"/downloads"])
@pytest.mark.parametrize(
    ("chunk", "data"), [(b"1\r\n \r\n", 1), (b"10;" + b"x" * 1000 + b"\r\n" + b" " * 16 + b"\r\n", 16)]
)
async def test_a_body_in_tiny_chunks_costs_little(api: Served, path: bytes, chunk: bytes, data: int) -> None:
    """It is refused long before all of it has arrived, and never blocks the loop."""
    head = POST.replace(b"/download", path) + b"Transfer-Encoding: chunked\r\n\r\n"
    body = chunk * (40_000 // data)
    with measured_steps() as steps:
        answer = await api.say(head + body)
    assert (status(answer), code(answer)) == (400, "small_chunks")
    assert steps.longest_s < LIVE_S


@pytest.mark.row("H17")
async def test_nothing_follows_a_chunked_request(api: Served) -> None:
    """A proxy may see its end elsewhere: what follows must not be a request."""
    answer = await api.say(POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + GET)
    assert status(answer) == 422
    assert b"connection: close" in answer.lower()
    assert answers(answer) == 1


@pytest.mark.row("H17")
async def test_an_upgrade_does_not_end_a_chunked_request(api: Served) -> None:
    """llhttp takes what follows the head of an upgrade for another protocol."""
    head = POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    job = json.dumps(JOB).encode()
    answer = await api.say(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(job), job) + GET)
    assert status(answer) == 201
    assert answers(answer) == 1


@pytest.mark.row("H16")
async def test_a_head_that_is_too_large(api: Served) -> None:
    answer = await api.say(b"GET /hb HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 20_000 + b"\r\n\r\n")
    assert (status(answer), code(answer)) == (431, "head_too_large")
    answer = await api.say(b"GET /" + b"x" * 20_000)
    assert (status(answer), code(answer)) == (431, "head_too_large")
    many = b"A:\r\n" * 3000
    answer = await api.say(CLOSING_GET[:-2] + many + b"\r\n")
    assert (status(answer), code(answer)) == (431, "head_too_large")
    half_a_body = b"Content-Length: 9\r\n\r\n{"
    answer = await api.say(POST + many + half_a_body)
    assert (status(answer), code(answer)) == (431, "head_too_large")
    assert status(await api.say(CLOSING_GET[:-2] + b"A:\r\n" * 98 + b"\r\n")) == 200
    many = b"".join(b"X-%d: y\r\n" % number for number in range(200_000))
    answer = await api.say(b"GET /hb HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n")
    assert (status(answer), code(answer)) == (431, "head_too_large")


@pytest.mark.row("H16")
async def test_a_client_that_sends_10_mb_can_read_the_refusal(api: Served) -> None:
    for head in (b"Content-Length: 10000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n989680\r\n"):
        answer = await api.say(POST + head + b"x" * 10_000_000)
        assert (status(answer), code(answer)) == (413, "too_large")


async def test_a_body_declared_too_large_is_refused_without_100_continue(api: Served) -> None:
    answer = await api.say(POST + b"Expect: 100-continue\r\nContent-Length: 10000000\r\n\r\n")
    assert status(answer) == 413


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    ],
)
@pytest.mark.row("H17")
async def test_an_upgrade_is_ignored(api: Served, upgrade: bytes) -> None:
    answer = await api.say(GET[:-2] + upgrade + b"\r\n" + CLOSING_GET)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"200"]


async def test_100_continue(api: Served) -> None:
    body = json.dumps(JOB).encode()
    async with await api.connect() as stream:
        await stream.send_all(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(body)
        assert status(bytes(await stream.receive_some())) == 201


async def test_keep_alive_and_pipelining(api: Served) -> None:
    body = json.dumps(JOB).encode()
    post = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /hb HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = await api.say(b"\r\n" + GET + post + GET + post + last)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"201", b"200", b"201", b"200"]


async def test_http_1_0(api: Served) -> None:
    answer = await api.say(b"GET /hb HTTP/1.0\r\n\r\n")
    assert status(answer) == 200
    assert b"connection: close" in answer.lower()


async def test_the_absolute_form(api: Served) -> None:
    answer = await api.say(
        b"GET HTTP://localhost/hb?a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert status(answer) == 200


async def test_two_slashes_before_a_route_are_no_route(api: Served) -> None:
    """For URL parsers, what follows them is a host."""
    post = POST.replace(b"/download", b"//download") + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}"
    answer = await api.say(post)
    assert (status(answer), code(answer)) == (404, "not_found")


async def test_no_header_names_the_server(api: Served) -> None:
    answer = await api.client.get("/hb")
    assert "server" not in answer.headers
    assert "date" in answer.headers


@pytest.mark.slow
@pytest.mark.row("H16")
async def test_silence(serving: Serving) -> None:
    api = await serving(limits=QUICK)
    assert await api.say(b"") == b""
    for data in (b"G", b"GET /hb HTTP/1.1\r\nHost:", POST + b"Content-Length: 9\r\n\r\n{"):
        answer = await api.say(data)
        assert (status(answer), code(answer)) == (408, "request_timeout")
    answer = await api.say(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe")
    assert (status(answer), code(answer)) == (408, "request_timeout")
    answer = await api.say(
        b"POST /retry/00000000000000 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    )
    assert status(answer) in (404, 408)
    answer = await api.say(GET)
    assert status(answer) == 200


@pytest.mark.row("H16")
async def test_a_head_that_begins_on_an_idle_connection_has_the_time_of_a_head(serving: Serving) -> None:
    api = await serving(limits=Limits(head_s=0.1, idle_s=60, linger_s=0.1))
    async with await api.connect() as stream:
        await stream.send_all(GET)
        assert status(bytes(await stream.receive_some())) == 200
        await stream.send_all(b"GET /hb HTTP/1.1\r\n")
        answer = await read_to_end(stream)
        assert (status(answer), code(answer)) == (408, "request_timeout")


@pytest.mark.slow
@pytest.mark.row("H16")
async def test_a_head_that_begins_behind_a_split_one_has_the_time_of_a_head(serving: Serving) -> None:
    api = await serving(limits=Limits(head_s=1.0, idle_s=60, linger_s=0.1))
    async with await api.connect() as stream:
        await stream.send_all(GET[:9])
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(GET[9:] + GET[:9])
        first, _, second = (await read_to_end(stream)).partition(b"HTTP/1.1 408 ")
        assert (status(first), answers(first)) == (200, 1)
        assert code(b"HTTP/1.1 408 " + second) == "request_timeout"


async def drip(stream: trio.SocketStream, data: bytes) -> None:
    try:
        for byte in data:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.02)
    except trio.BrokenResourceError:
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "rest"),
    [
        (b"GET /hb HTTP/1.1\r\nA: ", b"x" * 500),
        (POST + b"Content-Length: 1000\r\n\r\n", b"{" * 500),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n" * 100),
    ],
    ids=["head", "body", "chunks"],
)
@pytest.mark.row("H16")
async def test_dripping(serving: Serving, start: bytes, rest: bytes) -> None:
    api = await serving(limits=QUICK)
    async with await api.connect() as stream:
        await stream.send_all(start)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, stream, rest)
            answer = await read_to_end(stream)
            nursery.cancel_scope.cancel()
    assert (status(answer), code(answer)) == (408, "request_timeout")


@pytest.mark.slow
async def test_a_body_that_comes_slowly_but_steadily(serving: Serving) -> None:
    # Each piece buys a second, and all of them take longer than the grace period.
    api = await serving(limits=Limits(body_grace_s=2.0, body_rate=20))
    body = json.dumps(JOB | {"extra": "x" * 600}).encode()
    async with await api.connect() as stream:
        await stream.send_all(POST + b"Content-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 20):
            await stream.send_all(body[start : start + 20])
            await trio.sleep(0.1)
        assert status(bytes(await stream.receive_some())) == 201


async def read_or_reset(stream: trio.SocketStream) -> bytes:
    """What arrives until the server closes or resets the connection."""
    answer = b""
    with suppress(trio.BrokenResourceError):
        while data := await stream.receive_some(65536):
            answer += data
    return answer


@pytest.mark.slow
@pytest.mark.row("H16")
async def test_a_reader_that_does_not_read(serving: Serving, tmp_path: Path) -> None:
    path, size = tmp_path / "large", 10**9
    with path.open("wb") as file:
        file.truncate(size)

    async def files(_key: str) -> StoredFile:
        return StoredFile(path=path, size=size)

    api = await serving(limits=QUICK, files=files)
    async with await api.connect() as stream:
        await stream.send_all(b"GET /files/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = 0
        with trio.fail_after(20), suppress(trio.BrokenResourceError):
            # It reads what there is, and then nothing for longer than the limit.
            while data := await stream.receive_some(10_000_000):
                received += len(data)
                await trio.sleep(2 * QUICK.send_s)
                assert (await api.client.get("/hb")).status_code == 200
    assert received < size


async def test_clients_that_disconnect_log_no_error(api: Served, capfd: pytest.CaptureFixture[str]) -> None:
    body = json.dumps(JOB).encode()
    for data in (
        *(b"G", GET, POST + b"Content-Length: 9\r\n\r\n{", POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n"),
        *(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body, GET * 100),
    ):
        async with await api.connect() as stream:
            await stream.send_all(data)
        async with await api.connect() as stream:
            await stream.send_all(data)
            await stream.send_eof()
            await read_or_reset(stream)
    assert (await api.client.get("/hb")).status_code == 200
    assert "api.failed" not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.row("H16")
async def test_a_thousand_idle_connections(serving: Serving) -> None:
    api = await serving(limits=Limits(connections=600))
    streams: list[trio.SocketStream] = []

    async def connect() -> None:
        streams.append(await api.connect())

    for _ in range(10):
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(connect)
        assert (await api.client.post("/download", json=JOB)).status_code == 201
    for stream in streams:
        await trio.aclose_forcefully(stream)


@pytest.mark.row("H16")
async def test_a_full_server_closes_connections_that_wait_for_their_client(serving: Serving) -> None:
    api = await serving(limits=Limits(connections=2, linger_s=0.1))
    for sent in (b"", b"GET /hb", POST + b"Content-Length: 9\r\n\r\n{"):
        async with await api.connect() as oldest:
            await oldest.send_all(sent)
            async with await api.connect() as other:
                await other.send_all(b"G")
                assert status(await api.say(CLOSING_GET)) == 200
                assert await read_or_reset(oldest) == b""


@pytest.mark.row("H16")
async def test_one_address_cannot_displace_another(serving: Serving) -> None:
    api = await serving(limits=Limits(connections=100, per_address=2))
    other = await trio.open_tcp_stream("127.0.0.1", api.port, local_address="127.0.0.2")
    async with other, await api.connect() as oldest, await api.connect(), await api.connect():
        assert await read_or_reset(oldest) == b""
        await other.send_all(CLOSING_GET)
        assert status(await read_to_end(other)) == 200


async def test_when_all_connections_are_busy(serving: Serving) -> None:
    """Health is answered on the reserve; everything else is refused."""
    api = await serving(limits=Limits(connections=1, linger_s=0.1))
    async with await api.connect() as busy:
        await busy.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status(bytes(await busy.receive_some())) == 200
        for path in (b"/hb", b"/health/live", b"/health/ready"):
            assert status(await api.say(CLOSING_GET.replace(b"/hb", path))) == 200
        answer = await api.say(CLOSING_GET.replace(b"/hb", b"/jobs/00000000000000"))
        assert (status(answer), code(answer)) == (503, "too_many_connections")
        assert b"retry-after: " in answer


async def test_stop_closes_idle_connections_at_once(serving: Serving) -> None:
    api = await serving(grace_s=60)
    async with await api.connect() as idle:
        await idle.send_all(GET)
        assert status(bytes(await idle.receive_some())) == 200
        api.stop()
        with trio.fail_after(20):
            assert await idle.receive_some() == b""
            await api.ended.wait()
        with pytest.raises(OSError, match=r"refused|all attempts"):
            await api.connect()


async def test_stop_lets_a_request_be_answered(serving: Serving) -> None:
    api = await serving(grace_s=60)
    body = json.dumps(JOB).encode()
    async with await api.connect() as stream:
        await stream.send_all(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert b"100" in await stream.receive_some()
        api.stop()
        await stream.send_all(body)
        answer = await read_to_end(stream)
        assert status(answer) == 201
        assert b"connection: close" in answer.lower()
    with trio.fail_after(20):
        await api.ended.wait()


@pytest.mark.slow
async def test_a_stop_closes_connections_that_do_not_read_or_finish(serving: Serving, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * 50_000_000)

    async def files(_key: str) -> StoredFile:
        return StoredFile(path=path, size=50_000_000)

    # Nothing but the grace period ends them within the test.
    api = await serving(
        grace_s=0.3, files=files, limits=Limits(body_grace_s=600, send_s=600, stop_send_s=600)
    )
    async with await api.connect() as sending, await api.connect() as reading:
        await sending.send_all(POST + b"Content-Length: 100\r\n\r\n{")
        await reading.send_all(b"GET /files/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await reading.receive_some(1)
        api.stop()
        with trio.fail_after(20):
            await api.ended.wait()
        assert len(await read_or_reset(reading)) < 50_000_000
