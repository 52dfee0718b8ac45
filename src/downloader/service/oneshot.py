"""The engine of `downloader fetch`: the service's own store, scheduler and fetcher, for one list of URLs."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

import trio

from downloader.config import Settings
from downloader.fetch import Fetcher, LastingParts, open_fetcher
from downloader.model import JobSpec, Kind, Lease, Outcome, Verdict, now_ms
from downloader.net import Url, UrlError
from downloader.observe import PROCESSOR_COUNTERS, Counters
from downloader.scheduler import End, Stop, Wake, run_workload
from downloader.service.resources import running_redis
from downloader.service.work import DownloadWork
from downloader.signals import stop_signals
from downloader.storage import Storage, open_storage
from downloader.store import JobStore, Submission, asyncio_loop, open_store

SUBMIT_BATCH = 500
"""Jobs per call to the store, so that the first downloads begin before all of a long list is submitted."""

OWN_FAULTS = 3
"""A file fails after this many attempts that do not count, because our own disk failed or the origin asked
for a pause. A service tries until the operator has repaired the disk; here a person waits for the result."""

END_S = 10.0
"""How long closing may take after a signal: longer than the embedded store's stop."""


class FetchState(StrEnum):
    """Where a file is."""

    WAITING = "waiting"
    """For a free slot of its host, or for its next attempt."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """One file to fetch."""

    url: str
    mime_type: str = ""
    """Patterns as in a job's `mime_type`; empty checks nothing."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """For this file, besides those of the settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchProgress:
    """How far a file is."""

    index: int
    """The request's place, from 0."""
    url: str
    state: FetchState
    received_bytes: int = 0
    total_bytes: int | None = None
    """`None` if the origin has not declared it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult:
    """How a file ended."""

    index: int
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
    """The stored file: from the engine its path in the storage, from the command line its final path."""
    validator: tuple[str, str] | None = None
    """The response's `etag` or `last-modified`, if it is a strong validator: field and value."""
    skipped: bool = False
    """Not downloaded, because the file of an earlier run is there."""
    attempts: int = 0
    seconds: float = 0.0
    """From its first attempt to its end."""


OnEvent = Callable[[FetchProgress | FetchResult], None]
"""Called in the thread of `fetch_files`, exactly once with each file's `FetchResult`; must not block."""


@dataclass(slots=True, kw_only=True)
class _Run:
    """The state of one run."""

    requests: Sequence[FetchRequest]
    settings: Settings
    limit: int
    on_event: OnEvent
    lasting: bool = False
    parts: LastingParts | None = None
    """Where the parts of unfinished files stay, if they do."""
    indices: dict[str, int] = field(default_factory=dict)
    """Places of requests, by job id."""
    begun: dict[str, float] = field(default_factory=dict)
    """Monotonic time of each job's first attempt."""
    own_faults: dict[str, int] = field(default_factory=dict)
    results: list[FetchResult] = field(default_factory=list)
    stop: Stop = field(default_factory=Stop)
    """Begins with the last result."""
    wake: Wake = field(default_factory=Wake)
    signal: signal.Signals | None = None
    """What ended it early."""

    def progress(self, lease: Lease, state: FetchState, received: int = 0, total: int | None = None) -> None:
        """Report a file that has not ended."""
        index = self.indices[lease.id]
        self.on_event(
            FetchProgress(
                index=index, url=lease.spec.url, state=state, received_bytes=received, total_bytes=total
            )
        )

    def end(self, lease: Lease, outcome: Outcome) -> None:
        """Keep and report a file's result. After the last one the run stops."""
        begun = self.begun.get(lease.id, time.monotonic())
        root = Path(str(self.settings.storage_section.get("rootdir", "")))
        ok = outcome.verdict is Verdict.SUCCEEDED
        if self.parts is not None:
            self.parts.forget(lease.spec)
        result = FetchResult(
            index=self.indices[lease.id],
            url=lease.spec.url,
            ok=ok,
            error=outcome.error,
            error_code=str(outcome.error_code),
            response_code=outcome.response_code,
            size=outcome.file.size,
            sha256=outcome.file.sha256,
            mime_type=outcome.file.mime_type,
            filename=outcome.file.filename,
            path=str(root / lease.spec.storage_key) if ok else "",
            validator=self.parts.validators.get(lease.id) if self.parts else None,
            attempts=lease.attempts + 1,
            seconds=time.monotonic() - begun,
        )
        self.results.append(result)
        self.on_event(result)
        if len(self.results) == len(self.requests):
            self.stop.begin(0.0)


def fetch_files(
    requests: Iterable[FetchRequest],
    *,
    settings: Settings,
    limit: int,
    on_event: OnEvent,
    lasting: bool = False,
) -> list[FetchResult]:
    """Fetch files and return when each has succeeded or failed, in the order of the requests.

    Files of one host and port are fetched at most `limit` at once. They are left in the filesystem storage
    of the settings, whose spool, storage and data folder should be the run's own.

    Args:
        requests: what to fetch.
        settings: `redis` must be embedded; `backends` and `api` are not used.
        limit: per host, at least 1.
        on_event: called with each progress and result; its exceptions end the run.
        lasting: unfinished files stay in the spool folder, and a later run there continues them. No URL may
            come twice, and no other run may use the folder at the same time.

    Raises:
        DownloaderError: it could not be started.
        KeyboardInterrupt: after SIGINT. All is closed by then, and files with a result are complete.
        SystemExit: likewise after SIGTERM, with the status that shells expect.
    """
    run = _Run(requests=list(requests), settings=settings, limit=limit, on_event=on_event, lasting=lasting)
    if run.requests:
        trio.run(_main, run)
    if run.signal is signal.SIGINT:
        raise KeyboardInterrupt
    if run.signal is not None:
        raise SystemExit(128 + run.signal)
    return sorted(run.results, key=lambda result: result.index)


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


def group_of(url: str) -> str:
    """The aggregation of a URL in a one-shot run: its host, with the port unless it is the scheme's own."""
    return Url.parse(url).origin.authority.decode()


async def _main(run: _Run) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_signals, run, nursery.cancel_scope)
        settings = run.settings
        async with asyncio_loop(), AsyncExitStack() as stack:
            redis = await stack.enter_async_context(running_redis(settings))
            store = await stack.enter_async_context(open_store(redis))
            storage = await stack.enter_async_context(
                open_storage(settings.storage_name, settings.storage_section)
            )
            fetcher = await stack.enter_async_context(
                open_fetcher(
                    settings=settings.processor,
                    policy=settings.egress.policy("downloads"),
                    storage=storage,
                    spool_dir=settings.spool_dir,
                    rng=random.Random(),  # noqa: S311 - jitter, not secrets
                    lasting=run.lasting,
                )
            )
            if isinstance(fetcher.parts, LastingParts):
                run.parts = fetcher.parts
            await _work(run, store, fetcher, storage)
        nursery.cancel_scope.cancel()


async def _work(run: _Run, store: JobStore, fetcher: Fetcher, storage: Storage) -> None:
    owner = f"fetch-{os.getpid()}-{secrets.token_hex(4)}"
    async with trio.open_nursery() as nursery:
        await nursery.start(store.listen, {Kind.DOWNLOAD: run.wake.set})
        async with trio.open_nursery() as work:
            workload = _FetchWork(
                store=store,
                fetcher=fetcher,
                settings=run.settings,
                owner=owner,
                counters=Counters(PROCESSOR_COUNTERS),
                disk_has_room=lambda: True,
                delete=lambda spec: storage.delete(spec.storage_key),
                run=run,
            )
            await work.start(
                partial(run_workload, store, workload, owner=owner, wake=run.wake, stop=run.stop)
            )
            await _submit(run, store)
        nursery.cancel_scope.cancel()


async def _submit(run: _Run, store: JobStore) -> None:
    for start in range(0, len(run.requests), SUBMIT_BATCH):
        submissions: list[Submission] = []
        for index, request in enumerate(run.requests[start : start + SUBMIT_BATCH], start):
            group = group_of(request.url)
            spec = JobSpec(
                id=store.new_id(group),
                aggr_id=group,
                aggr_limit=run.limit,
                url=request.url,
                mime_type=request.mime_type,
                request_headers=request.headers,
                created_ms=now_ms(),
            )
            run.indices[spec.id] = index
            if run.parts is not None:
                run.parts.expect_job(spec)
            submissions.append(Submission(spec=spec))
        await store.submit(submissions)


@dataclass(kw_only=True, eq=False)
class _FetchWork(DownloadWork):
    """Downloads of one run; reports the progress of each."""

    run: _Run

    async def work(self, lease: Lease, still_ours: Callable[[], bool]) -> End:
        """Attempt the download, with progress."""
        run = self.run
        run.begun.setdefault(lease.id, time.monotonic())
        run.progress(lease, FetchState.RUNNING)

        def on_progress(received: int, total: int | None) -> None:
            run.progress(lease, FetchState.RUNNING, received, total)

        outcome = await self.fetcher.attempt(lease, still_ours=still_ours, on_progress=on_progress)
        return _bounded(run, lease, outcome)

    def ended(self, lease: Lease, end: End, seconds: float) -> None:  # noqa: ARG002  # `run` counts them all
        """Report a file's end, or that it waits for another attempt."""
        assert isinstance(end, Outcome)
        if end.verdict in (Verdict.SUCCEEDED, Verdict.FAILED):
            self.run.end(lease, end)
        else:
            self.run.progress(lease, FetchState.WAITING)


def _bounded(run: _Run, lease: Lease, outcome: Outcome) -> Outcome:
    """The outcome, or a failure if `OWN_FAULTS` attempts at this file have not counted."""
    if outcome.verdict not in (Verdict.RELEASE, Verdict.THROTTLED):
        return outcome
    faults = run.own_faults[lease.id] = run.own_faults.get(lease.id, 0) + 1
    return outcome if faults < OWN_FAULTS else replace(outcome, verdict=Verdict.FAILED)


async def _signals(
    run: _Run,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """End the run at the first signal; finished files stay, unfinished ones too if they are `lasting`."""
    with stop_signals(signal.SIGINT, signal.SIGTERM, within_s=END_S) as received:
        task_status.started()
        async for number in received:
            run.signal = signal.Signals(number)
            scope.cancel()
            return
