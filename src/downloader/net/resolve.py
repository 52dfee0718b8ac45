"""Name look-ups that delay nothing else when a name server does not answer."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence

import trio

from downloader.net.errors import NameNotResolved

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""`(name, port)` to addresses in the order in which to try them, link-local ones with their zone id.

Raises `NameNotResolved`. Called once per connection, never for a host that is an address already.
"""

MAX_LOOKUPS = 128
"""Threads that may wait for name servers at once. A cancelled look-up keeps its thread until the C library
gives up (after about 10 s), so there are more than needed."""


class SystemResolver:
    """`getaddrinfo` in threads of its own, which neither use up nor wait for Trio's default ones.

    A cancel returns at once; the thread ends when the C library does.
    """

    def __init__(self, max_lookups: int = MAX_LOOKUPS) -> None:
        self._limiter = trio.CapacityLimiter(max_lookups)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """See `Resolver`."""
        try:
            return await trio.to_thread.run_sync(
                _lookup, host, port, abandon_on_cancel=True, limiter=self._limiter
            )
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
