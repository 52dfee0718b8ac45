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
    """An asyncio loop for as long as the context lasts; an error that nobody there catches ends it."""
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_on_error)
        yield loop


def _on_error(loop: Any, context: dict[str, Any]) -> None:
    # asyncio closes the socket of a connection attempt that it gives up (a time-out, a stop, a server that
    # has died) before it stops to watch it. Its own loop forgets a closed socket by itself; trio-asyncio 0.16
    # may be about to wait for it, finds it closed, and would end the loop, hence the process.
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        return
    loop.default_exception_handler(context)
