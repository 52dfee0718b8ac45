"""A wake-up that may be set many times before it is waited for, and then counts once."""

from __future__ import annotations

import trio


class Wake:
    """Level-triggered: set before the wait, the wait returns at once. One waiter."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Wake the waiter, now or when it comes."""
        self._event.set()

    async def wait(self) -> None:
        """Return once after one or more `set`; a cancelled wait has consumed nothing."""
        await self._event.wait()
        self._event = trio.Event()
