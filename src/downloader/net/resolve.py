"""Name look-ups that delay nothing else when a name server does not answer."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import trio

from downloader.net.errors import NameNotResolved

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""`(name, port)` to addresses in the order in which to try them, link-local ones with their zone id.

Raises `NameNotResolved`. Called once per connection, never for a host that is an address already.
"""

MAX_LOOKUPS = 128
"""Threads that may wait for name servers at once. A cancelled look-up keeps its thread until the C library
gives up (after about 10 s), so there are more than needed."""


@dataclass(frozen=True, slots=True)
class _Limiter:
    """For one look-up: it needs a place among those of its domain, and one among all."""

    of_domain: trio.CapacityLimiter
    of_all: trio.CapacityLimiter

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """See `trio.CapacityLimiter`."""
        await self.of_domain.acquire_on_behalf_of(borrower)
        try:
            await self.of_all.acquire_on_behalf_of(borrower)
        except BaseException:
            self.of_domain.release_on_behalf_of(borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        """See `trio.CapacityLimiter`."""
        self.of_all.release_on_behalf_of(borrower)
        self.of_domain.release_on_behalf_of(borrower)


class SystemResolver:
    """`getaddrinfo` in threads of its own, which neither use up nor wait for Trio's default ones.

    A cancel returns at once; the thread ends when the C library does. The names of one domain, whose name
    servers may not answer, take at most half of the threads. A name's domain is its last two labels.
    """

    def __init__(self, max_lookups: int = MAX_LOOKUPS) -> None:
        self._share = max(1, max_lookups // 2)
        self._of_all = trio.CapacityLimiter(max_lookups)
        self._of_domains = WeakValueDictionary[str, trio.CapacityLimiter]()
        """Of domains with look-ups in progress."""

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """See `Resolver`."""
        domain = ".".join(host.split(".")[-2:])
        of_domain = self._of_domains.get(domain)
        if of_domain is None:
            of_domain = self._of_domains[domain] = trio.CapacityLimiter(self._share)
        limiter: Any = _Limiter(of_domain, self._of_all)
        try:
            return await trio.to_thread.run_sync(_lookup, host, port, abandon_on_cancel=True, limiter=limiter)
        except OSError as exc:
            raise NameNotResolved(host, exc.strerror or str(exc)) from exc


def _lookup(host: str, port: int) -> list[str]:
    # As bytes, since for text Python applies an IDNA codec that raises on long labels.
    answers = socket.getaddrinfo(host.encode("ascii"), port, 0, socket.SOCK_STREAM)
    addresses: dict[str, None] = {}
    for family, _, _, _, sockaddr in answers:
        if family == socket.AF_INET:
            addresses[str(sockaddr[0])] = None
        elif family == socket.AF_INET6:
            zone = f"%{sockaddr[3]}" if len(sockaddr) > 3 and sockaddr[3] else ""  # noqa: PLR2004 - index of the scope
            addresses[f"{sockaddr[0]}".partition("%")[0] + zone] = None
    return list(addresses)
