"""Downloading one file: `open_fetcher` gives a `Fetcher`, whose `attempt` turns a lease into an outcome."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from downloader.config import ProcessorSettings
from downloader.errors import ConfigError
from downloader.fetch.attempt import STORE_S, BucketOpener, Fetcher
from downloader.fetch.open import Dialer
from downloader.fetch.request import base_headers
from downloader.fetch.spool import open_spool
from downloader.fetch.transport import IDLE_S, Transport
from downloader.net import EgressPolicy, GuardedBackend
from downloader.storage import Storage

_CLOSE_S = 2.0
"""For closing idle connections at the end; a socket's close waits for nobody, TLS may."""


@asynccontextmanager
async def open_fetcher(
    *,
    settings: ProcessorSettings,
    policy: EgressPolicy,
    storage: Storage,
    spool_dir: Path,
    own_bucket: BucketOpener | None = None,
    rng: random.Random,
    idle_s: float = IDLE_S,
    store_s: float = STORE_S,
) -> AsyncIterator[Fetcher]:
    """A fetcher with its connections and its folder under `spool_dir`; both end with it.

    No attempt may be under way at the end. Unused connections are kept for `idle_s` seconds; to store a file
    takes at most `store_s` seconds, and a few more if it is large. It has a nursery, so what is raised inside
    comes out in an exception group. Folders of crashed instances under `spool_dir` are swept.

    Raises:
        ConfigError: `ca_file` cannot be used, or `spool_dir` cannot be written.
    """
    dialer = Dialer(
        backend=GuardedBackend(policy, resolve_timeout_s=settings.connect_timeout),
        tls=_tls_context(settings.ca_file),
        connect_s=settings.connect_timeout,
        tls_s=settings.tls_timeout,
    )
    transport = Transport(
        dialer, first_byte_s=settings.first_byte_timeout, max_idle=settings.concurrency, idle_s=idle_s
    )
    async with open_spool(spool_dir) as spool, trio.open_nursery() as nursery:
        nursery.start_soon(transport.sweep)
        try:
            yield Fetcher(
                settings=settings,
                base=base_headers(settings.request_headers),
                transport=transport,
                spool=spool,
                storage=storage,
                own_bucket=own_bucket,
                rng=rng,
                store_s=store_s,
            )
        finally:
            nursery.cancel_scope.cancel()
            with trio.move_on_after(_CLOSE_S, shield=True):
                await transport.close_idle()


def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as exc:  # ssl.SSLError, for a file that holds no certificate, is one too
        raise ConfigError(f"processor.ca_file: {ca_file}: {exc.strerror or exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
