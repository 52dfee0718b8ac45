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
    # asyncio closes the socket of an abandoned connection attempt (a time-out, a stop, a dead server) before
    # it unregisters it from the loop. asyncio's own loop tolerates that. trio-asyncio 0.16 may be about to
    # wait for the closed socket; the error that it gets would end the loop and the process.
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        return
    loop.default_exception_handler(context)
