"""The only way to open a connection: resolve once, check all addresses, connect to a checked address."""

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
from downloader.phases import Phases

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Maps `(name, port)` to addresses in the order of trying; link-local addresses have a zone id.

Raises `NameNotResolved`. Called once per connection, and not for a host that is an address.
"""

MAX_LOOKUPS = 128
"""Most threads that wait for name servers. A cancelled look-up keeps a thread until the C library gives up
(after about 10 s), so the limit leaves room for abandoned threads."""


@dataclass(frozen=True, slots=True)
class _Limiter:
    """The limiter of a look-up, which needs a token of the domain and a token of the resolver."""

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
    """`getaddrinfo` in separate threads, independent of Trio's default thread limiter.

    A cancel returns at once; the thread ends when the C library gives up. The names of a domain take at most
    half of the threads, because the name servers of that domain may not answer. A name's domain is the last
    two labels.
    """

    def __init__(self, max_lookups: int = MAX_LOOKUPS) -> None:
        self._share = max(1, max_lookups // 2)
        self.lookups = trio.CapacityLimiter(max_lookups)
        self._of_domains = WeakValueDictionary[str, trio.CapacityLimiter]()
        """The limiters of domains with look-ups in progress."""

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """See `Resolver`."""
        domain = ".".join(host.split(".")[-2:])
        of_domain = self._of_domains.get(domain)
        if of_domain is None:
            of_domain = self._of_domains[domain] = trio.CapacityLimiter(self._share)
        limiter: Any = _Limiter(of_domain, self.lookups)
        try:
            return await trio.to_thread.run_sync(_lookup, host, port, abandon_on_cancel=True, limiter=limiter)
        except OSError as exc:
            raise NameNotResolved(host, exc.strerror or str(exc)) from exc


def _lookup(host: str, port: int) -> list[str]:
    # As bytes, because for text Python applies an IDNA codec that raises on long labels.
    entries = socket.getaddrinfo(host.encode("ascii"), port, 0, socket.SOCK_STREAM)
    addresses: dict[str, None] = {}
    for family, _, _, _, sockaddr in entries:
        if family == socket.AF_INET:
            addresses[str(sockaddr[0])] = None
        elif family == socket.AF_INET6:
            zone = f"%{sockaddr[3]}" if len(sockaddr) > 3 and sockaddr[3] else ""  # noqa: PLR2004 - index of the scope
            addresses[f"{sockaddr[0]}".partition("%")[0] + zone] = None
    return list(addresses)


_TARGET_RESOLVE_S = 2.0
"""Time limit for looking up the target of a proxied request. Short: there may be no name server to reach."""

_DISCARD_PORT = 9
"""Any port, because nothing is sent."""

_MAX_ADDRESSES = 256
"""A name with more addresses is refused: each address is checked, and there may be thousands."""

_MAX_TRIED = 16
"""Most addresses of a name that are tried."""

_STAGGER_S = 0.25
"""How long an address is tried before the next is tried at the same time; RFC 8305, section 5."""


def is_own_address(address: Address) -> bool:
    """Whether an address belongs to an interface of this machine.

    Connecting a UDP socket sends nothing, but sets the socket's own address. That address equals the
    destination only if the destination is an address of this machine.
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
    """Connects to addresses that the policy allows.

    `resolver` is called once per connection, and not for addresses. The caller uses the name for SNI and
    `Host`.
    """

    policy: EgressPolicy
    within_s: float
    """Time limit of look-up and connecting together."""
    resolver: Resolver = field(default_factory=SystemResolver)
    is_own: Callable[[Address], bool] = is_own_address
    """Whether an address belongs to an interface of this machine."""

    async def connect(self, host: str, port: int, phases: Phases | None = None) -> Stream:
        """Connect to a URL's host if the policy allows all addresses of the host.

        If the policy forbids an address, nothing is sent, not even a SYN. A cancel leaves no socket behind.

        Raises:
            EgressRefused: the policy forbids an address.
            NameNotResolved: no address, or none in time.
            ConnectFailed: refused, reset, unreachable.
            TimedOut: no connection in time.
        """
        deadline = trio.current_time() + self.within_s
        if phases is not None:
            phases.begin("dns")
        addresses = await self._addresses(host.removesuffix("."), port, deadline)
        if phases is not None:
            phases.begin("connect")
        try:
            with trio.fail_at(deadline):
                sock = await _connect_first(addresses, port)
        except trio.TooSlowError as exc:
            raise TimedOut(f"no connection within {self.within_s:g} s") from exc
        except OSError as exc:
            raise _failed(exc) from exc
        return Stream(trio.SocketStream(sock))  # which sets TCP_NODELAY

    async def check_target(self, host: str) -> None:
        """Check the target of a request through a proxy that resolves names.

        An address must be allowed. A name that only exists in a private network (`localhost`, `*.internal`, a
        single label) must be allowed by name. Any other name is looked up here too, and refused if an address
        is forbidden. A name without an address is accepted, because proxies often know names that we do not.
        The result of the proxy's own look-up is not checked: a proxy inside the network needs its own rules.

        Raises:
            EgressRefused: the policy forbids the target.
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
        """The addresses of a host, at least one; all are allowed."""
        self.policy.check_name(name)
        literal = parse_address(name)
        addresses = [name] if literal else await _resolve(self.resolver, name, port, deadline)
        if len(addresses) > _MAX_ADDRESSES:
            raise EgressRefused(f"address not allowed: {name} has more than {_MAX_ADDRESSES} addresses")
        for address in addresses:
            self.policy.check(name, literal or address, is_own=self.is_own)
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
    """Connect to the first address that accepts, trying addresses with overlap (RFC 8305)."""
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
    family = trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        await sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _alternate_families(addresses: Sequence[str]) -> list[str]:
    """Alternate the families, beginning with the first address's family (RFC 8305, section 4)."""
    six = [address for address in addresses if ":" in address]
    four = [address for address in addresses if ":" not in address]
    first, second = (six, four) if ":" in addresses[0] else (four, six)
    return [address for pair in zip_longest(first, second) for address in pair if address is not None]
