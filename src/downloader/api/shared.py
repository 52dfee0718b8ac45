"""What the connections of one server share: its application, its limits, and the words they use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from time import time
from typing import Any

import trio

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]

CHUNK_BYTES = 64 * 1024
"""Read at once, and written under one deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may cost; the defaults suit people on phones as well as fleets on a LAN."""

    head_bytes: int = 16 * 1024
    """Of request line and headers together, as in node.js; more is answered 431."""
    head_s: float = 10.0
    """To the end of a head, from its first byte (or from connecting, for the first one); else 408."""
    idle_s: float = 60.0
    """Between two requests: longer than the 30 s for which pooling clients commonly keep a connection."""
    body_grace_s: float = 10.0
    """Waiting for a body that is not charged against `body_rate`; one that drips slower gets 408."""
    body_rate: int = 1024
    """Bytes per second."""
    send_s: float = 30.0
    """For a client to take the next 64 KiB of an answer; else it is cut off."""
    linger_s: float = 2.0
    """For a client to read an answer while it still sends a body that nobody wants: closing at once
    would reset the connection and destroy the answer on its way."""
    linger_bytes: int = 16 * 1024**2
    connections: int = 4096
    """Or half of the descriptors that the process may open, if that is less. At more, the longest idle
    one is closed; when none is idle, the new one is answered 503."""


@dataclass(slots=True, kw_only=True)
class Shared:
    """What the connections of one server share."""

    app: AsgiApp
    limits: Limits
    stopping: bool = False
    """No connection is kept for another request."""
    idle: dict[object, trio.CancelScope] = field(default_factory=dict)
    """Connections that wait for a request, the longest waiting first; cancelling the scope closes one."""
    connections: int = 0
    """Now open."""
    most: int = 0
    """How many may be."""
    _date: tuple[int, bytes] = (0, b"")

    def close_an_idle_one(self) -> bool:
        """Make room by closing the longest idle connection; false when none is idle."""
        for connection, scope in self.idle.items():
            del self.idle[connection]
            scope.cancel()
            return True
        return False

    def date(self) -> bytes:
        """Value of the `Date` header, made once a second."""
        now = int(time())
        if now != self._date[0]:
            self._date = (now, formatdate(now, usegmt=True).encode())
        return self._date[1]


class Gone(OSError):
    """The client has left, or does not read; ASGI asks for an `OSError`."""
