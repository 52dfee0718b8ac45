"""The asyncio loop inside Trio in which the Redis client runs; opened once, outermost."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio_asyncio


@asynccontextmanager
async def asyncio_loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """An asyncio loop that runs while the context lasts; an exception that no task catches ends it."""
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_on_error)
        yield loop


def _on_error(loop: Any, context: dict[str, Any]) -> None:
    if not _is_harmless(context):
        loop.default_exception_handler(context)


def _is_harmless(context: dict[str, Any]) -> bool:
    """Whether asyncio's own loop would go on. In trio-asyncio 0.16 the error would end the process."""
    error = context.get("exception")
    if not isinstance(error, OSError):
        return False
    # asyncio closes the socket of an abandoned connection attempt (a time-out, a stop, a dead server) before
    # it unregisters it from the loop. trio-asyncio may be about to wait for the closed socket.
    if error.errno == errno.EBADF:
        return True
    # A connection that was lost keeps its error in a future for `wait_closed`, and calls have had it already.
    # `StreamReaderProtocol.__del__` retrieves it, but the garbage collector may come to the future first.
    future = context.get("future")
    return future is not None and not isinstance(future, asyncio.Task)
