"""The engine of `downloader fetch`: a list of URLs, fetched by one process without a store."""

from __future__ import annotations

import hashlib
import math
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from downloader.fetch import MAX_COOLDOWN_S, CompleteBody, FetchSettings, open_fetcher
from downloader.model import Cooldown, JobSpec, Kind, Lease, Outcome, Verdict
from downloader.net import EgressPolicy, Url, UrlError, host_of
from downloader.signals import stop_signals

READ_AHEAD = 10_000
"""Files that are read from the list before their turn, so that a slow host does not delay the others."""

READ_STEP = 64
"""Files that are read in one step of the event loop: about a millisecond, and enough for the workers."""

OWN_FAULTS = 3
"""A file fails after this many attempts that do not count, because our own disk failed or the origin asked
for a pause. A service tries until the operator has repaired the disk; here a person waits for the result."""

END_S = 10.0
"""How long closing may take after a signal."""

MAX_DOUBLINGS = 32
"""Cooldowns that follow one another and double the time; a float then still has room."""

FILE_MODE = 0o640
"""Permissions of complete files, independent of the umask, as the service's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult:
    """How a file ended."""

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
    """The stored file: from the engine its path in `files_dir`, from the command line its final path."""
    skipped: bool = False
    """Not downloaded, because the file of an earlier run is there."""
    attempts: int = 0
    seconds: float = 0.0
    """From its first attempt to its end."""


OnProgress = Callable[[str, int | None, int | None], None]
"""`(URL, bytes received, bytes declared)`; called when an attempt begins and for each piece of the body.

With `None` for the bytes received, the attempt has ended, and the file waits for another one.
"""


def fetch_files(
    urls: Iterable[str],
    *,
    settings: FetchSettings,
    mime_type: str = "",
    folder: Path,
    limit: int,
    on_result: Callable[[FetchResult], None],
    on_progress: OnProgress = lambda *_: None,
    skip: Callable[[str], bool] = lambda _: False,
    resumable: bool = False,
) -> None:
    """Fetch files and return when each has succeeded or failed.

    Files of one host and port are fetched at most `limit` at once, and of all hosts `settings.concurrency`.
    All callbacks are called in this thread and must not block; an exception of them ends the run.

    Args:
        urls: what to fetch, read as the run proceeds; none may come twice, and `check_url` has passed them.
        settings: for the fetcher. Private addresses are allowed, because the user of the command is trusted.
        mime_type: patterns as in a job's `mime_type`; empty checks nothing.
        folder: for the run's files: `spool` for downloads in progress, `files` for complete files.
        limit: per host, at least 1.
        on_result: called exactly once for each file that is not skipped. It may move the file.
        on_progress: called for each file that has not ended.
        skip: called once with each URL, before it is fetched; whether it is not to be fetched.
        resumable: unfinished files stay in the spool folder, and a later run there continues them. No other
            run may use the folder at the same time.

    Raises:
        DownloaderError: it could not be started.
        KeyboardInterrupt: after SIGINT. All is closed by then, and files with a result are complete.
        SystemExit: likewise after SIGTERM, with the status that shells expect.
    """
    interrupted: list[signal.Signals] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(_cancel_at_signal, nursery.cancel_scope, interrupted)
            storage = _Files(folder / "files")
            async with (
                open_fetcher(
                    settings=settings,
                    policy=EgressPolicy.parse(["0.0.0.0/0", "::/0"], setting="fetch"),
                    store=storage.put,
                    spool_dir=folder / "spool",
                    rng=random.Random(),  # noqa: S311 - jitter, not secrets
                    resumable=resumable,
                ) as fetcher,
                trio.open_nursery() as work,
            ):
                run = Run(
                    fetcher=fetcher,
                    concurrency=settings.concurrency,
                    path_of=storage.path,
                    nursery=work,
                    limit=limit,
                    mime_type=mime_type,
                    on_result=on_result,
                    on_progress=on_progress,
                )
                await run.read(urls, skip)
            nursery.cancel_scope.cancel()

    trio.run(main)
    if signal.SIGINT in interrupted:
        raise KeyboardInterrupt
    if interrupted:
        raise SystemExit(128 + interrupted[0])


def check_url(url: str) -> str:
    """The URL, if it is one that can be fetched.

    Raises:
        ValueError: it is not a valid URL of a job, or has unprintable characters; the text says which.
    """
    if not url.isprintable():
        raise ValueError("the URL has characters that cannot be shown")
    try:
        Url.parse(url)
    except UrlError as error:
        raise ValueError(f"the URL {error.detail}") from None
    return url


class _Files:
    """Complete files in a folder, until the caller has given them their names.

    Small files are written in the event loop, as a thread for each costs several times as much. They are not
    synced: after a power failure they may be missing or short, which the next run sees.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def path(self, job_id: str) -> Path:
        """Where the file of this job is."""
        return self._folder / job_id

    async def put(self, spec: JobSpec, body: CompleteBody, *_: object) -> None:
        """Store a file; see `StoreFile`.

        Raises:
            OSError: the disk refuses it.
        """
        path = self.path(spec.id)
        if body.path is not None:
            body.path.replace(path)
        elif body.data is not None:
            path.write_bytes(body.data)
        path.chmod(FILE_MODE)


@dataclass(slots=True, eq=False)
class _File:
    """A file that has not ended."""

    index: int
    url: str
    attempts: int = 0
    """Attempts that have ended, but for those that do not count."""
    throttled: int = 0
    """Attempts that have ended with a cooldown of the host."""
    own_faults: int = 0
    """Attempts that have ended and do not count."""
    begun: float | None = None
    """Monotonic time of its first attempt."""


@dataclass(slots=True, eq=False)
class _Host:
    """The files of one host and port."""

    name: str
    waiting: deque[_File] = field(default_factory=deque)
    """Files to begin as soon as a worker is free."""
    workers: int = 0
    """Tasks that fetch these files, each one after the other."""
    files: int = 0
    """Files that have not ended."""
    opens: float = 0.0
    """When the last cooldown ends, by Trio's clock."""
    cooled: float = 0.0
    """When the last cooldown began."""
    cooldowns: int = 0
    """How many cooldowns have followed one another; 0 if there was none."""

    def cool_down(self, cooldown: Cooldown, *, began: float) -> None:
        """Begin no file for a while, because the response to an attempt that `began` then asks for it.

        If the response does not say how long, the time doubles with each cooldown that follows another: one
        that begins less than the last one's length after the end of the last. The response to an attempt that
        began before the last cooldown is part of that one.
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


class Run:
    """One run: reads the list, and has each file fetched; ends with the tasks in `nursery`.

    `path_of` gives the path of the stored file of a job.
    """

    def __init__(
        self,
        *,
        fetcher: Attempts,
        concurrency: int,
        path_of: Callable[[str], Path],
        nursery: trio.Nursery,
        limit: int,
        mime_type: str,
        on_result: Callable[[FetchResult], None],
        on_progress: OnProgress,
    ) -> None:
        self._fetcher = fetcher
        self._path_of = path_of
        self._nursery = nursery
        self._limit = limit
        self._mime_type = mime_type
        self._on_result = on_result
        self._on_progress = on_progress
        self._slots = trio.CapacityLimiter(concurrency)
        self._ahead = trio.Semaphore(READ_AHEAD)
        """A place for each file that has not ended."""
        self._hosts: dict[str, _Host] = {}
        """Hosts with files that have not ended, and hosts that have asked for a cooldown."""

    async def read(self, urls: Iterable[str], skip: Callable[[str], bool]) -> None:
        """Have each file of the list fetched, unless it is skipped."""
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
            self._enqueue(host, _File(index, url))

    def _enqueue(self, host: _Host, file: _File) -> None:
        """Have a file fetched as soon as its host has a free worker."""
        host.waiting.append(file)
        if host.workers < self._limit:
            host.workers += 1
            self._nursery.start_soon(self._work, host)

    async def _work(self, host: _Host) -> None:
        """Fetch waiting files of a host, one after the other; ends when there are none."""
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
                self._nursery.start_soon(self._enqueue_later, host, file, outcome.retry_after_s or 0.0)
        host.workers -= 1

    async def _enqueue_later(self, host: _Host, file: _File, seconds: float) -> None:
        await trio.sleep(seconds)
        self._enqueue(host, file)

    def _lease(self, host: _Host, file: _File) -> Lease:
        """A lease as in the service. The job's id is made of the URL, so it is the same in each run."""
        spec = JobSpec(
            id=hashlib.sha256(file.url.encode()).hexdigest()[:32],
            aggr_id=host.name,
            aggr_limit=self._limit,
            url=file.url,
            mime_type=self._mime_type,
        )
        return Lease(
            kind=Kind.DOWNLOAD,
            spec=spec,
            group=host.name,
            generation=1,
            attempts=file.attempts,
            crashes=0,
            throttled=file.throttled,
            limit=self._limit,
        )

    async def _attempt(self, host: _Host, file: _File, lease: Lease) -> Outcome:
        began = trio.current_time()
        if file.begun is None:
            file.begun = time.monotonic()
        progress = self._on_progress
        progress(file.url, 0, None)
        outcome = await self._fetcher.attempt(
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
        self._on_result(
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
                path=str(self._path_of(lease.id)) if ok else "",
                attempts=lease.attempts + 1,
                seconds=time.monotonic() - (file.begun or 0.0),
            )
        )


def _is_final(file: _File, outcome: Outcome) -> bool:
    """Whether there is no further attempt."""
    return outcome.verdict in (Verdict.SUCCEEDED, Verdict.FAILED) or file.own_faults >= OWN_FAULTS


async def _cancel_at_signal(
    scope: trio.CancelScope,
    interrupted: list[signal.Signals],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """End the run at the first signal; finished files stay, unfinished ones too if they are `resumable`."""
    with stop_signals(signal.SIGINT, signal.SIGTERM, within_s=END_S) as received:
        task_status.started()
        async for number in received:
            interrupted.append(signal.Signals(number))
            scope.cancel()
            return
