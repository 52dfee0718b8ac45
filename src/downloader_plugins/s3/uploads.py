"""The multipart uploads in progress in this process, which must not be aborted as leftovers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio


class Uploads:
    """Shared by all `Bucket` objects that may upload to the same bucket."""

    def __init__(self) -> None:
        self._live: set[str] = set()
        self._turns: dict[str, trio.Lock] = {}

    def __contains__(self, upload: str) -> bool:
        return upload in self._live

    @contextmanager
    def live(self, upload: str) -> Iterator[None]:
        """The upload is in progress while the context is open."""
        self._live.add(upload)
        try:
            yield
        finally:
            self._live.discard(upload)

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        """A lock for each key: between its creation and `live` an upload would be taken for a leftover."""
        lock = self._turns.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._turns.pop(key, None)
