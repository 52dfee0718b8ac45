"""The client that sends jobs through `POST /downloads`: NDJSON, sent and read at once on each connection.

`python -m bench.stream API_PORT ORIGIN_PORT SINK_PORT JOBS AGGREGATIONS LIMIT CONNECTIONS` prints the same
JSON object as `bench.client`; `status` is the answer's where it was not 200.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse

from bench.client import SHOWN_ERRORS, SILENCE_S, jobs

CHUNK_BYTES = 64 * 1024
"""About what curl sends in one chunk of an upload whose length it does not know."""


def chunks(lines: list[bytes]) -> Iterator[bytes]:
    """These lines as chunks of a chunked body, its end included."""
    chunk = bytearray()
    for line in lines:
        chunk += line
        chunk += b"\n"
        if len(chunk) >= CHUNK_BYTES:
            yield b"%x\r\n%b\r\n" % (len(chunk), bytes(chunk))
            chunk.clear()
    if chunk:
        yield b"%x\r\n%b\r\n" % (len(chunk), bytes(chunk))
    yield b"0\r\n\r\n"


@dataclass(slots=True)
class Stream:
    """One request, and what was answered."""

    port: int
    body: list[bytes]
    status: int = 0
    answer: bytes = b""
    error: str = ""
    last_ns: int = field(default_factory=time.monotonic_ns)

    def run(self) -> None:
        """Send the body on a thread of its own while the answer is read on this one."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=SILENCE_S) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sender = threading.Thread(target=self._send, args=(sock,))
            sender.start()
            try:
                response = HTTPResponse(sock)
                response.begin()
                self.status = response.status
                self.answer = response.read()
            except (OSError, HTTPException) as error:
                self.error = f"{type(error).__name__}: {error}"
            self.last_ns = time.monotonic_ns()
            with suppress(OSError):  # ends a sender whose body nobody reads
                sock.shutdown(socket.SHUT_RDWR)
            sender.join()

    def _send(self, sock: socket.socket) -> None:
        with suppress(OSError):  # an answer that came early says why
            sock.sendall(
                b"POST /downloads HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/x-ndjson\r\n"
                b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" % self.port
            )
            for chunk in self.body:
                sock.sendall(chunk)


def main() -> None:
    origin = sys.argv.pop(2)
    api, sink, count, aggregations, limit, connections = map(int, sys.argv[1:])
    lines = list(jobs(count=count, aggregations=aggregations, limit=limit, origin=origin, sink=sink))
    streams = [Stream(api, list(chunks(lines[first::connections]))) for first in range(connections)]
    threads = [threading.Thread(target=stream.run) for stream in streams]
    first = time.monotonic_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = [
        json.loads(line) for stream in streams if stream.status == 200 for line in stream.answer.splitlines()
    ]
    refused = [f"{stream.status} {stream.answer[:200]!r}" for stream in streams if stream.status != 200]
    errors = [stream.error for stream in streams if stream.error] + refused
    errors += [str(answer) for answer in answers if "id" not in answer]
    result = {
        "first_ns": first,
        "last_ns": max(stream.last_ns for stream in streams),
        "ids": [answer["id"] for answer in answers if "id" in answer],
        "errors": errors[:SHOWN_ERRORS],
        "error_count": len(errors),
        "status": next((stream.status for stream in streams if stream.status != 200), 200),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
