"""The fetcher: turns leases of downloads into outcomes."""

from __future__ import annotations

import os
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from downloader.content import MAX_PATTERN_CHARS
from downloader.errors import ConfigError
from downloader.fetch.attempt import Attempt, OnProgress, StoreFile, Tools
from downloader.fetch.errors import FetchError, Treatment, own_fault
from downloader.fetch.headers import base_headers
from downloader.fetch.memory import BodyMemory
from downloader.fetch.pace import Pace
from downloader.fetch.partial import PartialFiles, ResumableFiles
from downloader.fetch.retry import cooldown, decide
from downloader.fetch.robots import OnCrawlDelay, Robots
from downloader.fetch.settings import FetchLimits, FetchSettings
from downloader.fetch.spool import open_kept_spool, open_spool
from downloader.model import Lease, Outcome, Verdict
from downloader.net import EgressPolicy, open_transport, tls_context

MAX_ERROR_CHARS = MAX_PATTERN_CHARS + 200
"""Longest `error` of an outcome: room for the sentence about an unexpected MIME type with all patterns."""


class Fetcher:
    """Makes attempts, any number at once. `open_fetcher` owns all resources."""

    def __init__(self, tools: Tools, rng: random.Random) -> None:
        self.tools = tools
        self.settings = tools.settings
        self.partials = tools.partials
        self._rng = rng

    async def attempt(
        self, lease: Lease, *, still_ours: Callable[[], bool], on_progress: OnProgress = lambda *_: None
    ) -> Outcome:
        """Download and store the job's file; the outcome has the verdict for the job.

        All failures of a peer, the disk or a storage become outcomes. The received bytes of a file are kept
        in `partials` if the job has another attempt and the origin may continue the file. A cancel leaves no
        spool file, connection or task behind; the file may have been stored or not.

        Args:
            lease: of a download.
            still_ours: see `StoreFile`.
            on_progress: see `OnProgress`; must not block.
        """
        attempt = Attempt(self.tools, lease, still_ours=still_ours, on_progress=on_progress)
        try:
            file = await attempt.run()
        except FetchError as exc:
            error = exc
        except OSError as exc:
            error = own_fault(f"our own disk: {os.strerror(exc.errno) if exc.errno else exc}")
        else:
            return Outcome(
                verdict=Verdict.SUCCEEDED,
                response_code=attempt.status,
                file=file,
                response=attempt.metadata,
                phases=attempt.phases if attempt.phases.are_long else None,
            )
        outcome = self._failure(lease, error, attempt)
        await self.partials.expect(lease.id, outcome.retry_after_s)
        return outcome

    def _failure(self, lease: Lease, error: FetchError, attempt: Attempt) -> Outcome:
        own = lease.spec.max_retries
        cools = error.treatment is Treatment.COOL_DOWN
        pause = cooldown(error.retry_after_s, self._rng, of_host=error.from_host) if cools else None
        verdict, delay = decide(
            error.treatment,
            attempts=lease.attempts,
            throttled=lease.throttled,
            max_retries=self.settings.max_retries if own is None else own,
            backoff_s=self.settings.retry_backoff,
            retry_after_s=pause.seconds if pause else error.retry_after_s,
            rng=self._rng,
        )
        return Outcome(
            verdict=verdict,
            error=str(error)[:MAX_ERROR_CHARS],
            error_code=error.code,
            response_code=attempt.status,
            retry_after_s=delay,
            cooldown=pause,
            phases=attempt.phases,
        )


@asynccontextmanager
async def open_fetcher(
    *,
    settings: FetchSettings,
    policy: EgressPolicy,
    store: StoreFile,
    spool_dir: Path,
    on_crawl_delay: OnCrawlDelay | None = None,
    rng: random.Random,
    limits: FetchLimits | None = None,
    resumable: bool = False,
    bytes_per_s: float | None = None,
) -> AsyncIterator[Fetcher]:
    """Open a fetcher, with connections and a spool folder that are closed at the end.

    No attempt may be under way at the end. Folders of crashed instances under `spool_dir` are swept. If
    `resumable`, partial files stay in `spool_dir`, for a later fetcher to continue; two fetchers must not use
    one folder at the same time. `bytes_per_s` limits what all downloads receive together.

    Raises:
        ConfigError: `ca_file` cannot be used, or `spool_dir` cannot be written.
    """
    limits = limits or FetchLimits()
    tls = _tls_context(settings.ca_file)
    async with (
        (open_kept_spool if resumable else open_spool)(spool_dir) as spool,
        open_transport(policy, tls=tls, limits=limits.net, max_idle=settings.concurrency) as transport,
    ):
        partials = (ResumableFiles if resumable else PartialFiles)(spool, disk_low=settings.disk_low)
        base = base_headers(settings.request_headers)
        robots = Robots(transport=transport, headers=base, on_crawl_delay=on_crawl_delay)
        tools = Tools(
            settings=settings,
            limits=limits,
            base=base,
            transport=transport,
            partials=partials,
            spool=spool,
            memory=BodyMemory(limits.memory_bytes),
            store=store,
            robots=robots if settings.robots else None,
            pace=None if bytes_per_s is None else Pace(bytes_per_s),
        )
        try:
            yield Fetcher(tools, rng)
        finally:
            partials.close()


def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        return tls_context(ca_file)
    except OSError as exc:  # includes ssl.SSLError, for a file without a certificate
        raise ConfigError(f"processor.ca_file: {ca_file}: {exc.strerror or exc}") from exc
