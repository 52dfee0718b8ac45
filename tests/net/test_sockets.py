"""Receiving on sockets: when other tasks run."""

import trio

from downloader import sockets

TRIES = 30
"""Trio runs the tasks of one turn in one of two orders, by chance."""


async def received() -> bytes:
    """What is read of a socket that has bytes, beside a task that can run and sends more."""
    near, far = trio.socket.socketpair()
    with near, far:
        await far.send(b"first")

        async def send_more() -> None:
            await far.send(b", second")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_more)
            return await sockets.receive(trio.SocketStream(near), 100)


async def test_other_tasks_run_before_a_read_so_that_what_they_cause_needs_no_wait() -> None:
    assert b"first, second" in {await received() for _ in range(TRIES)}
