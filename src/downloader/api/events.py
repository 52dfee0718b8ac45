"""`GET /events`: what the fleet does, as server-sent events (WHATWG HTML, 9.2); what the web page lives on.

One sampler a process looks at the store, and only while somebody listens. Listeners share what it found:
each waits for a change and takes the newest, so one that reads slowly misses what came between and holds
no memory, and one that does not read at all is cut off by the server as for any answer (`Limits.send_s`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from http import HTTPStatus

import trio

from downloader.api.answer import problem_answer, send_answer
from downloader.api.auth import Allows, Caller, anything
from downloader.api.origin import check_origin
from downloader.api.problems import Refused, unavailable
from downloader.api.shared import Message, Receive, Send
from downloader.api.snapshot import NOTHING_KNOWN, ROLES, SAMPLED, Snapshot, encode
from downloader.observe import Event, get_logger
from downloader.store import JobStore, StoreError

PATH = "/events"
METHODS = frozenset({"GET", "HEAD"})

RETRY_MS = 2000
"""After which a browser whose stream has ended asks again: a restart takes about as long."""

PAUSE_FACTOR = 9
"""A look that took long is followed by a pause so many times as long: looking takes a tenth of the time."""

PAUSE_MAX_S = 2.0
"""The longest such pause: a look that only waited for a store that is away has cost nothing."""

END_S = 0.5
"""For a stream to end properly when the API stops; then it is cut."""

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
    (b"x-content-type-options", b"nosniff"),
)

# A comment keeps proxies from closing a silent stream; the event tells scripts, which see no comments.
_ALIVE = b": alive\nevent: alive\ndata: {}\n\n"

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How many may listen, and how often they hear something."""

    listeners: int = 64
    """At once, in one process; more are answered 503."""
    sample_s: float = 0.5
    """At the least between two looks: what changes shows within about a second."""
    alive_s: float = 15.0
    """Silence after which a listener is told that the stream lives; proxies cut after 30 s or more."""


class Events:
    """The listeners of one process and their sampler. `run` samples; `serve` is the route."""

    def __init__(self, store: JobStore, pace: Pace | None = None) -> None:
        self._store = store
        self._pace = pace or Pace()
        self._listening: set[trio.CancelScope] = set()
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
                await trio.sleep(max(self._pace.sample_s, min(PAUSE_FACTOR * took, PAUSE_MAX_S)))
            self._somebody = trio.Event()
            self._snapshot = None  # the next listener wants no old news

    def stop(self) -> None:
        """End all streams, at once or after `END_S`, and begin no more."""
        self._stopped = True
        self._notify()
        deadline = trio.current_time() + END_S
        for scope in self._listening:
            scope.deadline = deadline

    async def serve(self, scope: Message, receive: Receive, send: Send, *, caller: Caller | None) -> None:
        """Answer one request; returns when the client leaves or the API stops.

        Raises:
            Gone: the client has left or does not read.
        """
        try:
            self._check(scope)
        except Refused as refused:
            await send_answer(problem_answer(refused.problem), send)
            return
        head: Message = {"type": "http.response.start", "status": HTTPStatus.OK, "headers": list(_HEADERS)}
        if scope["method"] == "HEAD":
            await send(head)
            await send({"type": "http.response.body", "body": b""})
            return
        with trio.CancelScope() as listening:
            self._listening.add(listening)
            self._somebody.set()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_watch, receive, nursery.cancel_scope)
                    await send(head)
                    await self._stream(anything if caller is None else caller.aggregations, send)
                    nursery.cancel_scope.cancel()
            finally:
                self._listening.discard(listening)

    def _check(self, scope: Message) -> None:
        """Raise `Refused`: 403 for another site's page, whose browser would let it hold streams; 503."""
        check_origin(dict(scope["headers"]))
        if self._stopped or len(self._listening) >= self._pace.listeners:
            raise Refused(_TOO_MANY)

    async def _stream(self, allows: Allows, send: Send) -> None:
        async def say(data: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await say(b"retry: %d\n\n" % RETRY_MS)
        told, silent_at = b"", trio.current_time() + self._pace.alive_s
        while not self._stopped:
            changed = self._changed
            data = self._encoded(allows)
            if data != told:
                told = data
                await say(b"event: snapshot\ndata: " + data + b"\n\n")
                silent_at = trio.current_time() + self._pace.alive_s
            with trio.move_on_at(silent_at) as silence:
                await changed.wait()
            if silence.cancelled_caught:
                await say(_ALIVE)
                silent_at = trio.current_time() + self._pace.alive_s
        await say(b"", more=False)

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


async def _watch(receive: Receive, scope: trio.CancelScope) -> None:
    """Cancel the scope when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


_TOO_MANY = unavailable("too_many_listeners", "Too many listen already; try again.")
