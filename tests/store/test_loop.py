from __future__ import annotations

import asyncio
import gc
import logging
import socket

import pytest
import trio
import trio.testing
from trio_asyncio import aio_as_trio

from downloader.store import asyncio_loop


async def test_a_socket_closed_while_it_is_watched_ends_nothing() -> None:
    async with asyncio_loop() as loop:
        left, right = socket.socketpair()
        left.setblocking(False)
        loop.add_writer(left.fileno(), lambda: None)
        left.close()
        right.close()
        await trio.testing.wait_all_tasks_blocked()
        assert await aio_as_trio(asyncio.sleep)(0, "goes on") == "goes on"


class Steps(trio.abc.Instrument):
    """The number of steps of a task."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.count = 0
        self._task = task

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


async def test_callbacks_that_are_ready_are_called_in_one_step() -> None:
    async def yield_often() -> None:
        for _ in range(40):
            await asyncio.sleep(0)

    async with asyncio_loop() as loop:
        await trio.testing.wait_all_tasks_blocked()
        steps = Steps(loop._task)  # type: ignore[attr-defined]
        trio.lowlevel.add_instrument(steps)
        try:
            await aio_as_trio(yield_often)()
        finally:
            trio.lowlevel.remove_instrument(steps)
        assert steps.count < 10


async def test_callbacks_without_end_let_other_tasks_run() -> None:
    async with asyncio_loop() as loop:

        def again() -> None:
            handles[:] = [loop.call_soon(again)]

        handles = [loop.call_soon(again)]
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        handles[0].cancel()


async def test_the_error_of_a_lost_connection_that_nobody_waits_for_ends_nothing() -> None:
    async with asyncio_loop() as loop:
        loop.create_future().set_exception(BrokenPipeError(32, "Broken pipe"))
        gc.collect()
        await trio.testing.wait_all_tasks_blocked()
        assert await aio_as_trio(asyncio.sleep)(0, "goes on") == "goes on"


async def test_the_error_of_a_task_that_nobody_waits_for_ends_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise BrokenPipeError

    with caplog.at_level(logging.CRITICAL), pytest.RaisesGroup(BrokenPipeError, flatten_subgroups=True):
        async with asyncio_loop() as loop:
            task = loop.create_task(fail())
            await trio.testing.wait_all_tasks_blocked()
            del task
            gc.collect()
            await trio.sleep(5)


async def test_an_error_that_nobody_catches_ends_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.CRITICAL), pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with asyncio_loop() as loop:
            loop.call_soon(fail)
            await trio.sleep_forever()
