"""The proxy on real sockets: passes everything on, until it is told to fail."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from downloader.testing import Fault, open_tcp_proxy
from servers.loopback import serving
from servers.ports import spare_port

ANSWER_S = 20.0
SILENCE_S = 0.1


class Echo:
    """Sends back what it gets, and keeps it."""

    def __init__(self) -> None:
        self.got = bytearray()

    async def __call__(self, stream: trio.SocketStream) -> None:
        async for data in stream:
            self.got += data
            await stream.send_all(data)


async def talk(stream: trio.SocketStream, data: bytes) -> bytes:
    """Send, and receive as much."""
    answer = b""
    with trio.fail_after(ANSWER_S):
        await stream.send_all(data)
        while len(answer) < len(data) and (more := await stream.receive_some()):
            answer += more
    return answer


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        yield stream


async def test_it_passes_on_bytes_and_ends() -> None:
    echo, data = Echo(), bytes(range(256)) * 1000
    async with serving(echo) as port, open_tcp_proxy(port) as proxy, connected(proxy.port) as stream:
        with trio.fail_after(ANSWER_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, data)
                answer = b""
                while len(answer) < len(data):
                    answer += await stream.receive_some()
            await stream.send_eof()
            assert await stream.receive_some() == b""
        assert answer == data == bytes(echo.got)


async def test_it_leads_to_a_unix_socket() -> None:
    with tempfile.TemporaryDirectory(prefix="proxy-") as folder:
        path = Path(folder, "socket")
        with trio.socket.socket(trio.socket.AF_UNIX) as sock:
            await sock.bind(str(path))
            sock.listen()
            async with trio.open_nursery() as nursery, open_tcp_proxy(path) as proxy:
                nursery.start_soon(trio.serve_listeners, Echo(), [trio.SocketListener(sock)])
                async with connected(proxy.port) as stream:
                    assert await talk(stream, b"over a path") == b"over a path"
                nursery.cancel_scope.cancel()


async def test_away_resets_old_and_new_connections() -> None:
    echo = Echo()
    async with serving(echo) as port, open_tcp_proxy(port) as proxy, connected(proxy.port) as old:
        assert await talk(old, b"before") == b"before"
        with proxy.fault(Fault.AWAY):
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(ANSWER_S):
                await old.receive_some()
            with pytest.raises((trio.BrokenResourceError, OSError)), trio.fail_after(ANSWER_S):
                async with connected(proxy.port) as new:
                    await new.receive_some()
        async with connected(proxy.port) as new:
            assert await talk(new, b"after") == b"after"
        assert echo.got == b"beforeafter"


async def test_silent_takes_connections_and_says_nothing() -> None:
    echo = Echo()
    async with serving(echo) as port, open_tcp_proxy(port) as proxy, connected(proxy.port) as old:
        assert await talk(old, b"before") == b"before"
        with proxy.fault(Fault.SILENT):
            async with connected(proxy.port) as new:
                for stream in (old, new):
                    await stream.send_all(b"lost")
                    with trio.move_on_after(SILENCE_S) as scope:
                        await stream.receive_some()
                    assert scope.cancelled_caught
        with trio.fail_after(ANSWER_S):
            assert await old.receive_some() == b""
        assert echo.got == b"before"


async def test_cut_passes_on_the_request_and_no_answer() -> None:
    echo = Echo()
    async with serving(echo) as port, open_tcp_proxy(port) as proxy, connected(proxy.port) as old:
        assert await talk(old, b"before") == b"before"
        with proxy.fault(Fault.CUT):
            async with connected(proxy.port) as new:
                for stream in (old, new):
                    assert await talk(stream, b"asked") == b""
        assert echo.got == b"before" + 2 * b"asked"


async def test_without_a_target_connections_end() -> None:
    async with open_tcp_proxy(spare_port()) as proxy, connected(proxy.port) as stream:
        with trio.fail_after(ANSWER_S):
            assert await stream.receive_some() == b""
