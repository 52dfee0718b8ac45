"""The only way out: resolve once, check every answer, connect to what was checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

import httpcore2
import trio

from downloader.net.backend_stream import GuardedStream
from downloader.net.errors import EgressRefused, NameNotResolved
from downloader.net.policy import (
    EgressPolicy,
    is_canonical,
    is_local_name,
    normal_host,
    parse_literal,
)
from downloader.net.resolve import Resolver, SystemResolver

RESOLVE_TIMEOUT_S = 5.0
"""As for a connection: a name server that is worth waiting for longer is rare."""

_TARGET_RESOLVE_S = 2.0
"""Each proxied request waits this long where no name server answers, which a proxy may be there for."""

_MAX_ADDRESSES = 16
"""How many of a name's addresses are tried; an answer has room for thousands, all refusing at once."""

_STAGGER_S = 0.25
"""The head start of one address before the next is tried beside it; RFC 8305, section 5."""


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """The `network_backend` of every connection made on a client's behalf.

    It has no Unix sockets. One may serve any number of pools; `resolver` is asked once per connection
    and not at all for addresses. SNI and `Host` are the caller's and stay the name. Its streams are
    `GuardedStream`s, which get `tls_timeout_s` and `max_read_bytes`.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        resolve_timeout_s: float = RESOLVE_TIMEOUT_S,
        tls_timeout_s: float | None = None,
        max_read_bytes: int | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self.policy = policy
        self._resolve_timeout_s = resolve_timeout_s
        self._tls_timeout_s = tls_timeout_s
        self._max_read_bytes = max_read_bytes
        self._resolver = SystemResolver() if resolver is None else resolver

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the host if the policy allows it; `timeout` bounds the look-up and the connecting.

        Nothing is sent, not even a SYN, unless every address of the host is allowed. A cancel leaves
        no socket behind. httpcore2's pools pass the first two exceptions on unchanged.

        Raises:
            EgressRefused: the policy forbids it; final.
            NameNotResolved: no address, or none in time (`timed_out`).
            httpcore2.ConnectError: refused, reset, unreachable; its one argument is the `OSError`
                (the pools drop `__cause__`).
            httpcore2.ConnectTimeout: no answer in time.
        """
        deadline = math.inf if timeout is None else trio.current_time() + timeout
        self.policy.check_port(port)
        addresses = await self._addresses(host, port, deadline)
        try:
            with trio.fail_at(deadline):
                sock = await _connect_first(addresses, port, local_address)
        except trio.TooSlowError as exc:
            raise httpcore2.ConnectTimeout(f"no connection within {timeout:g} s") from exc
        except OSError as exc:
            raise httpcore2.ConnectError(exc) from exc
        stream = trio.SocketStream(sock)  # sets TCP_NODELAY
        try:
            for option in socket_options or ():
                sock.setsockopt(*option)
        except OSError as exc:
            sock.close()
            raise httpcore2.ConnectError(exc) from exc
        return GuardedStream(stream, tls_timeout_s=self._tls_timeout_s, max_read_bytes=self._max_read_bytes)

    async def check_target(self, host: str) -> None:
        """`check_target` with this backend's policy, look-ups included.

        Raises:
            EgressRefused: the policy forbids it.
            NameNotResolved: the text cannot be a host.
        """
        await check_target(
            self.policy,
            host,
            resolver=self._resolver,
            resolve_timeout_s=min(self._resolve_timeout_s, _TARGET_RESOLVE_S),
        )

    async def sleep(self, seconds: float) -> None:
        """For httpcore2's own retries."""
        await trio.sleep(seconds)

    async def _addresses(self, host: str, port: int, deadline: float) -> Sequence[str]:
        """The host's addresses, at least one, all of them allowed."""
        name = _name_of(host)
        literal = parse_literal(name)
        if literal is not None:
            self.policy.check(name, literal)
            return [str(literal)]
        self.policy.check_name(name)
        addresses = await _resolve(
            self._resolver, name, port, min(deadline, trio.current_time() + self._resolve_timeout_s)
        )
        for address in addresses:
            self.policy.check(name, address)
        return addresses


async def check_target(
    policy: EgressPolicy,
    host: str,
    *,
    resolver: Resolver | None = None,
    resolve_timeout_s: float = _TARGET_RESOLVE_S,
) -> None:
    """Check the target of a request that goes through a proxy, which resolves the name by itself.

    Addresses must be allowed, and spelled as everybody reads them. A name that only a private network
    can know (`localhost`, `*.internal`, a single label) must be allowed by name. With a `resolver` any
    other name is looked up here too, and refused if it has a forbidden address; one that cannot be
    looked up is let through, as proxies often know names that we do not. What the proxy itself makes
    of a name later is beyond us: a proxy inside the network needs rules of its own.

    Raises:
        EgressRefused: the policy forbids it.
        NameNotResolved: the text cannot be a host.
    """
    name = _name_of(host)
    literal = parse_literal(name)
    if literal is not None:
        policy.check(name, literal)
        if not is_canonical(name):
            raise EgressRefused(
                f"address not allowed: {name} does not mean the same address to every proxy; write {literal}"
            )
        return
    policy.check_name(name)
    if policy.allows_name(name):
        return
    if is_local_name(name):
        raise EgressRefused(
            f"address not allowed: {name} is a name of a private network;"
            f" to permit it add it to {policy.setting}.allow"
        )
    if resolver is None:
        return
    try:
        addresses = await _resolve(resolver, name, 0, trio.current_time() + resolve_timeout_s)
    except NameNotResolved:
        return
    for address in addresses:
        policy.check(name, address)


def _name_of(host: str) -> str:
    try:
        name = normal_host(host)
    except ValueError:
        name = ""
    if not name:
        raise NameNotResolved(host, "not a host name")
    return name


async def _resolve(resolver: Resolver, name: str, port: int, deadline: float) -> Sequence[str]:
    with trio.move_on_at(deadline) as scope:
        addresses = await resolver(name, port)
        if not addresses:
            raise NameNotResolved(name, "it has no address")
        return addresses
    assert scope.cancelled_caught
    raise NameNotResolved(name, "no answer from the name servers in time", timed_out=True)


async def _connect_first(
    addresses: Sequence[str], port: int, local_address: str | None
) -> trio.socket.SocketType:
    """The first connection that stands, each address with a head start before the next (RFC 8305)."""
    if len(addresses) == 1:
        return await _connect(addresses[0], port, local_address)
    errors: list[OSError] = []
    winner: trio.socket.SocketType | None = None

    async def attempt(address: str, failed: trio.Event) -> None:
        nonlocal winner
        try:
            sock = await _connect(address, port, local_address)
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
            for address in _alternate_families(addresses)[:_MAX_ADDRESSES]:
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


async def _connect(address: str, port: int, local_address: str | None) -> trio.socket.SocketType:
    family = trio.socket.AF_INET if ip_address(address).version == 4 else trio.socket.AF_INET6  # noqa: PLR2004 - IPv4
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        if local_address is not None:
            await sock.bind((local_address, 0))
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
    mixed: list[str] = []
    while first or second:
        mixed += first[:1] + second[:1]
        first, second = first[1:], second[1:]
    return mixed
