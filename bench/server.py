"""The smallest HTTP/1.1 server that a benchmark can do with: one epoll loop, keep-alive, no framework.

Cheap on purpose: it shares two cores with what is measured. Not fit for anything but the bench's own clients.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

_BACKLOG = 4096
_READ_BYTES = 65536
_DUE = select.EPOLLIN | select.EPOLLPRI
"""The event of a connection whose delay is over; not what epoll tells of one that has sent something."""

Handler = Callable[[bytearray], bytes]
"""Takes complete requests off the front of the buffer and answers their responses, `b""` for none yet."""


class _Connection:
    __slots__ = ("buffer", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.unsent: bytes | memoryview = b""


def serve(
    handle: Handler,
    *,
    after_round: Callable[[], None] = lambda: None,
    tls: ssl.SSLContext | None = None,
    hosts: int = 1,
    delay_s: float = 0.0,
) -> None:
    """Listen on a free loopback port, print it, and serve until standard input is closed.

    Args:
        handle: is called whenever a connection has sent something.
        after_round: is called after each round of events.
        tls: the context of the server, for HTTPS.
        hosts: how many loopback addresses it listens on, from `127.0.0.1` on.
        delay_s: between a request and its response.
    """
    poll = select.epoll()
    listeners: dict[int, socket.socket] = {}
    port = 0
    for number in range(hosts):
        listener = socket.create_server((f"127.0.0.{1 + number}", port), backlog=_BACKLOG)
        listener.setblocking(False)
        port = listener.getsockname()[1]
        listeners[listener.fileno()] = listener
        poll.register(listener, select.EPOLLIN)
    sys.stdout.buffer.write(b"%d\n" % port)
    sys.stdout.buffer.flush()
    poll.register(sys.stdin, select.EPOLLIN)
    connections: dict[int, _Connection] = {}
    late: deque[tuple[float, int]] = deque()
    while True:
        for fd, event in _events(poll, late):
            if fd in listeners:
                _accept(listeners[fd], poll, connections, tls)
            elif fd == sys.stdin.fileno():
                if not os.read(fd, 1):
                    return
            elif delay_s and event == select.EPOLLIN:
                poll.modify(fd, 0)
                late.append((time.monotonic() + delay_s, fd))
            elif fd in connections and not _advance(connections[fd], event, handle, poll):
                connections.pop(fd).sock.close()
        after_round()


def _events(poll: select.epoll, late: deque[tuple[float, int]]) -> Iterator[tuple[int, int]]:
    """What has happened, and the connections whose delay is over, which are taken off the front of `late`."""
    yield from poll.poll(max(0.0, late[0][0] - time.monotonic()) if late else None)
    while late and late[0][0] <= time.monotonic():
        fd = late.popleft()[1]
        with suppress(FileNotFoundError):  # closed meanwhile
            poll.modify(fd, select.EPOLLIN)
            yield fd, _DUE


def _accept(
    listener: socket.socket,
    poll: select.epoll,
    connections: dict[int, _Connection],
    tls: ssl.SSLContext | None,
) -> None:
    with suppress(BlockingIOError):
        while True:
            sock, _ = listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            connections[sock.fileno()] = _Connection(sock)
            poll.register(sock, select.EPOLLIN)


def _advance(connection: _Connection, event: int, handle: Handler, poll: select.epoll) -> bool:
    """Read, handle and write what is possible now; false: the connection is at its end."""
    try:
        if event & ~select.EPOLLOUT:
            data = connection.sock.recv(_READ_BYTES)
            if not data:
                return False
            connection.buffer += data
            if response := handle(connection.buffer):
                connection.unsent = bytes(connection.unsent) + response if connection.unsent else response
        while connection.unsent:
            # A view, since a large response is sent in many steps.
            connection.unsent = memoryview(connection.unsent)[connection.sock.send(connection.unsent) :]
        if connection.unsent or event & select.EPOLLOUT:
            poll.modify(connection.sock, select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0))
    except ssl.SSLWantReadError:
        pass
    except (BlockingIOError, ssl.SSLWantWriteError):
        poll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)
    except (ConnectionError, ssl.SSLError):
        return False
    return True
