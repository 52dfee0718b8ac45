"""The role `api`. Only processes that have it import this module: Quart takes a third of all import time."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import trio

from downloader.api import Api, ApiDeps, serve, text_globs, tls_context
from downloader.config import Settings
from downloader.observe import Counters, Event, Traces, get_logger
from downloader.service.files import Files, api_url
from downloader.store import JobStore

log = get_logger()


async def serve_api(
    sockets: Sequence[socket.socket],
    *,
    settings: Settings,
    store: JobStore,
    files: Files,
    ready: Callable[[], Mapping[str, bool]],
    healthy: Callable[[], Mapping[str, bool]],
    stop: Callable[[], Awaitable[object]],
    grace_s: float,
    counters: Counters,
    traces: Traces | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop()` returns and requests in flight are answered. Logs `api.open` if all may use it.

    The keywords are those of `ApiDeps` and `downloader.api.serve`.

    Raises:
        ConfigError: the certificate or its key cannot be used.
    """
    host, port = sockets[0].getsockname()[:2]
    loopback = ipaddress.ip_address(host).is_loopback
    deps = ApiDeps(
        store=store,
        settings=settings.api,
        backends=frozenset(settings.backends),
        buckets=text_globs(settings.processor.s3.buckets),
        egress=settings.egress.policy("callbacks"),
        callback_limit=settings.notifier.per_destination,
        keep_s=settings.notifier.failed_retention,
        loopback=loopback,
        ready=ready,
        healthy=healthy,
        download_url=files.url,
        files=files.storage.local,
        counters=counters,
        traces=traces,
    )
    api = settings.api
    tls = tls_context(api.certfile, api.keyfile) if api.certfile else None
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, Api(deps), sockets=sockets, stop=stop, grace_s=grace_s, tls=tls))
        log.info(Event.API_LISTENING, host=host, port=port, page=f"{api_url(settings)}/")
        if not settings.api.tokens and not loopback:
            log.warning(Event.API_OPEN, host=host, port=port)
        task_status.started()
