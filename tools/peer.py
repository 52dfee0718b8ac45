"""A blocking origin and receiver of callbacks, for scripts that run the service in containers."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from containers import until

PORT = 9000
BODY = hashlib.shake_256(b"image").digest(300_000)
"""The content of every file."""


class Peer(ThreadingHTTPServer):
    """Origin and receiver of callbacks in one: `/file`; `/held`, whose second half comes after `release`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", PORT), _Exchange)
        self.callbacks: dict[str, dict[str, Any]] = {}
        self.holding = threading.Event()
        self.release = threading.Event()

    def callback(self, job_id: str) -> dict[str, Any]:
        """A job's callback, once it has come."""
        return until(lambda: self.callbacks.get(job_id), what=f"the callback of {job_id}") or {}


class _Exchange(BaseHTTPRequestHandler):
    server: Peer

    def do_GET(self) -> None:
        half = len(BODY) // 2
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:half])
        self.wfile.flush()
        if self.path == "/held":
            self.server.holding.set()
            self.server.release.wait()
        self.wfile.write(BODY[half:])

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.callbacks[payload["job_id"]] = payload
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name for it
        pass


@contextmanager
def open_peer() -> Iterator[Peer]:
    """A running one, on every address of this network namespace."""
    with Peer() as peer:
        threading.Thread(target=peer.serve_forever, daemon=True).start()
        yield peer
        peer.shutdown()
