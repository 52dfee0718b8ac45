"""Downloading one file: `open_fetcher` gives a `Fetcher`, whose `attempt` turns a lease into an outcome."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from downloader.config import ProcessorSettings
from downloader.errors import ConfigError
from downloader.fetch.attempt import BucketOpener, Destination, Fetcher, FetchLimits
from downloader.fetch.headers import base_headers
from downloader.fetch.lasting import LastingParts
from downloader.fetch.parts import Parts
from downloader.fetch.robots import OnCrawlDelay, Robots
from downloader.fetch.spool import open_lasting_spool, open_spool
from downloader.net import EgressPolicy, open_transport, tls_context


@asynccontextmanager
async def open_fetcher(
    *,
    settings: ProcessorSettings,
    policy: EgressPolicy,
    storage: Destination,
    spool_dir: Path,
    own_bucket: BucketOpener | None = None,
    on_crawl_delay: OnCrawlDelay | None = None,
    rng: random.Random,
    limits: FetchLimits | None = None,
    lasting: bool = False,
) -> AsyncIterator[Fetcher]:
    """A fetcher with its connections and its folder under `spool_dir`; both end with it.

    No attempt may be under way at the end. Folders of crashed instances under `spool_dir` are swept.
    With `lasting` the parts of unfinished files stay in `spool_dir`, for a later fetcher to continue; no two
    fetchers may use it at the same time.

    Raises:
        ConfigError: `ca_file` cannot be used, or `spool_dir` cannot be written.
    """
    limits = limits or FetchLimits()
    tls = _tls_context(settings.ca_file)
    async with (
        (open_lasting_spool if lasting else open_spool)(spool_dir) as spool,
        open_transport(policy, tls=tls, limits=limits.net, max_idle=settings.concurrency) as transport,
    ):
        parts = (LastingParts if lasting else Parts)(spool, disk_low=settings.disk_low)
        base = base_headers(settings.request_headers)
        robots = Robots(transport=transport, headers=base, on_crawl_delay=on_crawl_delay)
        yield Fetcher(
            settings=settings,
            base=base,
            transport=transport,
            parts=parts,
            spool=spool,
            storage=storage,
            own_bucket=own_bucket,
            robots=robots if settings.robots else None,
            rng=rng,
            limits=limits,
        )


def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        return tls_context(ca_file)
    except OSError as exc:  # ssl.SSLError, for a file that holds no certificate, is one too
        raise ConfigError(f"processor.ca_file: {ca_file}: {exc.strerror or exc}") from exc
