"""Stops while something hangs: the process ends within the grace period and leaves no lease. Fault F25."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio

from servers.bad_disk import install
from servers.fault_proxy import FaultProxy, open_fault_proxy
from servers.fleet import (
    DEFAULTS,
    GRACE_S,
    HUNG,
    STOP_S,
    Fleet,
    History,
    Running,
    job_for,
    merged,
    open_fleet,
    to_toml,
)
from servers.forked import fork
from servers.origin import Origin, gate, respond
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(120)]

NEVER = trio.Event()


@pytest.fixture
async def proxy(server: Valkey) -> AsyncIterator[FaultProxy]:
    """A proxy between one process and the server."""
    async with open_fault_proxy(Path(server.socket)) as opened:
        yield opened


async def appears(path: Path) -> None:
    """Wait for a file, which is the only sign that the plugin gives from another process."""
    with trio.fail_after(20):
        while not await trio.Path(path).exists():  # noqa: ASYNC110
            await trio.sleep(0.02)


async def blocked(url: str) -> None:
    """Submit jobs until the service stops answering."""
    async with httpx2.AsyncClient(trust_env=False, timeout=5) as client:
        while True:
            try:
                await client.post(url, json=job_for("http://x.test/", "http://x.test/"))
            except httpx2.TimeoutException:
                return


async def start_on_bad_disk(fleet: Fleet, **section: object) -> Running:
    signs = fleet.folder / "signs"
    signs.mkdir()
    storage = {"type": "bad", "rootdir": str(fleet.files), "signs": str(signs), **section}
    tables = {"processor.filestorage": storage}
    return await fleet.start("run", environ=install(fleet.folder / "stranger"), tables=tables)


@pytest.mark.row("F25")
async def test_f25_a_lease_answered_after_the_deadline_is_handed_back(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, proxy: FaultProxy
) -> None:
    origin.on("/held", gate(NEVER, respond(200)))
    async with open_fleet(folder, server, {"processor": {"grace": 1.5 * GRACE_S}}) as fleet:
        far = {"redis": {"url": proxy.url, "timeout": 2.25 * GRACE_S}}
        processor = await fleet.start("processor", tables=far)
        await fleet.start("api")
        first = await fleet.post(**job_for(origin.url("/held"), sink.url(), group="a"))
        await origin.seen("/held")
        proxy.hold_reply_with = b"/late"
        late = await fleet.post(**job_for(origin.url("/late"), sink.url(), group="b"))
        with trio.fail_after(10):
            await proxy.held.wait()
        processor.send(signal.SIGTERM)
        await processor.event("job.released", job_id=first)  # at the stop's deadline
        proxy.let_go.set()
        assert await processor.wait() == 0
        assert processor.events("job.released", job_id=late)
        assert origin.asked("/late") == []
        with History(fleet, sink, url=server.url) as history:
            assert history.check(queued=2)["pending"] == 2
            downloads = [history.record(job_id).download for job_id in (first, late)]
            assert [download.get("attempts", "0") for download in downloads] == ["0", "0"]


@pytest.mark.row("F25")
@pytest.mark.parametrize("size", [1, 2_000_000], ids=["small", "spooled"])
async def test_f25_a_hung_disk_delays_no_stop_and_no_lease(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, size: int
) -> None:
    async with open_fleet(folder, server, {"backends.http": {"timeout": 60.0}}) as fleet:
        run = await start_on_bad_disk(fleet)
        told = await fleet.post(**job_for(origin.url("/bytes/1"), sink.url("/hang")))
        await sink.heard_of(told)
        (folder / "signs" / "hang").touch()
        stuck = await fleet.post(**job_for(origin.url(f"/bytes/{size}"), sink.url()))
        await appears(folder / "signs" / "hanging")
        began = time.monotonic()
        run.send(signal.SIGTERM)
        assert await run.wait() in HUNG, "what hangs in a thread can only be left behind"
        assert time.monotonic() - began < STOP_S
        assert run.noise == []
        assert run.events("callback.released", job_id=told)
        assert run.events("job.released", job_id=stuck)
        with History(fleet, sink, url=server.url) as history:
            assert history.leases() == 0
        await fleet.start("run")
        await sink.heard_of(stuck)
        assert (await fleet.job(stuck))["attempts"] == 1


@pytest.mark.row("F25")
async def test_f25_slow_deletions_do_not_hold_up_a_stop(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    async with open_fleet(folder, server, {"notifier": {"deletion_interval": 0}}) as fleet:
        run = await start_on_bad_disk(fleet, slow=True)
        job = job_for(origin.url("/bytes/1"), sink.url(), limit=20)
        await sink.heard_of(*await fleet.post_all([job] * 20))
        await appears(folder / "signs" / "deleting")
        await run.stop()
        with History(fleet, sink, url=server.url) as history:
            assert history.leases() == 0


@pytest.mark.row("F25")
async def test_f25_an_unread_log_delays_no_stop(folder: Path, server: Valkey) -> None:
    """The event loop is blocked in writing the log, so no task can handle the signal."""
    config = folder / "config.toml"
    own = {"": {"data_dir": str(folder / "data")}, "redis": {"url": server.url}}
    config.write_text(to_toml(merged(DEFAULTS, own)))
    unread, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    process = fork(["run", "-c", str(config), "--port", "0"], stderr=theirs)
    try:
        log = b""
        while b"api.listening" not in log or b"service.started" not in log:
            await trio.lowlevel.wait_readable(unread)
            log += os.read(unread, 4096)
        line = next(line for line in log.splitlines() if b"api.listening" in line)
        port = int(line.partition(b'"port": ')[2].partition(b",")[0].rstrip(b"}"))
        await blocked(f"http://127.0.0.1:{port}/download")
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(STOP_S):
            assert await process.wait() == -signal.SIGALRM
    finally:
        process.kill()
        await process.wait()
        os.close(unread)
        os.close(theirs)


BLOCKED = """
import os, signal, threading
import trio
from downloader.signals import stop_signals

async def main():
    _, unread = os.pipe()
    with stop_signals(signal.SIGTERM, within_s=0.5):
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
        while True:
            os.write(unread, b"x" * 65536)

trio.run(main)
"""


@pytest.mark.row("F25")
@pytest.mark.parametrize("wrapper", [[], ["unshare", "-pf", "--kill-child"]], ids=["plain", "process 1"])
def test_f25_the_kernel_keeps_the_time_in_a_container_too(wrapper: list[str]) -> None:
    """The service is process 1 there, which the kernel does not end by a signal without a handler."""
    if wrapper and os.geteuid() != 0:
        wrapper = [*wrapper, "-r"]
    done = subprocess.run([*wrapper, sys.executable, "-c", BLOCKED], check=False, timeout=STOP_S)
    assert done.returncode in (-signal.SIGALRM, 128 + signal.SIGALRM)


@pytest.mark.row("F25")
async def test_f25_a_start_that_hangs_ends_in_time_too(folder: Path, sink: Sink) -> None:
    """The store accepts the connection and never answers; its time-out is longer than the grace period."""
    asked = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        asked.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener, *_] = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        store = {"redis": {"url": f"redis://127.0.0.1:{port}", "timeout": 100.0}}
        patient = {"processor": {"lease": 300.0}, "notifier": {"lease": 300.0}}
        async with open_fleet(folder, None, merged(store, patient)) as fleet:
            notifier = await fleet.start("notifier", ready=False)
            with trio.fail_after(20):
                await asked.wait()
            notifier.send(signal.SIGTERM)
            assert await notifier.wait() in HUNG
        nursery.cancel_scope.cancel()
