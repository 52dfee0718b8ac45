"""The role `api`. Only processes that have it import this module: Quart takes a third of all import time."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from functools import partial

import trio

from downloader.api import Api, ApiDeps, serve
from downloader.observe import Event, get_logger
from downloader.server import tls_context
from downloader.service.instance import RESERVE, Instance, allowed_buckets, own_limits
from downloader.store import JobStore, limit_of_shard
from downloader.tasks import background

log = get_logger()


async def serve_api(
    instance: Instance,
    sockets: Sequence[socket.socket],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until the stop begins and requests in flight are answered.

    `api.open` is logged if the API has no tokens and listens beyond loopback.

    Raises:
        ConfigError: the certificate or its key cannot be used.
    """
    settings, files, api = instance.settings, instance.files, instance.settings.api
    host, port = sockets[0].getsockname()[:2]
    loopback = ipaddress.ip_address(host).is_loopback
    instance.troubles["store_memory"] = partial(_memory_trouble, instance.store)
    deps = ApiDeps(
        store=instance.store,
        settings=api,
        backends=frozenset(settings.backends),
        buckets=allowed_buckets(settings.processor),
        egress=settings.egress.policy("callbacks"),
        callback_limit=limit_of_shard(settings.notifier.per_destination, settings.redis),
        own_limits=own_limits(settings),
        keep_s=settings.notifier.failed_retention,
        loopback=loopback,
        ready=lambda: dict(instance.running),
        troubles=instance.present_troubles,
        healthy=lambda: instance.bulkhead.health.healthy() if instance.bulkhead is not None else {},
        download_url=files.url,
        files=files.storage.local,
        counters=instance.counters["api"],
        traces=instance.traces,
    )
    tls = tls_context(api.certfile, api.keyfile) if api.certfile else None
    run = partial(
        serve,
        Api(deps),
        sockets=sockets,
        stop=instance.stop.wait,
        grace_s=instance.grace_s * (1 - RESERVE),
        tls=tls,
    )
    async with background(instance.store.watch_memory), trio.open_nursery() as nursery:
        await nursery.start(run)
        log.info(Event.API_LISTENING, host=host, port=port, page=f"{settings.api.local_url}/")
        if not api.tokens and not loopback:
            log.warning(Event.API_OPEN, host=host, port=port)
        task_status.started()


def _memory_trouble(store: JobStore) -> str:
    return "its memory has no room for new jobs, which are answered 503" if store.memory_is_full() else ""
