"""Connections kept between downloads, apart for every aggregation."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from downloader.fetch.connection import Connection, Head
from downloader.fetch.errors import StaleConnection
from downloader.fetch.open import Dialer, parse_proxy
from downloader.fetch.request import Target
from downloader.fetch.watch import Watch

IDLE_S = 10.0
"""How long an unused connection is kept. Servers close theirs after 5 to 75 s; an aggregation with work
needs the next one within milliseconds."""

Key = tuple[str, str, str, str, int]
"""Group, proxy, scheme, host, port: connections are never shared between aggregations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Whose connections, and which way."""

    group: str
    proxy: str
    """Proxy URL or empty."""
    keep: int
    """How many idle connections to one origin are worth keeping: as many as may be in flight."""


@dataclass(slots=True)
class Leased:
    """A connection in use; give it back with `Transport.release` or close it."""

    key: Key
    connection: Connection
    keep: int


class Transport:
    """Opens connections, and keeps idle ones for a while.

    How many are in use is the callers' to bound (a task for each lease); idle ones are bounded by
    `max_idle` in total, the oldest going first. `sweep` has to run for idle ones to be closed in time.
    """

    def __init__(self, dialer: Dialer, *, first_byte_s: float, max_idle: int, idle_s: float = IDLE_S) -> None:
        self._dialer = dialer
        self._first_byte_s = first_byte_s
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._by_key: dict[Key, list[Connection]] = {}
        self._idle: dict[Connection, tuple[float, Key]] = {}
        """To the time at which it expires; in this order, the oldest first."""
        self._filled = trio.Event()

    async def get(
        self, route: Route, target: Target, headers: list[tuple[bytes, bytes]], *, watch: Watch
    ) -> tuple[Leased, Head]:
        """Ask for one resource, on a kept connection or a new one.

        A kept connection that turns out to be closed by the peer is replaced once (RFC 9112, 9.3.1:
        GET may be repeated). Raises `FetchError`; that and a cancel leave no connection behind.
        """
        key = (route.group, route.proxy, *target.origin)
        kept = await self._take(key)
        if kept is not None:
            try:
                return await self._ask(Leased(key, kept, route.keep), target, headers, watch)
            except StaleConnection:
                pass
        proxy = parse_proxy(route.proxy)
        opened = await self._dialer.open(target, proxy=proxy, watch=watch)
        return await self._ask(Leased(key, opened, route.keep), target, headers, watch)

    async def release(self, leased: Leased) -> None:
        """Give a connection back after its response: kept if it can be, else closed."""
        connection = leased.connection
        if leased.keep <= 0 or not connection.recycle():
            await connection.aclose()
            return
        alike = self._by_key.setdefault(leased.key, [])
        alike.append(connection)
        self._idle[connection] = (trio.current_time() + self._idle_s, leased.key)
        self._filled.set()
        if len(alike) > leased.keep:
            await self._drop(alike[0])
        elif len(self._idle) > self._max_idle:
            await self._drop(next(iter(self._idle)))

    async def close_idle(self, group: str | None = None) -> None:
        """Close the idle connections of a group, or all."""
        for connection, (_, key) in list(self._idle.items()):
            if (group is None or key[0] == group) and connection in self._idle:
                await self._drop(connection)

    async def sweep(self) -> None:
        """Close connections as they expire; runs until cancelled, and asleep while there is none."""
        while True:
            while not self._idle:
                self._filled = trio.Event()
                await self._filled.wait()
            connection, (expires, _) = next(iter(self._idle.items()))
            left = expires - trio.current_time()
            if left > 0:
                await trio.sleep(left)
            else:
                await self._drop(connection)

    async def _ask(
        self, leased: Leased, target: Target, headers: list[tuple[bytes, bytes]], watch: Watch
    ) -> tuple[Leased, Head]:
        watch.expect(f"no response within {self._first_byte_s:g} s", self._first_byte_s)
        try:
            return leased, await leased.connection.get(target.path, headers)
        except BaseException:
            await leased.connection.aclose()
            raise

    async def _take(self, key: Key) -> Connection | None:
        alike = self._by_key.get(key)
        while alike:
            connection = alike[-1]
            self._forget(connection)
            if not connection.is_stale():
                return connection
            await connection.aclose()
            alike = self._by_key.get(key)
        return None

    async def _drop(self, connection: Connection) -> None:
        self._forget(connection)
        await connection.aclose()

    def _forget(self, connection: Connection) -> None:
        _, key = self._idle.pop(connection)
        alike = self._by_key[key]
        alike.remove(connection)
        if not alike:
            del self._by_key[key]
