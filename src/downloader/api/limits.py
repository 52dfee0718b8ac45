"""The limits of the HTTP server, and which connection it closes for another when there are too many."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Protocol

PIECE_BYTES = 64 * 1024
"""Read at once, sent under one deadline, and kept of a body that its application does not read."""

IPV6_SITE_BITS = 64
"""Of an IPv6 address, what one client cannot change by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may cost; the defaults suit people on phones as well as fleets on a LAN."""

    head_bytes: int = 16 * 1024
    """Of request line and headers together, as in node.js; more is answered 431."""
    head_s: float = 10.0
    """To the end of a head, from its first byte (or from connecting, for the first one, TLS included)."""
    idle_s: float = 60.0
    """Between two requests: longer than the 30 s for which pooling clients commonly keep a connection."""
    body_grace_s: float = 10.0
    """Waiting for a body that is not charged against `body_rate`; one that drips slower gets 408."""
    body_rate: int = 1024
    """Bytes per second."""
    send_s: float = 30.0
    """For a client to take the next 64 KiB of an answer; else its connection is closed."""
    stop_send_s: float = 2.0
    """The same once the server stops: a client that does not read does not delay the stop."""
    linger_s: float = 2.0
    """For a client to read an answer while it still sends a body that nobody reads: closing at once
    would reset the connection and destroy the answer on its way."""
    linger_bytes: int = 16 * 1024**2
    connections: int = 4096
    """Or half of the descriptors that the process may open, if that is less."""
    per_address: int = 1024
    """From one IPv4 address or IPv6 /64; at most half of all. Those of unix sockets are not counted."""
    reserve: int = 32
    """Connections beyond `connections`, on which health is answered and everything else refused."""
    reserve_head_s: float = 2.0
    """To the end of a head on such a connection."""
    streams: int = 100
    """Requests at once on one HTTP/2 connection."""


class Connection(Protocol):
    """An open connection, as `OpenConnections` sees it."""

    address: str
    reserved: bool

    def cut(self) -> None:
        """Close it, whatever it is doing."""

    async def drain(self) -> None:
        """The server stops: take no more requests, close when none is left."""


@dataclass(slots=True, kw_only=True)
class OpenConnections:
    """The connections of one server.

    When the limit, in all or for an address, is reached, a new connection replaces the oldest that waits for
    its client: for a request, or for the rest of one. Where none waits, it is one of the reserve.
    """

    most: int
    per_address: int
    reserve: int
    ordinary: set[Connection] = field(default_factory=set)
    reserved: set[Connection] = field(default_factory=set)
    _addresses: Counter[str] = field(default_factory=Counter)
    _waiting: dict[Connection, None] = field(default_factory=dict)
    """Those that may be closed, the longest waiting first."""

    def add(self, new: Connection) -> bool:
        """Count a new connection, and mark one of the reserve; false when that is full too."""
        crowded = new.address != "" and self._addresses[new.address] >= self.per_address
        if (crowded or len(self.ordinary) >= self.most) and not self._cut_one(new.address if crowded else ""):
            if len(self.reserved) >= self.reserve and not self._cut_one("", reserved=True):
                return False
            new.reserved = True
        if new.reserved:
            self.reserved.add(new)
        else:
            self.ordinary.add(new)
            self._addresses[new.address] += 1
        self._waiting[new] = None
        return True

    def remove(self, closed: Connection) -> None:
        """The connection is closed."""
        self._waiting.pop(closed, None)
        if closed.reserved:
            self.reserved.discard(closed)
            return
        self.ordinary.discard(closed)
        self._addresses[closed.address] -= 1
        if not self._addresses[closed.address]:
            del self._addresses[closed.address]

    def set_waiting(self, connection: Connection, *, waits: bool) -> None:
        """Whether the connection now waits for its client, so that it may be closed for another."""
        if waits:
            self._waiting.setdefault(connection)
        else:
            self._waiting.pop(connection, None)

    def _cut_one(self, address: str, *, reserved: bool = False) -> bool:
        """Close the longest waiting one, of this address if one is given; false when there is none."""
        for connection in self._waiting:
            if connection.reserved is reserved and address in ("", connection.address):
                del self._waiting[connection]
                connection.cut()
                return True
        return False


def client_address(host: str) -> str:
    """What counts as one client: an IPv4 address, an IPv6 /64; empty for a unix socket."""
    if ":" not in host:
        return host
    address = ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped) if mapped else f"{int(address) >> (128 - IPV6_SITE_BITS):x}"
