"""The limits for clients, the deadlines of a connection, and which connection is closed for another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from ipaddress import ip_address
from math import inf
from typing import Protocol

PIECE_BYTES = 64 * 1024
"""The unit of sending under one deadline, and the largest of reading."""

SMALLEST_PIECE_BYTES = 4 * 1024

IPV6_SITE_BITS = 64
"""The prefix of an IPv6 address that a client cannot choose."""


class State(Enum):
    """What a connection does; see `deadlines`."""

    IDLE = auto()
    """Between two requests."""
    HEAD = auto()
    """A part of a request head has been received; also from connecting to the end of the first head."""
    BODY = auto()
    """The application waits for the client to send more of the body."""
    RESPONSE = auto()
    """The application works or sends."""
    CLOSING = auto()
    """Nothing more is sent; what the client still sends is discarded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits for clients; the defaults suit slow mobile connections and fleets on a LAN."""

    head_bytes: int = 16 * 1024
    """Request line and headers together, as in node.js; more are answered 431."""
    headers: int = 100
    """Headers of a request, as in Apache; more are answered 431. In memory a short one takes ten times
    as many bytes as on the wire."""
    head_s: float = 10.0
    """From the first byte of a head to its end; for the first one from connecting, TLS handshake included."""
    idle_s: float = 60.0
    """Between two requests: longer than the 30 s for which pooling clients commonly keep a connection."""
    body_grace_s: float = 10.0
    """Waiting for a body beyond what `body_rate` allows; a slower body is answered 408."""
    body_rate: int = 1024
    """Bytes per second."""
    send_s: float = 30.0
    """For a client to receive the next 64 KiB of a response; then its connection is closed."""
    stop_send_s: float = 2.0
    """The same while the server stops, so that a client that does not read cannot delay the stop."""
    linger_s: float = 2.0
    """For a client to read the response while it still sends a body: closing at once would reset the
    connection, and the client could lose the response."""
    linger_bytes: int = 16 * 1024**2
    """Most bytes of such a body that are received and discarded."""
    connections: int = 4096
    """At most half of the file descriptors that the process may open."""
    per_address: int = 1024
    """From one IPv4 address or IPv6 /64; at most half of all. Unix sockets are not counted."""
    reserve: int = 32
    """Connections beyond `connections`, on which only health checks are answered."""
    reserve_head_s: float = 2.0
    """`head_s` on such a connection."""
    unread_bytes: int = 32 * 1024**2
    """Budget of all connections for received bytes that no application has read. Each of n connections reads
    up to 1/n of it at once, and buffers up to twice that."""


def deadlines(limits: Limits, *, reserved: bool) -> Mapping[State, float]:
    """The seconds that a client has in each state; sending has deadlines of its own, for each piece.

    Those of `BODY` are the first ones: each received byte adds to them. `reserved`: of the reserve.
    """
    return {
        State.IDLE: limits.idle_s,
        State.HEAD: limits.reserve_head_s if reserved else limits.head_s,
        State.BODY: limits.body_grace_s,
        State.RESPONSE: inf,
        State.CLOSING: limits.linger_s,
    }


class ClientConnection(Protocol):
    """An open connection."""

    address: str
    """Of the client, see `client_address`."""
    reserved: bool

    def cut(self) -> None:
        """Close it at once."""

    def drain(self) -> None:
        """Take no more requests and close after the response; the server stops."""


@dataclass(slots=True, kw_only=True)
class OpenConnections:
    """The connections of one server.

    When the limit in all or for an address is reached, a new connection replaces the one that has waited
    longest for its client to send a request or the rest of one. If none waits, the new one is of the reserve.
    """

    most: int
    per_address: int
    reserve: int
    unread_bytes: int
    ordinary: set[ClientConnection] = field(default_factory=set)
    reserved: set[ClientConnection] = field(default_factory=set)
    _addresses: Counter[str] = field(default_factory=Counter)
    _waiting: dict[ClientConnection, None] = field(default_factory=dict)
    """Connections that wait for their client and may be closed, the longest waiting first."""

    @property
    def piece_bytes(self) -> int:
        """Most bytes to read at once from a connection; the more connections, the fewer."""
        share = self.unread_bytes // max(1, len(self.ordinary))
        return max(SMALLEST_PIECE_BYTES, min(PIECE_BYTES, share))

    def add(self, new: ClientConnection) -> bool:
        """Count a new connection, and set its `reserved`; false if the reserve is full too."""
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

    def remove(self, closed: ClientConnection) -> None:
        """Forget a closed connection."""
        self._waiting.pop(closed, None)
        if closed.reserved:
            self.reserved.discard(closed)
            return
        self.ordinary.discard(closed)
        self._addresses[closed.address] -= 1
        if not self._addresses[closed.address]:
            del self._addresses[closed.address]

    def set_waiting(self, connection: ClientConnection, *, waits: bool) -> None:
        """Note whether the connection waits for its client and may be closed for another."""
        if waits:
            self._waiting.setdefault(connection)
        else:
            self._waiting.pop(connection, None)

    def _cut_one(self, address: str, *, reserved: bool = False) -> bool:
        """Close the longest waiting connection, of this address if not empty; false if none waits."""
        for connection in self._waiting:
            if connection.reserved is reserved and address in ("", connection.address):
                del self._waiting[connection]
                connection.cut()
                return True
        return False


def client_address(host: str) -> str:
    """The part of an address that identifies a client: IPv4 address or IPv6 /64; empty for a unix socket."""
    if ":" not in host:
        return host
    address = ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped) if mapped else f"{int(address) >> (128 - IPV6_SITE_BITS):x}"
