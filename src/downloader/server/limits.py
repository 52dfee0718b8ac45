"""The limits for clients, and the deadlines of a connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import ip_address
from math import inf

PIECE_BYTES = 64 * 1024
"""Bytes that are sent with one deadline, and largest size of a read."""

IPV6_SITE_BITS = 64
"""Bits of an IPv6 address that a client cannot choose."""


class State(Enum):
    """The state of a connection; see `deadlines`."""

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
    """Headers of a request, as in Apache; more are answered 431. A short header takes ten times as many bytes
    in memory as on the wire."""
    head_s: float = 10.0
    """From the first byte of a head to the end of the head; for the first head from connecting, TLS
    included."""
    idle_s: float = 60.0
    """Time between two requests; longer than the 30 s for which pooling clients often keep a connection."""
    body_grace_s: float = 10.0
    """Time for a body in addition to the time at `body_rate`; a slower body is answered 408."""
    body_rate: int = 1024
    """Bytes per second."""
    send_s: float = 30.0
    """Time for a client to receive the next 64 KiB of a response; then the connection is closed."""
    stop_send_s: float = 2.0
    """`send_s` while the server stops, so that a client that does not read cannot delay the stop."""
    linger_s: float = 2.0
    """Time for a client to read the response while still sending a body. An immediate close would reset the
    connection, and the client could lose the response."""
    linger_bytes: int = 16 * 1024**2
    """Most bytes of a body that are received and discarded during `linger_s`."""
    connections: int = 4096
    """Most connections; at most half of the file descriptors that the process may open."""
    per_address: int = 1024
    """Most connections of an IPv4 address or IPv6 /64, at most half of all. Unix sockets are not counted."""
    reserve: int = 32
    """Connections beyond `connections`, on which only health checks are answered."""
    reserve_head_s: float = 2.0
    """`head_s` for connections of the reserve."""
    unread_bytes: int = 32 * 1024**2
    """Total budget for received bytes that no application has read. Each of n connections reads up to
    budget/n at once, or three times that of a streamed body."""


def deadlines(limits: Limits, *, reserved: bool) -> Mapping[State, float]:
    """Time limits for the client in each state, in seconds; sending has a separate deadline per piece.

    The limit of `BODY` is the initial one, which grows with each received byte. `reserved`: for connections
    of the reserve.
    """
    return {
        State.IDLE: limits.idle_s,
        State.HEAD: limits.reserve_head_s if reserved else limits.head_s,
        State.BODY: limits.body_grace_s,
        State.RESPONSE: inf,
        State.CLOSING: limits.linger_s,
    }


def client_address(host: str) -> str:
    """The part of an address that identifies a client: IPv4 address or IPv6 /64; empty for a unix socket."""
    if ":" not in host:
        return host
    address = ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped) if mapped else f"{int(address) >> (128 - IPV6_SITE_BITS):x}"
