"""The `kafka` notifier at brokers that a test can break."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import trio

from downloader.notify import Delivered, Notifier, Payload, Result, RetryLater
from downloader_plugins.kafka import open_kafka
from servers.kafka import Tansu
from servers.kafka_proxy import KafkaProxy, open_kafka_proxy
from servers.plugins import opened_notifier

_names = count()


def payload(text: str = "", *, job_id: str = "6QEywYsd0jrKAg") -> Payload:
    """A payload with this text."""
    return Payload(job_id=job_id, aggr_id="example.org", body=json.dumps({"extra": text}).encode())


def topic(name: str = "jobs") -> str:
    """One that nobody has used."""
    return f"{name}-{next(_names)}"


@asynccontextmanager
async def proxied(
    section: dict[str, Any], **options: Any
) -> AsyncIterator[tuple[KafkaProxy, Tansu, Notifier]]:
    """A notifier at a broker behind a proxy; `options` are the proxy's."""
    broker = Tansu()
    async with open_kafka_proxy(broker.port, **options) as proxy:
        broker.advertised = proxy.port
        with broker:
            async with opened_notifier(
                open_kafka, {"bootstrap_servers": proxy.servers, **section}
            ) as notifier:
                yield proxy, broker, notifier


async def eventually_delivered(notifier: Notifier, name: str = "jobs", *, seconds: float = 15.0) -> None:
    """Deliver as the service does: again while the result is `RetryLater`."""
    result: Result | None = None
    with trio.move_on_after(seconds):
        while (result := await notifier.deliver(name, payload("at last"))) != Delivered():
            assert isinstance(result, RetryLater), result
            await trio.sleep(0.05)  # the answer comes at once while there is no connection
        return
    raise AssertionError(result)
