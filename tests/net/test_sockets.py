"""Receiving on sockets: when other tasks run."""

import trio

from downloader import sockets


async def test_other_tasks_run_before_a_read_so_that_what_they_cause_needs_no_wait() -> None:
    near, far = trio.socket.socketpair()
    with near, far:
        stream = trio.SocketStream(near)
        await far.send(b"first")

        async def send_more() -> None:
            await far.send(b", second")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_more)
            assert await sockets.receive(stream, 100) == b"first, second"
