"""The client: POSTs jobs one by one over keep-alive connections, as cheaply as Python can.

`python -m bench.client API_PORT ORIGIN_URL SINK_PORT JOBS AGGREGATIONS LIMIT CONNECTIONS` prints one JSON
object: `first_ns` and `last_ns` (CLOCK_MONOTONIC at the first send and the last answer), `ids`, `errors`, and
`p50_ms` and `p99_ms` of a POST.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CLOSE = re.compile(rb"(?i)\r\nconnection: *close")
_ID = re.compile(rb'"id": *"([^"]+)"')
SHOWN_ERRORS = 5
SILENCE_S = 30.0
"""An API that answers nothing for so long is taken for dead."""


URL_LENGTH = 60
"""Characters of a job's URL."""


def path(index: int) -> str:
    """The path of a job's file."""
    return f"/file/{index:08}.png"


def job(*, aggr_id: str, limit: int, url: str, callback: str) -> bytes:
    """The body of a `POST /download`."""
    return json.dumps(
        {
            "aggr_id": aggr_id,
            "aggr_limit": limit,
            "url": url,
            "callback_type": "http",
            "callback_dst": callback,
        }
    ).encode()


def jobs(*, count: int, aggregations: int, limit: int, origin: str, sink: int) -> Iterator[bytes]:
    """Bodies of jobs that take turns among the aggregations; `sink` is a port."""
    for index in range(count):
        url = f"{origin}{path(index)}?"
        yield job(
            aggr_id=f"bench-{index % aggregations}",
            limit=limit,
            url=url.ljust(URL_LENGTH, "x"),
            callback=f"http://127.0.0.1:{sink}/callback",
        )


def request(body: bytes, port: int) -> bytes:
    """A whole `POST /download` with the content type that `curl -d` sends."""
    head = (
        f"POST /download HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def take_answer(buffer: bytearray) -> tuple[int, bytes, bool] | None:
    """One complete answer off the front: `(status, body, connection stays open)`."""
    head = buffer.find(b"\r\n\r\n")
    if head < 0:
        return None
    length = _LENGTH.search(buffer, 0, head + 2)
    end = head + 4 + (int(length[1]) if length else 0)
    if len(buffer) < end:
        return None
    status, body = int(buffer[9:12]), bytes(buffer[head + 4 : end])
    stays = _CLOSE.search(buffer, 0, head + 2) is None
    del buffer[:end]
    return status, body, stays


@dataclass(slots=True)
class _Run:
    port: int
    jobs: Iterator[bytes]
    selector: selectors.BaseSelector
    ids: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    open: int = 0
    sent_ns: dict[socket.socket, int] = field(default_factory=dict)
    took_ns: list[int] = field(default_factory=list)

    def connect(self) -> None:
        """One connection more, with the next job on its way; none when all are sent."""
        body = next(self.jobs, None)
        if body is None:
            return
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.selector.register(sock, selectors.EVENT_READ, bytearray())
        self.open += 1
        self._send(sock, body)

    def readable(self, sock: socket.socket, buffer: bytearray) -> None:
        data = sock.recv(65536)
        buffer += data
        answer = take_answer(buffer)
        if answer is None:
            if not data:
                self.errors.append("connection closed before the answer")
                self._close(sock)
            return
        status, body, stays = answer
        self.took_ns.append(time.monotonic_ns() - self.sent_ns.pop(sock))
        found = _ID.search(body)
        if status == 201 and found:
            self.ids.append(found[1].decode())
        else:
            self.errors.append(f"{status} {body[:200]!r}")
        following = next(self.jobs, None) if stays else None
        if following is None:
            self._close(sock)
        else:
            self._send(sock, following)

    def _send(self, sock: socket.socket, body: bytes) -> None:
        self.sent_ns[sock] = time.monotonic_ns()
        sock.sendall(request(body, self.port))

    def _close(self, sock: socket.socket) -> None:
        self.selector.unregister(sock)
        sock.close()
        self.open -= 1
        self.connect()


def main() -> None:
    origin = sys.argv.pop(2)
    api, sink, count, aggregations, limit, connections = map(int, sys.argv[1:])
    bodies = jobs(count=count, aggregations=aggregations, limit=limit, origin=origin, sink=sink)
    selector = selectors.DefaultSelector()
    run = _Run(port=api, jobs=bodies, selector=selector)
    first = time.monotonic_ns()
    for _ in range(connections):
        run.connect()
    while run.open:
        events = selector.select(SILENCE_S)
        if not events:
            run.errors.append(f"no answer for {SILENCE_S} s")
            break
        for key, _ in events:
            assert isinstance(key.fileobj, socket.socket)
            run.readable(key.fileobj, key.data)
    took_ns = sorted(run.took_ns) or [0]
    result = {
        "first_ns": first,
        "last_ns": time.monotonic_ns(),
        "ids": run.ids,
        "errors": run.errors[:SHOWN_ERRORS],
        "error_count": len(run.errors),
        "p50_ms": took_ns[len(took_ns) // 2] / 1e6,
        "p99_ms": took_ns[len(took_ns) * 99 // 100] / 1e6,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
