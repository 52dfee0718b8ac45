"""Notifier for Kafka: the destination is the topic, the job's id the key, the payload the value.

The `traceparent` of a job is a header of the record.

A callback counts as delivered when the broker reports that all in-sync replicas have it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from aiokafka.errors import KafkaError

from downloader.errors import PluginError
from downloader.notify import (
    Host,
    Notifier,
    Payload,
    Rejected,
    Result,
    RetryLater,
    background,
    is_reserved,
    text_globs,
)
from downloader_plugins.kafka.link import Link
from downloader_plugins.kafka.settings import read_section

_CHECK_S = 12.0
"""Time limit of `check`; connecting takes two steps of at most 5 s."""

_TOPIC = re.compile(r"(?!\.{1,2}\Z)[a-zA-Z0-9._-]{1,249}")
"""A valid name of a topic (org.apache.kafka.common.internals.Topic)."""

_GLOB = re.compile(r"[*?\[]")


@asynccontextmanager
async def open_kafka(section: Mapping[str, Any], host: Host) -> AsyncIterator[Notifier]:
    """Open the notifier. It connects in the background, so it can be opened while brokers are down.

    Closing takes less than a second, whatever the brokers do.

    Raises:
        PluginError: the section is invalid.
    """
    settings = read_section(section)
    link = Link(settings, host)
    _quiet(logging.getLogger("aiokafka"))
    async with background(link.run):
        yield _Kafka(
            link=link,
            timeout_s=settings.timeout,
            topics=settings.topics,
            allows=text_globs(settings.topics or ["*"]),
        )


def _quiet(logger: logging.Logger) -> None:
    """Silence aiokafka's log, which repeats a failure every 100 ms; `Link` logs each failure once."""
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)


@dataclass(slots=True, kw_only=True)
class _Kafka:
    link: Link
    timeout_s: float
    topics: list[str]
    allows: Callable[[str], bool]

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """See `Notifier`. After a timeout, the callback may still be delivered later."""
        if not _TOPIC.fullmatch(destination):
            return Rejected(
                "the callback's destination is not a Kafka topic:"
                " 1 to 249 letters, digits, dots, underscores and hyphens"
            )
        if is_reserved("kafka", destination):
            return Rejected(f"topic {destination} is one of Kafka's internal topics")
        if not self.allows(destination):
            return Rejected(f"topic {destination} is not allowed by backends.kafka.topics")
        with trio.move_on_after(self.timeout_s):
            session = await self.link.ready()
            if session is None:
                return RetryLater(f"not connected to Kafka: {self.link.reason}")
            headers = [("traceparent", payload.traceparent.encode())] if payload.traceparent else []
            return await session.deliver(destination, payload.job_id.encode(), payload.body, headers)
        return RetryLater(f"no delivery report within {self.timeout_s:g} s")

    async def check(self) -> str:
        """See `Checkable`; lists brokers and topics.

        Raises:
            PluginError: not connected, or a topic of `topics` does not exist.
        """
        with trio.move_on_after(_CHECK_S):
            session = await self.link.ready()
            if session is None:
                raise PluginError(f"not connected to Kafka: {self.link.reason}")
            try:
                brokers, topics = await session.look()
            except KafkaError as exc:
                raise PluginError(f"no broker answers: {type(exc).__name__}") from exc
            return self._found(brokers, topics)
        raise PluginError(f"no answer within {_CHECK_S:g} s")

    def _found(self, brokers: int, topics: set[str]) -> str:
        count = f"{brokers} broker{'s' * (brokers != 1)}"
        plain_topics = [topic for topic in self.topics if not _GLOB.search(topic)]
        missing = [topic for topic in plain_topics if topic not in topics]
        if missing:
            raise PluginError(f"{count}, but no topic {', '.join(missing)}")
        if not plain_topics:
            return f"{count}, {len(topics)} topic{'s' * (len(topics) != 1)}"
        return f"{count}, topic{'s' * (len(plain_topics) != 1)} {', '.join(plain_topics)} found"
