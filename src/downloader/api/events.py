"""`GET /events`: what the fleet does, as server-sent events (WHATWG HTML, 9.2); what the web page lives on.

One sampler a process looks at the store, and only while somebody listens. Listeners share what it found:
each waits for a change and takes the newest, so one that reads slowly misses what came between and holds
no memory, and one that does not read at all is cut off by the server as for any answer (`Limits.send_s`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import trio
from quart import Response, request
from quart.wrappers.response import ResponseBody
from quart_trio import QuartTrio

from downloader.api.asgi import client_of
from downloader.api.globs import Allows, anything
from downloader.api.jobs import visible_aggregations
from downloader.api.problems import Refused, unavailable
from downloader.api.snapshot import NOTHING_KNOWN, ROLES, SAMPLED, Snapshot, encode
from downloader.observe import Event, get_logger
from downloader.store import JobStore, StoreError

PATH = "/events"

RETRY_MS = 2000
"""After which a browser whose stream has ended asks again: a restart takes about as long."""

PAUSE_FACTOR = 9
"""A look that took long is followed by a pause so many times as long: looking takes a tenth of the time."""

PAUSE_MAX_S = 2.0
"""The longest such pause: a look that only waited for a store that is away has cost nothing."""

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}

# A comment keeps proxies from closing a silent stream; the event tells scripts, which see no comments.
_ALIVE = b": alive\nevent: alive\ndata: {}\n\n"

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How many may listen, and how often they hear something."""

    listeners: int = 64
    """At once, in one process; more are answered 503."""
    per_address: int = 16
    """Of them from one address, so that one client does not keep the others from listening."""
    sample_s: float = 0.5
    """At the least between two looks: what changes shows within about a second."""
    alive_s: float = 15.0
    """Silence after which a listener is told that the stream lives; proxies cut after 30 s or more."""


class Events:
    """The listeners of one process and their sampler. `run` samples; `add_events` adds the route."""

    def __init__(self, store: JobStore, pace: Pace | None = None) -> None:
        self._store = store
        self.pace = pace or Pace()
        self._listening: set[Listener] = set()
        self._somebody = trio.Event()
        self._stopped = False
        self._snapshot: Snapshot | None = None
        self._changed = trio.Event()
        """Set when `_snapshot` is another one or the streams are to end, and replaced."""
        self._for_all = b""
        """`_snapshot` encoded for those who may see all; empty until one of them asks."""

    async def run(self) -> None:
        """Look at the store while somebody listens; runs until cancelled."""
        while True:
            await self._somebody.wait()
            while self._listening:
                started = trio.current_time()
                await self._look()
                took = trio.current_time() - started
                await trio.sleep(max(self.pace.sample_s, min(PAUSE_FACTOR * took, PAUSE_MAX_S)))
            self._somebody = trio.Event()
            self._snapshot = None  # the next listener wants no old news

    def stop(self) -> None:
        """End all streams and begin no more."""
        self._stopped = True
        self._notify()

    def listener(self, allows: Allows, address: str) -> Listener:
        """A stream for a caller who may see these aggregations.

        Raises:
            Refused: 503, too many listen, in all or from this address.
        """
        from_here = sum(listener.address == address for listener in self._listening)
        if self._stopped or len(self._listening) >= self.pace.listeners or from_here >= self.pace.per_address:
            raise Refused(_TOO_MANY)
        return Listener(self, allows, address)

    def begin(self, listener: Listener) -> None:
        """Count the listener and have somebody look at the store."""
        self._listening.add(listener)
        self._somebody.set()

    def end(self, listener: Listener) -> None:
        """The listener has left."""
        self._listening.discard(listener)

    async def next(self, allows: Allows, told: bytes, until: float) -> bytes | None:
        """What is new for somebody who was told this, waiting for it as long as that.

        Returns:
            The newest snapshot; `told` again when nothing has changed by then; `None` when the API stops.
        """
        with trio.move_on_at(until):
            while not self._stopped and self._encoded(allows) in (b"", told):
                await self._changed.wait()
        if self._stopped:
            return None
        return self._encoded(allows) or told

    def _encoded(self, allows: Allows) -> bytes:
        """The newest snapshot as this caller may see it; empty while there is none."""
        if self._snapshot is None:
            return b""
        if allows is not anything:
            return encode(self._snapshot, allows)
        if not self._for_all:
            self._for_all = encode(self._snapshot, anything)
        return self._for_all

    async def _look(self) -> None:
        try:
            load = await self._store.load(SAMPLED)
            reports = {role: await self._store.reports(role) for role in ROLES}
            found = Snapshot(store=True, reports=reports, load=load)
        except StoreError:
            found = replace(self._snapshot or NOTHING_KNOWN, store=False)
        except Exception:  # noqa: BLE001  what people look at must not end what programs need
            if self._snapshot is None or self._snapshot.store:  # once, not twice a second
                _log.exception(Event.API_FAILED, path=PATH)
            found = replace(self._snapshot or NOTHING_KNOWN, store=False)
        if found != self._snapshot:
            self._snapshot, self._for_all = found, b""
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Listener(ResponseBody):
    """One stream: a response's body that waits for what is new."""

    def __init__(self, events: Events, allows: Allows, address: str) -> None:
        self.address = address
        self._events = events
        self._allows = allows
        self._told = b""
        self._begun = False

    async def __aenter__(self) -> Self:
        self._events.begin(self)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._events.end(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            self._begun = True
            return b"retry: %d\n\n" % RETRY_MS
        until = trio.current_time() + self._events.pace.alive_s
        found = await self._events.next(self._allows, self._told, until)
        if found is None:
            raise StopAsyncIteration
        if found == self._told:
            return _ALIVE
        self._told = found
        return b"event: snapshot\ndata: " + found + b"\n\n"


def add_events(app: QuartTrio, events: Events) -> None:
    """`GET /events`."""

    @app.get(PATH)
    async def listen() -> Response:
        body = events.listener(visible_aggregations(), client_of(request.scope))  # type: ignore[arg-type]  # a dictionary
        response = Response(b"", headers=_HEADERS)
        if request.method != "HEAD":
            response.response = body
            del response.headers["Content-Length"]
        return response


_TOO_MANY = unavailable("too_many_listeners", "Too many listen already; try again.")
