"""More clients than the API has descriptors, and thousands that do not read (H25); large bodies (F27)."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from downloader.api.intake import MAX_BYTES
from servers.fleet import Fleet, job_for, open_fleet, say
from servers.valkey import Valkey

# Thousands of connections take half a minute of CPU, and the machine may be shared with many other programs.
pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

DESCRIPTORS = 1024

HALF_HEAD = b"GET /hb HTTP/1.1\r\nHost: loc"
HALF_BODY = b"POST /download HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"

READERS = 4096
"""The number of connections that the API keeps by default."""

FILE_BYTES = 64 * 1024**2
"""More than fits into the buffers of the sockets on both sides."""

READER_BYTES = 192 * 1024
"""Memory of the process for one reader: a piece of the file, and the connection."""

LIVE_S = 0.1

POSTS = 1200
BUDGET_COSTS = 4
"""How many bytes the process may grow by for each byte of the intake's budget: received bytes that the
application has not read yet have a budget of their own."""


async def connect(port: int, address: str, data: bytes) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=address)
    with suppress(trio.BrokenResourceError):
        await stream.send_all(data)
    return stream


def is_open(stream: trio.SocketStream) -> bool:
    """Whether the server has neither closed the connection nor answered."""
    try:
        os.read(stream.socket.fileno(), 1)
    except BlockingIOError:
        return True
    except ConnectionResetError:
        pass
    return False


async def live_s(fleet: Fleet, api: int) -> float:
    """How many seconds `/health/live` takes over a new connection: the longest of ten times.

    It is measured without the time for which the machine let the API, or this process, wait for a processor.
    """
    times, waits = [], []
    for _ in range(10):
        waited, began = waited_s(api), trio.current_time()
        answer = await fleet.client.get("/health/live", headers={"Connection": "close"})
        times.append(trio.current_time() - began)
        waits.append(waited_s(api) - waited)
        assert answer.status_code == 200
    say(f"/health/live: {max(times):.3f} s at worst, at most {max(waits):.3f} s of it for a processor")
    return max(time - wait for time, wait in zip(times, waits, strict=True))


def waited_s(pid: int) -> float:
    """For how many seconds the main threads of this and that process were runnable and did not run."""
    stats = [Path(f"/proc/{number}/schedstat").read_text() for number in (os.getpid(), pid)]
    return sum(int(stat.split()[1]) for stat in stats) / 1e9


async def close_all(streams: Sequence[trio.SocketStream]) -> None:
    for stream in streams:
        await trio.aclose_forcefully(stream)


@pytest.mark.row("H25")
async def test_600_half_heads_and_half_bodies_at_1024_descriptors(folder: Path, server: Valkey) -> None:
    async with open_fleet(folder, server) as fleet:
        api = await fleet.start("api", ready=False)
        resource.prlimit(api.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        port = (await api.event("api.listening"))["port"]
        await api.event("service.started")
        fleet.client.base_url = f"http://127.0.0.1:{port}"
        streams = []
        for number in range(600):
            address = f"127.0.0.{2 + number % 3}"
            streams.append(await connect(port, address, HALF_BODY if number % 2 else HALF_HEAD))
            if number % 100 == 99:
                assert (await fleet.client.get("/hb")).status_code == 200
                await fleet.post(**job_for("http://127.0.0.1/", "http://127.0.0.1/"))
        while sum(kept := [is_open(stream) for stream in streams]) > DESCRIPTORS // 2:
            await fleet.client.get("/hb")  # until the server has accepted the last connections
        say(f"{sum(kept)} of 600 are kept")
        excess = 600 - DESCRIPTORS // 2
        assert sum(kept[:excess]) < excess // 2, "those that have waited longest are closed first"
        assert kept[-1]
        assert await live_s(fleet, api.pid) < LIVE_S
        await close_all(streams)
        await api.stop()


@pytest.mark.row("H25")
async def test_4096_slow_readers_of_a_file(folder: Path, server: Valkey) -> None:
    async with open_fleet(folder, server) as fleet:
        api = await fleet.start("api")
        fleet.files.mkdir(parents=True, exist_ok=True)
        with (fleet.files / "large").open("wb") as file:
            file.truncate(FILE_BYTES)
        assert fleet.client.base_url.port is not None
        before = memory(api.pid)
        streams: list[trio.SocketStream] = []
        get = b"GET /files/large HTTP/1.1\r\nHost: localhost\r\n\r\n"
        limiter = trio.CapacityLimiter(64)

        async def read_a_little(number: int) -> None:
            async with limiter:
                stream = await connect(fleet.client.base_url.port or 0, f"127.0.0.{2 + number % 4}", get)
                assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 200 ")
                streams.append(stream)

        async with trio.open_nursery() as nursery:
            for number in range(READERS):
                nursery.start_soon(read_a_little, number)
        grown = memory(api.pid) - before
        say(f"{len(streams)} readers: {grown / READERS / 1024:.0f} KiB each")
        assert await live_s(fleet, api.pid) < LIVE_S
        assert grown < READERS * READER_BYTES
        await close_all(streams)
        # Over a new connection: the server may have closed the kept one in favour of another.
        answer = await fleet.client.get("/hb", headers={"Connection": "close"}, timeout=60)
        assert answer.status_code == 200
        assert not api.noise
        assert not api.events("api.failed")


@pytest.mark.row("F27")
async def test_f27_large_jobs_while_the_store_hangs(folder: Path, server: Valkey) -> None:
    body = json.dumps(job_for("http://127.0.0.1/", "http://127.0.0.1/", extra="x" * 240_000)).encode()
    head = b"POST /download HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    answers: Counter[bytes] = Counter()
    async with open_fleet(folder, server, {"redis": {"timeout": 10.0}}) as fleet:
        api = await fleet.start("api")
        port = fleet.client.base_url.port or 0
        before = memory(api.pid)
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        refused = trio.Semaphore(0)

        async def post(number: int) -> None:
            async with await connect(port, f"127.0.0.{2 + number % 8}", head + body) as stream:
                status = (await stream.receive_some(100))[9:12]
                answers[status] += 1
                refused.release()

        async with trio.open_nursery() as nursery:
            for number in range(POSTS):
                nursery.start_soon(post, number)
            # Jobs beyond the budget are refused at once; the others wait for the store.
            for _ in range(POSTS - MAX_BYTES // len(body)):
                await refused.acquire()
            assert (await fleet.client.get("/health/live")).status_code == 200
            server.process.send_signal(signal.SIGCONT)
        grown = peak(api.pid) - before
        say(f"{POSTS} jobs, {POSTS * len(body) >> 20} MiB: {grown >> 20} MiB more at the most; {answers}")
        assert answers.keys() <= {b"201", b"503"}
        assert grown < BUDGET_COSTS * MAX_BYTES
        await fleet.post(**job_for("http://127.0.0.1/", "http://127.0.0.1/"))
        await api.stop()


def peak(pid: int) -> int:
    """The largest resident memory of the process so far, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def memory(pid: int) -> int:
    """The resident memory of the process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
