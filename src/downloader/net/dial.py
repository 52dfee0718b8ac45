"""The only way to open a connection: resolve once, check every answer, connect to what was checked."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import zip_longest
from typing import Any
from weakref import WeakValueDictionary

import trio

from downloader.net.errors import ConnectFailed, EgressRefused, NameNotResolved, TimedOut
from downloader.net.policy import Address, EgressPolicy, is_local_name, parse_address
from downloader.net.stream import Stream

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


_TARGET_RESOLVE_S = 2.0
"""How long a proxied request waits for name servers; behind a proxy there may be none that answers."""

_DISCARD_PORT = 9
"""Any port will do, because nothing is sent."""

_MAX_ADDRESSES = 256
"""Names with more are refused: each address is checked, and an answer may have thousands."""

_MAX_TRIED = 16
"""How many of a name's addresses are tried."""

_STAGGER_S = 0.25
"""The head start of one address before the next is tried beside it; RFC 8305, section 5."""


def is_own_address(address: Address) -> bool:
    """Whether a packet to this address would stay on this machine, whatever its interface.

    A UDP socket sends nothing when it is connected, but gets the address that it would send from, which is
    the destination itself only if that is our own.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 - IPv4
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(address), _DISCARD_PORT))
            return bool(ip_address(sock.getsockname()[0]) == address)
    except OSError:  # no route, so it is not an address of this machine
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialer:
    """Connects to what the policy allows.

    `resolver` is asked once for each connection, and not at all for addresses. SNI and `Host` are the
    caller's and stay the name.
    """

    policy: EgressPolicy
    within_s: float
    """For the look-up, and for look-up and connecting together."""
    resolver: Resolver = field(default_factory=SystemResolver)
    is_own: Callable[[Address], bool] = is_own_address
    """Whether an address is one of this machine's interfaces'."""

    async def connect(self, host: str, port: int) -> Stream:
        """Connect to a URL's host if the policy allows it.

        Nothing is sent, not even a SYN, unless every address of the host is allowed. A cancel leaves no
        socket behind.

        Raises:
            EgressRefused: the policy forbids it.
            NameNotResolved: no address, or none in time.
            ConnectFailed: refused, reset, unreachable.
            TimedOut: no answer in time.
        """
        deadline = trio.current_time() + self.within_s
        addresses = await self._addresses(host.removesuffix("."), port, deadline)
        try:
            with trio.fail_at(deadline):
                sock = await _connect_first(addresses, port)
        except trio.TooSlowError as exc:
            raise TimedOut(f"no connection within {self.within_s:g} s") from exc
        except OSError as exc:
            raise _failed(exc) from exc
        return Stream(trio.SocketStream(sock))  # which sets TCP_NODELAY

    async def check_target(self, host: str) -> None:
        """Check the target of a request that goes through a proxy, which resolves the name by itself.

        Addresses must be allowed. A name that only a private network can know (`localhost`, `*.internal`, a
        single label) must be allowed by name. Any other name is looked up here too, and refused if it has a
        forbidden address; one that cannot be looked up passes, as proxies often know names that we do not.
        What the proxy makes of a name later is not checked: a proxy inside the network needs its own rules.

        Raises:
            EgressRefused: the policy forbids it.
        """
        name = host.removesuffix(".")
        self.policy.check_name(name)
        if self.policy.allows_name(name):
            return
        if parse_address(name) is None and is_local_name(name):
            raise EgressRefused(
                f"address not allowed: {name} is a name of a private network;"
                f" to permit it add it to {self.policy.setting}.allow"
            )
        with suppress(NameNotResolved):
            await self._addresses(name, 0, trio.current_time() + min(self.within_s, _TARGET_RESOLVE_S))

    async def _addresses(self, name: str, port: int, deadline: float) -> Sequence[str]:
        """The host's addresses, at least one, all of them allowed."""
        self.policy.check_name(name)
        literal = parse_address(name) is not None
        addresses = [name] if literal else await _resolve(self.resolver, name, port, deadline)
        if len(addresses) > _MAX_ADDRESSES:
            raise EgressRefused(f"address not allowed: {name} has more than {_MAX_ADDRESSES} addresses")
        for address in addresses:
            self.policy.check(name, address, is_own=self.is_own)
        return addresses


def _failed(exc: OSError) -> ConnectFailed:
    reason = os.strerror(exc.errno).lower() if exc.errno else "connection lost"
    return ConnectFailed(reason, errno=exc.errno or 0)


async def _resolve(resolver: Resolver, name: str, port: int, deadline: float) -> Sequence[str]:
    with trio.move_on_at(deadline) as scope:
        addresses = await resolver(name, port)
        if not addresses:
            raise NameNotResolved(name, "it has no address")
        return addresses
    assert scope.cancelled_caught
    raise NameNotResolved(name, "no answer from the name servers in time")


async def _connect_first(addresses: Sequence[str], port: int) -> trio.socket.SocketType:
    """The first connection that is made; addresses are tried one after the other, overlapping (RFC 8305)."""
    if len(addresses) == 1:
        return await _connect(addresses[0], port)
    errors: list[OSError] = []
    winner: trio.socket.SocketType | None = None

    async def attempt(address: str, failed: trio.Event) -> None:
        nonlocal winner
        try:
            sock = await _connect(address, port)
        except OSError as exc:
            errors.append(exc)
            failed.set()
            return
        if winner is None:
            winner = sock
            nursery.cancel_scope.cancel()
        else:
            sock.close()

    try:
        async with trio.open_nursery() as nursery:
            for address in _alternate_families(addresses)[:_MAX_TRIED]:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(_STAGGER_S):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    if winner is None:
        raise errors[0]
    return winner


async def _connect(address: str, port: int) -> trio.socket.SocketType:
    family = trio.socket.AF_INET if ip_address(address).version == 4 else trio.socket.AF_INET6  # noqa: PLR2004 - IPv4
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        await sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _alternate_families(addresses: Sequence[str]) -> list[str]:
    """The same addresses, families taking turns, beginning with the first one's (RFC 8305, section 4)."""
    six = [address for address in addresses if ":" in address]
    four = [address for address in addresses if ":" not in address]
    first, second = (six, four) if ":" in addresses[0] else (four, six)
    return [address for pair in zip_longest(first, second) for address in pair if address is not None]
