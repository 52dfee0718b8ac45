"""A client whose jobs come one by one at a rate, whatever the API does: the load of an ordinary day.

`python -m bench.paced API_PORT ORIGIN_URL SINK_PORT JOBS AGGREGATIONS LIMIT RATE` prints one JSON object:
`sent` (CLOCK_MONOTONIC in ns at which each job was due, by its id), `errors` and `error_count`.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

from bench.client import SHOWN_ERRORS, SILENCE_S, jobs, request, take_answer


@dataclass(slots=True)
class _Paced:
    port: int
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    idle: list[socket.socket] = field(default_factory=list)
    due: dict[socket.socket, int] = field(default_factory=dict)
    """When the job was due whose response each connection awaits."""
    sent: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def send(self, body: bytes, due_ns: int) -> None:
        """Send a job over a connection that is free, or a new one."""
        if self.idle:
            sock = self.idle.pop()
        else:
            sock = socket.create_connection(("127.0.0.1", self.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(sock, selectors.EVENT_READ, bytearray())
        self.due[sock] = due_ns
        sock.sendall(request(body, self.port))

    def receive(self, timeout_s: float) -> None:
        """Take the responses that come within this time."""
        for key, _ in self.selector.select(max(0.0, timeout_s)):
            sock, buffer = key.fileobj, key.data
            assert isinstance(sock, socket.socket)
            buffer += sock.recv(65536)
            response = take_answer(buffer)
            if response is None:
                continue
            status, body, _ = response
            if status == 201:
                self.sent[json.loads(body)["id"]] = self.due.pop(sock)
            else:
                self.errors.append(f"{status} {body[:200]!r}")
                del self.due[sock]
            self.idle.append(sock)


def main() -> None:
    origin = sys.argv.pop(2)
    api, sink, count, aggregations, limit, rate = map(int, sys.argv[1:])
    client = _Paced(api)
    begun = time.monotonic_ns()
    bodies = jobs(count=count, aggregations=aggregations, limit=limit, origin=origin, sink=sink)
    for number, body in enumerate(bodies):
        due_ns = begun + number * 1_000_000_000 // rate
        while (left_ns := due_ns - time.monotonic_ns()) > 0:
            client.receive(left_ns / 1e9)
        client.send(body, due_ns)
    deadline = time.monotonic() + SILENCE_S
    while client.due and time.monotonic() < deadline:
        client.receive(0.1)
    errors = client.errors + ["no response"] * len(client.due)
    print(json.dumps({"sent": client.sent, "errors": errors[:SHOWN_ERRORS], "error_count": len(errors)}))


if __name__ == "__main__":
    main()
