"""Deliveries over one connected producer: gathered into batches, each with one delivery report.

Each partition gets one batch after the other. What comes while one is under way goes with the next, so the
batches grow with the load. A batch crosses from Trio into the asyncio loop once, however many callbacks it
holds; the crossing costs more than the rest.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import trio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    BrokerResponseError,
    KafkaError,
    KafkaTimeoutError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.partitioner import DefaultPartitioner

from downloader.notify import (
    CommitAbandoned,
    Delivered,
    GroupCommit,
    Rejected,
    Result,
    RetryLater,
)
from downloader_plugins.kafka.reasons import TOO_LARGE, failure
from downloader_plugins.kafka.settings import KafkaSettings

T = TypeVar("T")

BATCH_BYTES = 128 * 1024
"""Of what goes to one partition at once; a larger callback goes alone."""

_RECORD_OVERHEAD_BYTES = 128
"""At most, of a batch of one record without headers, besides key and value: 61 for the batch, 21 for the
record, and room. Counted for each record, so that a batch never has more than `BATCH_BYTES`."""

_MAX_BATCH = 1000
"""Callbacks in a batch; one of that many takes the loop a few milliseconds to fill."""

_FIND_TOPIC_S = 5.0
"""How long a topic may take to appear, and half of `timeout`; one that a broker makes takes much less."""

_FIRST_LOOK_S, _MAX_LOOK_S = 0.1, 1.0
"""Pauses between looks for it."""

_STUCK_TIMEOUTS = 2
"""After so many times `timeout` without a report a batch is not slow: the producer has lost it."""

_ENDED = RetryLater("the connection to Kafka was given up")

_partition = DefaultPartitioner()


class _Message(NamedTuple):
    topic: str
    partition: int
    key: bytes
    value: bytes
    began: float
    """Trio time."""

    @property
    def lane(self) -> tuple[str, int]:
        return self.topic, self.partition


def _size(message: _Message) -> int:
    return len(message.key) + len(message.value) + _RECORD_OVERHEAD_BYTES


class Session:
    """Delivers over a started producer until it is `lost`; needs its `run` to be running.

    When `run` is cancelled all deliveries end.

    Args:
        settings: the section.
        producer: a started one.
        loop: the asyncio loop it runs in.
        group_commit: as the host lends it.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        producer: AIOKafkaProducer,
        loop: Any,
        group_commit: type[GroupCommit[Any, Any]],
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._cluster = producer.client.cluster
        self._loop = loop
        self._messages: GroupCommit[_Message, Result] = group_commit(
            self._send,
            max_batch=_MAX_BATCH,
            weight=_size,
            max_weight=BATCH_BYTES,
            lane=lambda message: message.lane,
        )
        self.run = self._messages.run
        self._asked: dict[tuple[str, int], float] = {}
        """When the batch under way to a partition was handed over, Trio time."""
        self._topics: set[str] = set()
        """Those that the producer keeps itself informed of."""
        self._failing_since = math.inf
        self.lost = trio.Event()
        """Set when the producer is of no use any more."""
        self.lost_reason = ""

    async def deliver(self, topic: str, key: bytes, value: bytes) -> Result:
        """Send, and wait for the delivery report; the caller bounds it.

        A cancel takes the message back as long as it has not been handed to the producer.
        """
        if len(key) + len(value) + _RECORD_OVERHEAD_BYTES > self._settings.max_request_size:
            return Rejected(f"the callback has {len(value)} bytes, too many for max_request_size")
        began = trio.current_time()
        try:
            known = self._cluster.partitions_for_topic(topic) if topic in self._topics else None
            partitions = known or await self._find(topic)
        except (KafkaError, TimeoutError) as exc:
            return failure(exc, topic)
        if self.lost.is_set():
            return _ENDED
        message = _Message(topic, _partition(key, sorted(partitions), ()), key, value, began)
        try:
            return await self._messages.submit(message)
        except CommitAbandoned:
            return _ENDED
        except trio.Cancelled:
            self._given_up(message)
            raise

    async def look(self) -> tuple[int, set[str]]:
        """How many brokers there are, and which topics.

        Raises:
            KafkaError: no broker answers.
        """
        cluster = await self._in_asyncio(self._producer.client.fetch_all_metadata)
        return len(cluster.brokers()), cluster.topics()

    async def _send(self, messages: Sequence[_Message]) -> Sequence[Result]:
        """Send a batch to one partition. One that is too large is taken apart."""
        topic, lane = messages[0].topic, messages[0].lane
        builder = self._producer.create_batch()
        for message in messages:
            builder.append(key=message.key, value=message.value, timestamp=None)
        assert builder.record_count() == len(messages), "what a batch holds is bounded by `_size`"
        builder.close()
        self._asked[lane] = asked = trio.current_time()
        try:
            await self._in_asyncio(partial(self._hand_over, builder, lane))
        except TOO_LARGE as exc:
            if len(messages) == 1:
                return [failure(exc, topic)]
            return [(await self._send([message]))[0] for message in messages]
        except Exception as exc:  # noqa: BLE001 - whatever aiokafka raises fails deliveries, not the service
            if not isinstance(exc, BrokerResponseError) or isinstance(exc, RequestTimedOutError):
                self._failed(asked)
            return [failure(exc, topic)] * len(messages)
        finally:
            self._asked.pop(lane, None)
        self._failing_since = math.inf
        return [Delivered()] * len(messages)

    async def _hand_over(self, builder: Any, lane: tuple[str, int]) -> None:
        """In asyncio: give the producer a batch, and wait for its report."""
        topic, partition = lane
        try:
            report = await self._producer.send_batch(builder, topic, partition=partition)
        except (KafkaTimeoutError, UnknownTopicOrPartitionError):
            raise
        except AssertionError:  # the topic has been deleted, or made anew with fewer partitions
            raise UnknownTopicOrPartitionError from None
        except Exception as exc:
            # It takes nothing: its sending task has died.
            self._lose(f"the producer has failed: {type(exc).__name__}")
            raise
        await report

    async def _find(self, topic: str) -> set[int]:
        """The partitions of a topic that is not known yet.

        Raises:
            KafkaError: there is no such topic, or we may not use it.
            TimeoutError: no broker answers.
        """
        began, seconds = trio.current_time(), min(_FIND_TOPIC_S, self._settings.timeout / 2)
        try:
            partitions = await self._in_asyncio(lambda: _look_for(self._producer.client, topic, seconds))
        except (KafkaError, TimeoutError) as exc:
            if isinstance(exc, TimeoutError):
                self._failed(began)
            # Else each name that any job has ever come with would be asked for again and again.
            self._topics.discard(topic)
            if not self._loop.is_closed():
                self._producer.client.set_topics(self._topics)
            raise
        self._topics.add(topic)
        return partitions

    def _given_up(self, message: _Message) -> None:
        """Nobody waits for it any more."""
        now = trio.current_time()
        if now - self._asked.get(message.lane, math.inf) > _STUCK_TIMEOUTS * self._settings.timeout:
            self._lose("a batch was lost in the producer")
        if now - message.began >= self._settings.timeout:
            self._failed(message.began)

    def _failed(self, began: float) -> None:
        """Note that what began then got no answer; after `timeout` without any the producer is given up.

        It looks for brokers only among those that it knows, and these may all be gone.
        """
        self._failing_since = min(self._failing_since, began)
        if trio.current_time() - self._failing_since >= self._settings.timeout:
            self._lose(f"no broker has answered for {self._settings.timeout:g} s")

    def _lose(self, reason: str) -> None:
        if not self.lost.is_set():
            self.lost_reason = reason
            self.lost.set()

    async def _in_asyncio(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            result: T = await self._loop.run_aio_coroutine(call())
        except asyncio.CancelledError:
            # Not by us: the loop is at its end.
            raise KafkaError("the connection was given up") from None
        return result


async def _look_for(client: Any, topic: str, seconds: float) -> set[int]:
    """In asyncio: ask for a topic until it is there, for so long.

    Raises:
        UnknownTopicOrPartitionError: brokers answer, and it is not.
        TopicAuthorizationFailedError: it is not for us.
        TimeoutError: no broker answers.
    """
    pause_s, answered = _FIRST_LOOK_S, False
    try:
        async with asyncio.timeout(seconds):
            while True:
                await client.add_topic(topic)
                answered = await client.force_metadata_update()
                partitions: set[int] | None = client.cluster.partitions_for_topic(topic)
                if partitions:
                    return partitions
                if topic in client.cluster.unauthorized_topics:
                    raise TopicAuthorizationFailedError(topic)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_LOOK_S)
    except TimeoutError:
        if answered:
            raise UnknownTopicOrPartitionError from None
        raise
