"""A receiver of callbacks on loopback that keeps all requests, and responds as the path says.

`/ok/...` 200; `/status/CODE/...` that status; `/busy/SECONDS/...` 429 with `Retry-After` the first time for
each job; `/flaky/N/...` 500 to the first N deliveries of each job; `/redirect/...` 302 to `/ok/redirected`;
`/slow/SECONDS/...`; `/hang/...` never answers; `/broken/...` answers only after `repair`.
"""

from __future__ import annotations

import errno
import json
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio


@dataclass(frozen=True, slots=True)
class Received:
    """One delivery that arrived."""

    job_id: str
    """Empty for the callback of a group."""
    webhook_id: str
    path: str
    payload: dict[str, Any]
    body: bytes
    at: float
    """By `time.monotonic`."""
    traceparent: str = ""


@dataclass
class Sink:
    """The running receiver."""

    port: int = 0
    received: list[Received] = field(default_factory=list)
    repaired: bool = False
    _seen: Counter[str] = field(default_factory=Counter)
    _changed: trio.Event = field(default_factory=trio.Event)

    def url(self, path: str = "/ok", *, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    @property
    def heard(self) -> AbstractSet[str]:
        """The jobs of which there was a delivery."""
        return self._seen.keys()

    def by_job(self) -> dict[str, list[Received]]:
        """Deliveries by job id, in order."""
        jobs: defaultdict[str, list[Received]] = defaultdict(list)
        for one in self.received:
            jobs[one.job_id].append(one)
        return jobs

    async def until(self, condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
        """Wait for something that deliveries change."""
        with trio.fail_after(seconds):
            while not condition():
                await self._changed.wait()

    async def heard_of(self, *job_ids: str, seconds: float = 20.0) -> list[Received]:
        """Wait for a delivery for each of the jobs; returns the last delivery of each."""
        wanted = set(job_ids)
        await self.until(lambda: wanted <= self.heard, seconds=seconds)
        jobs = self.by_job()
        return [jobs[job_id][-1] for job_id in job_ids]

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some(65536)
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                line, *fields = head.decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (text.partition(":") for text in fields)}
                length = int(headers.get("content-length", 0))
                while len(data) < length:
                    data += await stream.receive_some(65536)
                body, data = data[:length], data[length:]
                await self._answer(stream, line.split(" ")[1], headers, body)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _answer(
        self, stream: trio.SocketStream, path: str, headers: dict[str, str], body: bytes
    ) -> None:
        payload = json.loads(body)
        one = Received(
            payload.get("job_id", ""),
            headers.get("webhook-id", ""),
            path,
            payload,
            body,
            time.monotonic(),
            headers.get("traceparent", ""),
        )
        self.received.append(one)
        self._seen[one.job_id] += 1
        self._changed.set()
        self._changed = trio.Event()
        status, more = 200, ""
        match path.partition("?")[0].split("/")[1:]:
            case ["status", code, *_]:
                status = int(code)
            case ["flaky", count, *_] if self._seen[one.job_id] <= int(count):
                status = 500
            case ["busy", seconds, *_] if self._seen[one.job_id] == 1:
                status, more = 429, f"Retry-After: {seconds}\r\n"
            case ["redirect", *_]:
                status, more = 302, f"Location: {self.url('/ok/redirected')}\r\n"
            case ["slow", seconds, *_]:
                await trio.sleep(float(seconds))
            case ["broken", *_] if not self.repaired:
                status = 500
            case ["hang", *_]:
                await trio.sleep_forever()
            case _:
                pass
        await stream.send_all(f"HTTP/1.1 {status} X\r\n{more}Content-Length: 0\r\n\r\n".encode())


HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 10))


async def listeners_on_one_port(hosts: Sequence[str]) -> list[trio.SocketListener]:
    """A port that is free on all the given addresses."""
    while True:
        listeners: list[trio.SocketListener] = []
        try:
            for host in hosts:
                port = listeners[0].socket.getsockname()[1] if listeners else 0
                listeners += await trio.open_tcp_listeners(port, host=host, backlog=1024)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            for listener in listeners:
                await listener.aclose()
        else:
            return listeners


@asynccontextmanager
async def open_sink(hosts: Sequence[str] = HOSTS) -> AsyncIterator[Sink]:
    """A running sink on the given addresses, which tell destinations apart."""
    sink = Sink()
    async with trio.open_nursery() as nursery:
        listeners = await listeners_on_one_port(hosts)
        sink.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, sink.serve, listeners)
        try:
            yield sink
        finally:
            nursery.cancel_scope.cancel()
