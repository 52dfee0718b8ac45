"""`open_fetcher` gives a `Fetcher`, whose `attempt` turns a lease into an outcome."""

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
from downloader.fetch.parts import Parts, ResumableParts
from downloader.fetch.retry import cooldown, decide
from downloader.fetch.robots import OnCrawlDelay, Robots
from downloader.fetch.settings import FetchLimits, FetchSettings
from downloader.fetch.spool import open_kept_spool, open_spool
from downloader.model import Lease, Outcome, Verdict
from downloader.net import EgressPolicy, open_transport, tls_context

MAX_ERROR_CHARS = MAX_PATTERN_CHARS + 200
"""Longest `error` of an outcome. The sentence on an unexpected MIME type fits in."""


class Fetcher:
    """Carries out attempts; any number at once. Owns nothing: `open_fetcher` does."""

    def __init__(self, tools: Tools, rng: random.Random) -> None:
        self.tools = tools
        self.settings = tools.settings
        self.parts = tools.parts
        self._rng = rng

    async def attempt(
        self, lease: Lease, *, still_ours: Callable[[], bool], on_progress: OnProgress = lambda *_: None
    ) -> Outcome:
        """Download the job's file and store it; the outcome has the verdict for the job.

        All failures of a peer, the disk or a storage become outcomes. The received part of a file is kept in
        `parts`, if the job has another attempt and its origin may continue the file. A cancel leaves no
        spool file, connection or task behind; whether the file was stored by then is unknown.

        Args:
            lease: of a download.
            still_ours: whether the lease is valid. Called in any thread right before the file is published.
            on_progress: see `OnProgress`; must not block.
        """
        attempt = Attempt(self.tools, lease, still_ours=still_ours, on_progress=on_progress)
        try:
            metadata = await attempt.run()
        except FetchError as exc:
            error = exc
        except OSError as exc:
            error = own_fault(f"our own disk: {os.strerror(exc.errno) if exc.errno else exc}")
        else:
            return Outcome(verdict=Verdict.SUCCEEDED, response_code=attempt.status, file=metadata)
        outcome = self._failure(lease, error, attempt.status)
        await self.parts.expect(lease.id, outcome.retry_after_s)
        return outcome

    def _failure(self, lease: Lease, error: FetchError, status: int) -> Outcome:
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
            response_code=status,
            retry_after_s=delay,
            cooldown=pause,
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
) -> AsyncIterator[Fetcher]:
    """A fetcher with its connections and its folder under `spool_dir`; both end with it.

    No attempt may be under way at the end. Folders of crashed instances under `spool_dir` are swept.
    If `resumable`, the parts of unfinished files stay in `spool_dir`, for a later fetcher to continue; no two
    fetchers may use it at the same time.

    Raises:
        ConfigError: `ca_file` cannot be used, or `spool_dir` cannot be written.
    """
    limits = limits or FetchLimits()
    tls = _tls_context(settings.ca_file)
    async with (
        (open_kept_spool if resumable else open_spool)(spool_dir) as spool,
        open_transport(policy, tls=tls, limits=limits.net, max_idle=settings.concurrency) as transport,
    ):
        parts = (ResumableParts if resumable else Parts)(spool, disk_low=settings.disk_low)
        base = base_headers(settings.request_headers)
        robots = Robots(transport=transport, headers=base, on_crawl_delay=on_crawl_delay)
        tools = Tools(
            settings=settings,
            limits=limits,
            base=base,
            transport=transport,
            parts=parts,
            spool=spool,
            store=store,
            robots=robots if settings.robots else None,
        )
        try:
            yield Fetcher(tools, rng)
        finally:
            parts.close()


def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        return tls_context(ca_file)
    except OSError as exc:  # ssl.SSLError, for a file that holds no certificate, is one too
        raise ConfigError(f"processor.ca_file: {ca_file}: {exc.strerror or exc}") from exc
