"""Snapshots of the fleet as server-sent events (WHATWG HTML, 9.2), for the web page.

Each process has one sampler, which reads the store's state while there are listeners. All listeners share its
newest snapshot, and nothing is queued for them: a slow listener misses snapshots. The server closes the
connection of a listener that does not read (`Limits.send_s`). The history for the charts is sampled without
listeners too, and sent in events of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

import trio

from downloader.api.history import History
from downloader.api.problems import refused
from downloader.api.snapshot import (
    COUNTED_ROLES,
    DESTINATIONS,
    NOTHING_KNOWN,
    ROLES,
    SAMPLED,
    Snapshot,
    encode,
)
from downloader.globs import Allows, anything
from downloader.observe import Event, get_logger
from downloader.store import JobStore, StoreError

PATH = "/events"

RETRY_MS = 2000
"""Time until a browser reconnects after the end of a stream: a restart takes about as long."""

PAUSE_FACTOR = 9
"""Pause for 9 times as long as a sample took, so sampling uses at most 10% of the time."""

PAUSE_MAX_S = 2.0
"""Longest pause that `PAUSE_FACTOR` causes. A sample is also slow while the store cannot be reached, and then
costs the store nothing."""

# The comment keeps proxies from closing a silent stream; the event is for scripts, which see no comments.
_ALIVE = b": alive\nevent: alive\ndata: {}\n\n"

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Limits on listeners, and intervals of sampling and events."""

    listeners: int = 64
    """Most listeners of one process; others get a 503."""
    per_address: int = 16
    """Most listeners from one address, so that one client cannot take all places."""
    sample_s: float = 0.5
    """Shortest time between two samples: a change shows within about a second."""
    history_s: float = 5.0
    """Time between two samples of the history, as between two reports of an instance by default."""
    stall_s: float = 600.0
    """Downloads count as stalled if one has been due for this long while no attempt ended or received a
    byte."""
    alive_s: float = 15.0
    """Silence after which an `alive` event is sent; proxies close silent streams after 30 s or more."""


class Events:
    """The listeners of one process, and the sampler for the listeners. `run` samples."""

    def __init__(self, store: JobStore, pace: Pace | None = None) -> None:
        self._store = store
        self.pace = pace or Pace()
        self.history = History(store)
        self._received: Sequence[object] = ()
        """The bytes of running downloads, from the last reports of the processors."""
        self._listening: Counter[str] = Counter()
        """Listeners by address."""
        self._has_listeners = trio.Event()
        self._stopped = False
        self._snapshot: Snapshot | None = None
        self._changed = trio.Event()
        """Set and replaced when `_snapshot` changes or the streams are to end."""
        self._encoded_for_all = b""
        """`_snapshot` encoded for callers that may see all; empty until first needed."""

    async def run(self) -> None:
        """Sample the history, and while there are listeners the store's state; runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sample_history)
            nursery.start_soon(self._sample_state)

    async def _sample_history(self) -> None:
        while True:
            try:
                await self.history.sample()
                await self.history.keep_backlog()
            except Exception:  # noqa: BLE001  an error of the web page must not stop the API
                _log.exception(Event.API_FAILED, path=PATH)
            self._notify()
            await trio.sleep(self.pace.history_s)

    async def _sample_state(self) -> None:
        while True:
            await self._has_listeners.wait()
            while self._listening:
                started = trio.current_time()
                await self._sample()
                took = trio.current_time() - started
                await trio.sleep(max(self.pace.sample_s, min(PAUSE_FACTOR * took, PAUSE_MAX_S)))
            self._has_listeners = trio.Event()
            self._snapshot = None  # it would be out of date for the next listener

    def stop(self) -> None:
        """End all streams and refuse new streams."""
        self._stopped = True
        self._notify()

    @asynccontextmanager
    async def listener(
        self, allows: Allows, address: str, until: float = math.inf
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Register a listener while the context is open; yields the listener's events, encoded.

        The events end at the Trio time `until`, and at `stop`. `allows`: the aggregations that the caller may
        see. After a cancel the listener is no longer counted.

        Raises:
            Refused: 503, there are too many listeners in all or from this address, or `stop` was called.
        """
        listening = self._listening
        if (
            self._stopped
            or listening.total() >= self.pace.listeners
            or listening[address] >= self.pace.per_address
        ):
            raise refused("too_many_listeners")
        listening[address] += 1  # before any checkpoint, so that no other passes the check meanwhile
        self._has_listeners.set()
        try:
            async with aclosing(self._events(allows, until)) as events:
                yield events
        finally:
            listening[address] -= 1
            listening += Counter()  # removes addresses whose count is 0

    async def _events(self, allows: Allows, until: float) -> AsyncGenerator[bytes]:
        yield b"retry: %d\n\n" % RETRY_MS
        sent, sent_sample = b"", 0
        while True:
            alive_at = min(until, trio.current_time() + self.pace.alive_s)
            newest = await self._next(allows, sent, sent_sample, alive_at)
            if newest is None or trio.current_time() >= until:
                return
            if newest != sent:
                sent = newest
                yield b"event: snapshot\ndata: " + newest + b"\n\n"
            else:
                samples, sent_sample = self.history.since(sent_sample), self.history.newest
                if allows is not anything:  # the history is the whole fleet's
                    samples = b""
                yield b"event: history\ndata: " + samples + b"\n\n" if samples else _ALIVE

    async def _next(self, allows: Allows, sent: bytes, sent_sample: int, until: float) -> bytes | None:
        """Wait until that time for a snapshot other than `sent`, or a sample newer than number `sent_sample`.

        Returns:
            The newest snapshot; `sent` if it did not change in time; `None` when the API stops.
        """
        newest = b""
        with trio.move_on_at(until):
            while not self._stopped:
                newest = self._encoded(allows)  # once: for a restricted token it takes milliseconds
                if newest not in (b"", sent) or self.history.newest != sent_sample:
                    break
                await self._changed.wait()
        return None if self._stopped else newest or sent

    def _encoded(self, allows: Allows) -> bytes:
        """The newest snapshot, encoded for this caller; empty while there is none."""
        if self._snapshot is None:
            return b""
        if allows is not anything:
            return encode(self._snapshot, allows)
        if not self._encoded_for_all:
            self._encoded_for_all = encode(self._snapshot, anything)
        return self._encoded_for_all

    async def _sample(self) -> None:
        try:
            load = await self._store.load(SAMPLED)
            backlog = await self._store.backlog(DESTINATIONS)
            reports = {role: await self._store.reports(role) for role in ROLES}
            totals = {role: await self._store.totals(role) for role in COUNTED_ROLES}
            received = [report.get("running") for report in reports["processor"]]
            if received != self._received:
                self._received, self.history.moved_at = received, trio.current_time()
            due_ms = backlog.oldest_due_ms or backlog.now_ms
            quiet_s = min((backlog.now_ms - due_ms) / 1000, trio.current_time() - self.history.moved_at)
            snapshot = Snapshot(
                store=True,
                reports=reports,
                totals=totals,
                backlog=backlog,
                load=load,
                stalled=quiet_s > self.pace.stall_s,
            )
        except StoreError:
            snapshot = replace(self._snapshot or NOTHING_KNOWN, store=False)
        except Exception:  # noqa: BLE001  an error of the web page must not stop the API
            if self._snapshot is None or self._snapshot.store:  # log it once, not with each sample
                _log.exception(Event.API_FAILED, path=PATH)
            snapshot = replace(self._snapshot or NOTHING_KNOWN, store=False)
        if snapshot != self._snapshot:
            self._snapshot, self._encoded_for_all = snapshot, b""
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
