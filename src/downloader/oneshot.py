"""The engine of `downloader fetch`: a list of URLs, fetched by one process without a store."""

from __future__ import annotations

import hashlib
import math
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from downloader.fetch import MAX_COOLDOWN_S, CompleteBody, FetchSettings, open_fetcher
from downloader.model import Cooldown, JobSpec, Kind, Lease, Outcome, Verdict
from downloader.net import EgressPolicy, Url, UrlError, host_of
from downloader.signals import stop_signals

READ_AHEAD = 10_000
"""URLs read from the list and not yet done. Reading far ahead keeps a slow host from delaying other hosts."""

READ_STEP = 64
"""URLs read per step of the event loop: about a millisecond of work."""

OWN_FAULTS = 3
"""A file fails after this many attempts that do not count (our own disk failed, or the origin asked for a
pause). The service would try until the operator has repaired the disk; here a person waits for the result."""

END_S = 10.0
"""How long closing may take after a signal."""

MAX_DOUBLINGS = 32
"""The length of successive cooldowns is doubled at most this often, so that a float does not overflow."""

FILE_MODE = 0o640
"""Permissions of complete files, independent of the umask, as the service's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult:
    """The result for a URL: the file is stored, skipped or failed."""

    index: int
    """The URL's place in the list, from 0."""
    url: str
    ok: bool
    error: str = ""
    error_code: str = ""
    response_code: int = 0
    size: int = 0
    sha256: str = ""
    mime_type: str = ""
    filename: str = ""
    """From the response's `Content-Disposition`, made safe."""
    path: str = ""
    """Path of the stored file: the temporary path from the engine, the final path from the command line."""
    skipped: bool = False
    """Not downloaded, because an earlier run has stored the file."""
    attempts: int = 0
    seconds: float = 0.0
    """Time from the begin of the first attempt to the result."""


OnProgress = Callable[[str, int | None, int | None], None]
"""`(URL, bytes received, bytes declared)`; called when an attempt begins and for each piece of the body.

`None` as the bytes received means that the attempt has ended.
"""


def fetch_files(
    urls: Iterable[str],
    *,
    settings: FetchSettings,
    mime_type: str = "",
    folder: Path,
    limit: int,
    bytes_per_s: float | None = None,
    on_result: Callable[[FetchResult], None],
    on_progress: OnProgress = lambda *_: None,
    skip: Callable[[str], bool] = lambda _: False,
) -> None:
    """Fetch files and return when all have succeeded or failed.

    At most `limit` files of one host and port are fetched at the same time, and `settings.concurrency` in
    total. The callbacks are called in this thread and must not block; an exception in a callback ends the
    run.

    Args:
        urls: URLs that `check_url` has accepted, without duplicates; read as the run proceeds.
        settings: for the fetcher. Private addresses are allowed, because the user of the command is trusted.
        mime_type: patterns as in a job's `mime_type`; empty for no check.
        folder: has the subfolders `spool` for downloads in progress and `files` for complete files.
        limit: per host, at least 1.
        bytes_per_s: of all downloads together; `None`: any number.
        on_result: called exactly once for each file that is not skipped; may move the file.
        on_progress: called while a file is fetched.
        skip: called once with each URL before the first attempt; returns whether to skip the URL.

    Raises:
        DownloaderError: the run could not be started.
        KeyboardInterrupt: after SIGINT. Everything is closed, and files with a result are complete.
        SystemExit: likewise after SIGTERM, with the status that shells expect.
    """
    interrupted: list[signal.Signals] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(_cancel_at_signal, nursery.cancel_scope, interrupted)
            files = folder / "files"
            files.mkdir(parents=True, exist_ok=True)
            async with open_fetcher(
                settings=settings,
                policy=EgressPolicy.parse(["0.0.0.0/0", "::/0"], setting="fetch"),
                store=partial(_store, files),
                spool_dir=folder / "spool",
                rng=random.Random(),  # noqa: S311 - jitter, not secrets
                resumable=True,
                bytes_per_s=bytes_per_s,
            ) as fetcher:
                run = Run(
                    fetcher=fetcher,
                    concurrency=settings.concurrency,
                    path_of=files.joinpath,
                    limit=limit,
                    mime_type=mime_type,
                    on_result=on_result,
                    on_progress=on_progress,
                )
                await run.fetch(urls, skip)
            nursery.cancel_scope.cancel()

    trio.run(main)
    if signal.SIGINT in interrupted:
        raise KeyboardInterrupt
    if interrupted:
        raise SystemExit(128 + interrupted[0])


def check_url(url: str) -> None:
    """Check that a URL can be fetched.

    Raises:
        ValueError: not a valid URL of a job, or unprintable characters; the text gives the reason.
    """
    if not url.isprintable():
        raise ValueError("the URL has characters that cannot be shown")
    try:
        Url.parse(url)
    except UrlError as error:
        raise ValueError(f"the URL {error.detail}") from None


async def _store(folder: Path, spec: JobSpec, body: CompleteBody, *_: object) -> None:
    """Store a complete file, which the caller moves to the final name; see `StoreFile`.

    A small file is written in the event loop, because a thread per file costs several times as much. No file
    is synced: after a power failure it may be missing or short, which the next run detects.

    Raises:
        OSError: the disk refuses it.
    """
    path = folder / spec.id
    if body.path is not None:
        body.path.replace(path)
    elif body.data is not None:
        path.write_bytes(body.data)
    path.chmod(FILE_MODE)


@dataclass(slots=True, eq=False)
class _File:
    """A file without a result yet."""

    index: int
    url: str
    attempts: int = 0
    """Finished attempts that count."""
    throttled: int = 0
    """Finished attempts that led to a cooldown of the host."""
    own_faults: int = 0
    """Finished attempts that do not count."""
    begun: float | None = None
    """Monotonic time of the first attempt."""


@dataclass(slots=True, eq=False)
class _Host:
    """The files of a host and port."""

    name: str
    waiting: deque[_File] = field(default_factory=deque)
    """Files to begin as soon as a worker is free."""
    workers: int = 0
    """Running tasks of the host. A task fetches one file after the other."""
    files: int = 0
    """Files without a result yet."""
    opens: float = 0.0
    """When the last cooldown ends, by Trio's clock."""
    cooled: float = 0.0
    """When the last cooldown began."""
    cooldowns: int = 0
    """Length of the current row of successive cooldowns; 0 before the first cooldown."""

    def cool_down(self, cooldown: Cooldown, *, began: float) -> None:
        """Begin no file of the host for a while, after an attempt that `began` then was throttled.

        If the origin gave no time, the time doubles with each successive cooldown. A cooldown is successive
        if the time since the end of the last one is shorter than the last one was. An attempt that began
        before the last cooldown belongs to that cooldown and does not count again.
        """
        now = trio.current_time()
        if not self.cooldowns or began > self.cooled:
            follows = now < 2 * self.opens - self.cooled
            self.cooldowns = self.cooldowns + 1 if self.cooldowns and follows else 1
            self.cooled = now
        seconds = cooldown.seconds
        if not cooldown.asked:
            seconds = min(math.ldexp(seconds, min(self.cooldowns, MAX_DOUBLINGS) - 1), MAX_COOLDOWN_S)
        self.opens = max(self.opens, now + seconds)


class Attempts(Protocol):
    """The part of a `Fetcher` that a run needs."""

    async def attempt(
        self, lease: Lease, *, still_ours: Callable[[], bool], on_progress: Callable[[int, int | None], None]
    ) -> Outcome:
        """See `Fetcher.attempt`."""


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """A run: reads the list and fetches each file. See `fetch_files`."""

    fetcher: Attempts
    concurrency: InitVar[int]
    path_of: Callable[[str], Path]
    """Returns the path of the stored file of a job."""
    limit: int
    mime_type: str
    on_result: Callable[[FetchResult], None]
    on_progress: OnProgress
    _slots: trio.CapacityLimiter = field(init=False)
    _ahead: trio.Semaphore = field(default_factory=partial(trio.Semaphore, READ_AHEAD))
    """Acquired once per file without a result."""
    _hosts: dict[str, _Host] = field(default_factory=dict)
    """Hosts with unfinished files, and hosts that have asked for a cooldown."""

    def __post_init__(self, concurrency: int) -> None:
        self._slots = trio.CapacityLimiter(concurrency)

    async def fetch(self, urls: Iterable[str], skip: Callable[[str], bool]) -> None:
        """Read the list, and fetch each URL that is not skipped; returns when all files have a result."""
        async with trio.open_nursery() as nursery:
            for index, url in enumerate(urls):
                if index % READ_STEP == 0:
                    await trio.lowlevel.checkpoint()
                if skip(url):
                    continue
                if self._ahead.value == 0:
                    await self._ahead.acquire()
                else:
                    self._ahead.acquire_nowait()
                name = host_of(url, with_port=True)
                host = self._hosts.setdefault(name, _Host(name))
                host.files += 1
                self._enqueue(nursery, host, _File(index, url))

    def _enqueue(self, nursery: trio.Nursery, host: _Host, file: _File) -> None:
        """Add a file to the queue of a host, and start a worker unless the limit is reached."""
        host.waiting.append(file)
        if host.workers < self.limit:
            host.workers += 1
            nursery.start_soon(self._work, nursery, host)

    async def _work(self, nursery: trio.Nursery, host: _Host) -> None:
        """Fetch waiting files of a host sequentially until the queue is empty."""
        while host.waiting:
            pause_s = host.opens - trio.current_time()
            if pause_s > 0:
                await trio.sleep(pause_s)
                continue
            file = host.waiting.popleft()
            async with self._slots:
                lease = self._lease(host, file)
                outcome = await self._attempt(host, file, lease)
            if _is_final(file, outcome):
                self._end(host, file, lease, outcome)
            elif outcome.verdict is Verdict.THROTTLED:
                host.waiting.appendleft(file)
            else:
                nursery.start_soon(self._enqueue_later, nursery, host, file, outcome.retry_after_s or 0.0)
        host.workers -= 1

    async def _enqueue_later(self, nursery: trio.Nursery, host: _Host, file: _File, seconds: float) -> None:
        await trio.sleep(seconds)
        self._enqueue(nursery, host, file)

    def _lease(self, host: _Host, file: _File) -> Lease:
        """A lease as in the service. The job's id is a hash of the URL, equal in each run."""
        spec = JobSpec(
            id=hashlib.sha256(file.url.encode()).hexdigest()[:32],
            aggr_id=host.name,
            aggr_limit=self.limit,
            url=file.url,
            mime_type=self.mime_type,
        )
        return Lease(
            kind=Kind.DOWNLOAD,
            spec=spec,
            queue=host.name,
            generation=1,
            attempts=file.attempts,
            crashes=0,
            throttled=file.throttled,
            limit=self.limit,
        )

    async def _attempt(self, host: _Host, file: _File, lease: Lease) -> Outcome:
        began = trio.current_time()
        if file.begun is None:
            file.begun = time.monotonic()
        progress = self.on_progress
        progress(file.url, 0, None)
        outcome = await self.fetcher.attempt(
            lease, still_ours=lambda: True, on_progress=partial(progress, file.url)
        )
        progress(file.url, None, None)
        if outcome.cooldown is not None:
            host.cool_down(outcome.cooldown, began=began)
            file.throttled += 1
        if outcome.verdict in (Verdict.RELEASE, Verdict.THROTTLED):
            file.own_faults += 1
        else:
            file.attempts += 1
        return outcome

    def _end(self, host: _Host, file: _File, lease: Lease, outcome: Outcome) -> None:
        """Report a file's result."""
        ok = outcome.verdict is Verdict.SUCCEEDED
        host.files -= 1
        if not host.files and not host.cooldowns:
            del self._hosts[host.name]
        self._ahead.release()
        self.on_result(
            FetchResult(
                index=file.index,
                url=file.url,
                ok=ok,
                error=outcome.error,
                error_code=str(outcome.error_code),
                response_code=outcome.response_code,
                size=outcome.file.size,
                sha256=outcome.file.sha256,
                mime_type=outcome.file.mime_type,
                filename=outcome.file.filename,
                path=str(self.path_of(lease.id)) if ok else "",
                attempts=lease.attempts + 1,
                seconds=time.monotonic() - (file.begun or 0.0),
            )
        )


def _is_final(file: _File, outcome: Outcome) -> bool:
    """Whether the outcome is the file's result, without a further attempt."""
    return outcome.verdict in (Verdict.SUCCEEDED, Verdict.FAILED) or file.own_faults >= OWN_FAULTS


async def _cancel_at_signal(
    scope: trio.CancelScope,
    interrupted: list[signal.Signals],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """End the run at the first signal; finished files and the parts of unfinished files stay."""
    with stop_signals(signal.SIGINT, signal.SIGTERM, within_s=END_S) as received:
        task_status.started()
        async for number in received:
            interrupted.append(signal.Signals(number))
            scope.cancel()
            return
