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
