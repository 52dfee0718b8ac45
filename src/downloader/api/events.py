"""Snapshots of the fleet as server-sent events (WHATWG HTML, 9.2), for the web page.

Each process has one sampler, which reads the store's state while there are listeners. All listeners share its
newest snapshot, and nothing is queued for them: one that reads slowly misses snapshots. The server
cuts off one that does not read (`Limits.send_s`). The history for the charts is sampled always, and sent in
events of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import trio
from quart.wrappers.response import ResponseBody

from downloader.api.globs import Allows, anything
from downloader.api.history import History
from downloader.api.problems import Refused, unavailable
from downloader.api.snapshot import (
    COUNTED_ROLES,
    DESTINATIONS,
    NOTHING_KNOWN,
    ROLES,
    SAMPLED,
    Snapshot,
    encode,
)
from downloader.observe import Event, get_logger
from downloader.store import JobStore, StoreError

PATH = "/events"

RETRY_MS = 2000
"""Time until a browser reconnects when its stream has ended: a restart takes about as long."""

PAUSE_FACTOR = 9
"""The pause after a sample, as a multiple of the sample's time: sampling takes a tenth of the time."""

PAUSE_MAX_S = 2.0
"""The longest such pause: a sample that waited for an unreachable store cost the store nothing."""

# The comment keeps proxies from closing a silent stream; the event is for scripts, which see no comments.
_ALIVE = b": alive\nevent: alive\ndata: {}\n\n"

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Limits on listeners, and intervals of sampling and events."""

    listeners: int = 64
    """Most listeners of one process; more are answered 503."""
    per_address: int = 16
    """Most listeners from one address, so that one client cannot take all places."""
    sample_s: float = 0.5
    """Shortest time between two samples: a change shows within about a second."""
    history_s: float = 5.0
    """Time between two samples of the history, as between two reports of an instance by default."""
    alive_s: float = 15.0
    """Silence after which an `alive` event is sent; proxies close silent streams after 30 s or more."""


class Events:
    """The listeners of one process and their sampler. `run` samples."""

    def __init__(self, store: JobStore, pace: Pace | None = None) -> None:
        self._store = store
        self.pace = pace or Pace()
        self.history = History(store)
        self._listening: set[Listener] = set()
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
            nursery.start_soon(self._remember)
            nursery.start_soon(self._look)

    async def _remember(self) -> None:
        while True:
            try:
                await self.history.sample()
            except Exception:  # noqa: BLE001  an error of the web page must not stop the API
                _log.exception(Event.API_FAILED, path=PATH)
            self._notify()
            await trio.sleep(self.pace.history_s)

    async def _look(self) -> None:
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
        """End all streams and refuse new ones."""
        self._stopped = True
        self._notify()

    def listener(self, allows: Allows, address: str, until: float = math.inf) -> Listener:
        """A stream, until that time, for a caller that may see these aggregations.

        Raises:
            Refused: 503, there are too many listeners in all or from this address.
        """
        from_here = sum(listener.address == address for listener in self._listening)
        if self._stopped or len(self._listening) >= self.pace.listeners or from_here >= self.pace.per_address:
            raise Refused(_TOO_MANY)
        return Listener(self, allows, address, until)

    def add(self, listener: Listener) -> None:
        """Count the listener and start sampling."""
        self._listening.add(listener)
        self._has_listeners.set()

    def remove(self, listener: Listener) -> None:
        """Forget a listener that has left."""
        self._listening.discard(listener)

    async def next(self, allows: Allows, sent: bytes, known: int, until: float) -> bytes | None:
        """Wait for a snapshot other than `sent`, or a newer sample than number `known`, until that time.

        Returns:
            The newest snapshot; `sent` if it did not change in time; `None` when the API stops.
        """
        with trio.move_on_at(until):
            while not self._stopped and self._encoded(allows) in (b"", sent) and self.history.newest == known:
                await self._changed.wait()
        if self._stopped:
            return None
        return self._encoded(allows) or sent

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
            found = Snapshot(store=True, reports=reports, totals=totals, backlog=backlog, load=load)
        except StoreError:
            found = replace(self._snapshot or NOTHING_KNOWN, store=False)
        except Exception:  # noqa: BLE001  an error of the web page must not stop the API
            if self._snapshot is None or self._snapshot.store:  # log it once, not with each sample
                _log.exception(Event.API_FAILED, path=PATH)
            found = replace(self._snapshot or NOTHING_KNOWN, store=False)
        if found != self._snapshot:
            self._snapshot, self._encoded_for_all = found, b""
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Listener(ResponseBody):
    """One stream: a response's body that waits for snapshots."""

    def __init__(self, events: Events, allows: Allows, address: str, until: float) -> None:
        self.address = address
        self._until = until
        self._events = events
        self._allows = allows
        self._sent = b""
        self._known = 0
        """Number of the last sample that was sent."""
        self._started = False

    async def __aenter__(self) -> Self:
        self._events.add(self)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._events.remove(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._started:
            self._started = True
            return b"retry: %d\n\n" % RETRY_MS
        until = min(self._until, trio.current_time() + self._events.pace.alive_s)
        found = await self._events.next(self._allows, self._sent, self._known, until)
        if found is None or trio.current_time() >= self._until:
            raise StopAsyncIteration
        if found != self._sent:
            self._sent = found
            return b"event: snapshot\ndata: " + found + b"\n\n"
        history = self._events.history
        samples, self._known = history.since(self._known), history.newest
        return b"event: history\ndata: " + samples + b"\n\n" if samples else _ALIVE


_TOO_MANY = unavailable("too_many_listeners", "There are too many listeners; try again.")
