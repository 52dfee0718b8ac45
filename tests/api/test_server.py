"""The HTTP server with applications that do what the API's own routes do not."""

from __future__ import annotations

import gc
import socket
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path
from time import thread_time

import pytest
import trio
import trio.testing

from downloader.server import ENDLESS, AsgiApp, Limits, Message, Receive, Send, client_address, serve_http
from downloader.server.parser import Received
from servers.api import read_to_end

GET = b"GET /path?query HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


async def served(app: AsgiApp, nursery: trio.Nursery) -> trio.SocketStream:
    """A connection to a server of this application, which ends with the nursery."""
    port = await listening(app, nursery, Limits(linger_s=0.1))
    return await trio.open_tcp_stream("127.0.0.1", port)


async def listening(app: AsgiApp, nursery: trio.Nursery, limits: Limits) -> int:
    """The port of a server of this application, which ends with the nursery."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]

    async def run(task_status: trio.TaskStatus[None]) -> None:
        await serve_http(
            app,
            sockets=[sock],
            stop=trio.sleep_forever,
            grace_s=0,
            limits=limits,
            task_status=task_status,
        )

    await nursery.start(run)
    return port


async def ask(app: AsgiApp, data: bytes) -> bytes:
    async with trio.open_nursery() as nursery:
        async with await served(app, nursery) as stream:
            await stream.send_all(data)
            answer = await read_to_end(stream)
        nursery.cancel_scope.cancel()
    return answer


async def stream_pieces(_scope: Message, _receive: Receive, send: Send) -> None:
    await send(START)
    for piece in (b"one", b"", b"two"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


async def test_a_body_of_unknown_length_is_chunked() -> None:
    answer = await ask(stream_pieces, GET)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()
    assert body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


async def test_requests_sent_at_once_do_not_keep_other_tasks_waiting() -> None:
    turns = 0
    turns_before: list[int] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        turns_before.append(turns)
        await stream_pieces(scope, receive, send)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await ask(app, 10 * GET.replace(b"Connection: close\r\n", b"") + GET)
        nursery.cancel_scope.cancel()
    # Trio runs the tasks of a turn in any order, so the last of a turn may be the first of the next.
    assert len(turns_before) == 11
    assert max(Counter(turns_before).values()) <= 2


async def test_head_has_no_body() -> None:
    answer = await ask(stream_pieces, GET.replace(b"GET", b"HEAD"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")


async def test_http_1_0_gets_a_body_that_the_close_ends() -> None:
    answer = await ask(stream_pieces, b"GET / HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nonetwo")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_which_addresses_are_one_client_s(one: str, other: str, same: bool) -> None:  # noqa: FBT001  a column
    """Limits for each client hold for what it cannot choose: of an IPv6 address the first half."""
    assert (client_address(one) == client_address(other)) is same


async def test_the_scope_of_a_request() -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.append(scope)
        seen.append(await receive())
        await stream_pieces(scope, receive, send)

    await ask(app, GET.replace(b"/path", b"/p%61th%2fx%20%C3%BC"))
    scope, body = seen
    assert (scope["type"], scope["method"], scope["http_version"]) == ("http", "GET", "1.1")
    assert (scope["path"], scope["raw_path"]) == ("/path/x ü", b"/p%61th%2fx%20%C3%BC")
    assert scope["query_string"] == b"query"
    assert (b"host", b"localhost") in scope["headers"]
    assert scope["client"][0] == "127.0.0.1"
    assert body == {"type": "http.request", "body": b"", "more_body": False}


async def fail(_scope: Message, _receive: Receive, _send: Send) -> None:
    raise RuntimeError("secret")


async def fail_in_a_nursery(_scope: Message, _receive: Receive, _send: Send) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(fail, {}, _receive, _send)


async def answer_nothing(_scope: Message, _receive: Receive, _send: Send) -> None:
    pass


async def begin_with_the_body(_scope: Message, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"x"})


@pytest.mark.parametrize("app", [fail, fail_in_a_nursery, answer_nothing, begin_with_the_body])
async def test_a_failing_application(app: AsgiApp) -> None:
    answer = await ask(app, GET)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b'"code": "internal"' in answer
    assert b"secret" not in answer


async def fail_midway(_scope: Message, _receive: Receive, send: Send) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    raise RuntimeError("secret")


async def test_an_answer_that_fails_midway_is_cut_off() -> None:
    answer = await ask(fail_midway, GET)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n3\r\none\r\n")  # without the last chunk, so the client sees the cut


@pytest.mark.parametrize("sent", [b"one", b"too much"])
async def test_a_body_that_is_not_as_long_as_declared_is_not_sent(sent: bytes) -> None:
    async def app(_scope: Message, _receive: Receive, send: Send) -> None:
        await send(START | {"headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": sent})

    answer = await ask(app, GET)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert sent not in answer


@pytest.mark.parametrize("rest", [b"", b"too much"])
async def test_a_streamed_body_that_is_not_as_long_as_declared_ends_the_connection(rest: bytes) -> None:
    async def app(_scope: Message, _receive: Receive, send: Send) -> None:
        await send(START | {"headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": rest})

    kept = GET.replace(b"Connection: close\r\n", b"")
    answer = await ask(app, kept + kept)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"\r\n\r\none")


async def test_a_header_with_a_line_break_is_not_sent() -> None:
    async def app(_scope: Message, _receive: Receive, send: Send) -> None:
        await send(START | {"headers": [(b"location", b"/a\r\nset-cookie: a")]})
        await send({"type": "http.response.body"})

    answer = await ask(app, GET)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"set-cookie" not in answer


async def test_the_client_s_leaving_is_told() -> None:
    left = trio.Event()
    started = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scope[ENDLESS] = True
        await send(START)
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        started.set()
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with trio.open_nursery() as nursery:
        async with await served(app, nursery) as stream:
            await stream.send_all(GET)
            await started.wait()
        with trio.fail_after(20):
            await left.wait()
        nursery.cancel_scope.cancel()


async def test_sending_to_a_client_that_left_raises_an_os_error() -> None:
    failed = trio.Event()

    async def app(_scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        except OSError:
            failed.set()
            raise

    async with trio.open_nursery() as nursery:
        async with await served(app, nursery) as stream:
            await stream.send_all(GET)
        with trio.fail_after(20):
            await failed.wait()
        nursery.cancel_scope.cancel()


async def test_sending_after_the_stop_has_less_time() -> None:
    stopped = trio.Event()

    async def app(_scope: Message, _receive: Receive, send: Send) -> None:
        stopped.set()
        await trio.testing.wait_all_tasks_blocked()
        await send(START)
        await send({"type": "http.response.body", "body": bytes(50_000_000)})

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            serving = partial(
                serve_http,
                app,
                sockets=[sock],
                stop=stopped.wait,
                grace_s=60,
                limits=Limits(stop_send_s=0.1, linger_s=0.1),
            )
            await nursery.start(serving)
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(GET)
    await stream.aclose()


async def test_bodies_arrive_whole() -> None:
    got: list[bytes] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        data, more = b"", True
        while more:
            message = await receive()
            data, more = data + message["body"], message["more_body"]
        got.append(data)
        await stream_pieces(scope, receive, send)

    body = bytes(range(256)) * 1000
    length = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    chunked = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"3e8\r\n%b\r\n" % body[start : start + 1000] for start in range(0, len(body), 1000))
    await ask(app, length + body + chunked + chunks + b"0\r\n\r\n")
    assert got == [body, body]


async def test_a_unix_socket(tmp_path: Path, nursery: trio.Nursery) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))

    async def run(task_status: trio.TaskStatus[None]) -> None:
        await serve_http(
            stream_pieces, sockets=[sock], stop=trio.sleep_forever, grace_s=0, task_status=task_status
        )

    await nursery.start(run)
    async with await trio.open_unix_socket(tmp_path / "s") as stream:
        await stream.send_all(GET)
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 200 ")
    nursery.cancel_scope.cancel()


@pytest.mark.row("H25")
async def test_idle_connections_keep_no_headers() -> None:
    clients, header_bytes = 20, 12_000

    async def ask_all(streams: list[trio.SocketStream], header: bytes) -> int:
        for stream in streams:
            await stream.send_all(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nA: %b\r\n\r\n" % header)
            assert (await stream.receive_some()).endswith(b"\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        async with trio.open_nursery() as nursery:
            port = await listening(stream_pieces, nursery, Limits())
            streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(clients)]
            await ask_all(streams, b"x" * header_bytes)
            before = await ask_all(streams, b"x")
            growth = await ask_all(streams, b"x" * header_bytes) - before
            nursery.cancel_scope.cancel()
        for stream in streams:
            await stream.aclose()
    finally:
        tracemalloc.stop()
    assert growth < clients * header_bytes / 2


@pytest.mark.row("H25")
def test_the_cost_of_a_head_that_comes_byte_by_byte_grows_with_its_size_only() -> None:
    size = 64 * 1024
    received = Received()

    def quarter() -> float:
        begun = thread_time()
        for _ in range(size // 4):
            received.add(b"x")
            assert received.take_head(size) is None
        return thread_time() - begun

    costs = [quarter() for _ in range(4)]
    assert costs[3] < 3 * costs[0]


@pytest.mark.row("F27")
async def test_connections_share_the_memory_for_bodies_that_nobody_has_read() -> None:
    clients, piece, size = 16, 4096, 100_000
    begun, go, ended = trio.Semaphore(0), trio.Event(), trio.Semaphore(0)
    first: list[int] = []
    rest: list[int] = []

    async def app(_scope: Message, receive: Receive, _send: Send) -> None:
        begun.release()
        await go.wait()
        message = await receive()
        first.append(len(message["body"]))
        while message["more_body"]:
            message = await receive()
            rest.append(len(message["body"]))
        ended.release()

    async with trio.open_nursery() as nursery:
        port = await listening(app, nursery, Limits(unread_bytes=clients * piece))
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(clients)]
        for stream in streams:
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in streams:
            await begun.acquire()
        async with trio.open_nursery() as sending:
            for stream in streams:
                sending.start_soon(stream.send_all, b"x" * size)
            await trio.testing.wait_all_tasks_blocked(0.05)
            go.set()
        for stream in streams:
            await ended.acquire()
            await stream.aclose()
        nursery.cancel_scope.cancel()
    assert sum(first) + sum(rest) == clients * size
    assert max(first) < 2 * piece


@pytest.mark.parametrize("checkpoints", range(6))
async def test_a_response_while_100_continue_is_sent(checkpoints: int) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            await stream_pieces(scope, receive, send)
            nursery.cancel_scope.cancel()

    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    assert (await ask(app, head)).endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
