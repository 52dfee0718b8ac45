"""Deliveries over one connected producer: gathered into batches, each with one delivery report.

A *lane* for each partition with work sends one batch after the other. What comes while one is under way
goes with the next, so the batches grow with the load. A batch crosses from Trio into the asyncio loop once,
however many callbacks it holds; the crossing costs more than the rest.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

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

from downloader.notify import Delivered, Rejected, Result, RetryLater
from downloader_plugins.kafka.reasons import TOO_LARGE, failure
from downloader_plugins.kafka.settings import KafkaSettings

T = TypeVar("T")

_RECORD_OVERHEAD_BYTES = 128
"""At most, of a batch of one record without headers, besides key and value: 61 for the batch, 21 for the
record, and room."""

_FIND_TOPIC_S = 5.0
"""How long a topic may take to appear, and half of `timeout`; one that a broker makes takes much less."""

_FIRST_LOOK_S, _MAX_LOOK_S = 0.1, 1.0
"""Pauses between looks for it."""

_STUCK_TIMEOUTS = 2
"""After so many times `timeout` without a report a batch is not slow: the producer has lost it."""

_ENDED = RetryLater("the connection to Kafka was given up")

_partition = DefaultPartitioner()


@dataclass(slots=True, eq=False)
class _Message:
    key: bytes
    value: bytes
    began: float
    """By Trio's clock."""
    done: trio.Event = field(default_factory=trio.Event)
    result: Result = _ENDED

    def finish(self, result: Result) -> None:
        self.result = result
        self.done.set()


@dataclass(slots=True, eq=False)
class _Lane:
    """A partition with work. Invariant: while it is in the session's table, a task drains it."""

    topic: str
    partition: int
    waiting: deque[_Message] = field(default_factory=deque)
    asked: float = math.inf
    """When the batch under way was handed over; infinite: none is."""


class Session:
    """Delivers over a started producer until it is `lost`, or its nursery is cancelled.

    Args:
        settings: the section.
        producer: a started one.
        loop: the asyncio loop it runs in.
        nursery: for the lanes; when it has ended, so have all deliveries.
    """

    def __init__(
        self, settings: KafkaSettings, producer: AIOKafkaProducer, loop: Any, nursery: trio.Nursery
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._cluster = producer.client.cluster
        self._loop = loop
        self._nursery = nursery
        self._lanes: dict[tuple[str, int], _Lane] = {}
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
        size = len(key) + len(value) + _RECORD_OVERHEAD_BYTES
        if size > self._settings.max_request_size:
            return Rejected(f"the callback has {len(value)} bytes, too many for max_request_size")
        message = _Message(key, value, trio.current_time())
        try:
            known = self._cluster.partitions_for_topic(topic) if topic in self._topics else None
            partitions = known or await self._find(topic)
        except (KafkaError, TimeoutError) as exc:
            return failure(exc, topic)
        if self.lost.is_set() or self._nursery.cancel_scope.cancel_called:
            return _ENDED
        lane = self._lane(topic, _partition(key, sorted(partitions), ()))
        lane.waiting.append(message)
        try:
            await message.done.wait()
        finally:
            if not message.done.is_set():
                self._give_up(lane, message)
        return message.result

    async def look(self) -> tuple[int, set[str]]:
        """How many brokers there are, and which topics.

        Raises:
            KafkaError: no broker answers.
        """
        cluster = await self._in_asyncio(self._producer.client.fetch_all_metadata)
        return len(cluster.brokers()), cluster.topics()

    def _lane(self, topic: str, partition: int) -> _Lane:
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = _Lane(topic, partition)
            # It begins when all that are ready now have had their turn, so these share its first batch.
            self._nursery.start_soon(self._drain, lane)
        return lane

    async def _drain(self, lane: _Lane) -> None:
        """Send what waits, until nothing does."""
        try:
            while lane.waiting:
                if self._settings.linger_ms:
                    await trio.sleep(self._settings.linger_ms / 1000)
                builder = self._producer.create_batch()
                batch: list[_Message] = []
                try:
                    while lane.waiting and _append(builder, lane.waiting[0]):
                        batch.append(lane.waiting.popleft())
                    # The first record goes into a batch whatever its size, so this comes to an end.
                    assert batch or not lane.waiting
                    await self._send(lane, builder, batch)
                finally:
                    for message in batch:
                        message.done.set()
        finally:
            del self._lanes[lane.topic, lane.partition]
            for message in lane.waiting:
                message.done.set()

    async def _send(self, lane: _Lane, builder: Any, batch: list[_Message]) -> None:
        """Send a batch and give each message its result. One that is too large is taken apart."""
        if not batch:  # all were given up
            return
        builder.close()
        lane.asked = trio.current_time()
        try:
            await self._in_asyncio(lambda: self._hand_over(builder, lane))
        except TOO_LARGE as exc:
            if len(batch) == 1:
                batch[0].finish(failure(exc, lane.topic))
                return
            for message in batch:
                alone = self._producer.create_batch()
                _append(alone, message)
                await self._send(lane, alone, [message])
            return
        except Exception as exc:  # noqa: BLE001 - whatever aiokafka raises fails deliveries, not the service
            if not isinstance(exc, BrokerResponseError) or isinstance(exc, RequestTimedOutError):
                self._failed(lane.asked)
            result = failure(exc, lane.topic)
        else:
            self._failing_since = math.inf
            result = Delivered()
        finally:
            lane.asked = math.inf
        for message in batch:
            message.finish(result)

    async def _hand_over(self, builder: Any, lane: _Lane) -> None:
        """In asyncio: give the producer a batch, and wait for its report."""
        try:
            report = await self._producer.send_batch(builder, lane.topic, partition=lane.partition)
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

    def _give_up(self, lane: _Lane, message: _Message) -> None:
        """Nobody waits for it any more."""
        with suppress(ValueError):  # it is with the producer
            lane.waiting.remove(message)
        now = trio.current_time()
        if now - lane.asked > _STUCK_TIMEOUTS * self._settings.timeout:
            self._lose("a batch was lost in the producer")
        if now - message.began >= self._settings.timeout:
            self._failed(message.began)

    def _failed(self, began: float) -> None:
        """What was begun then has had no answer. When nothing has had one for long the producer is given up.

        It looks for brokers only among those that it knows, of which there may be none any more.
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


def _append(builder: Any, message: _Message) -> bool:
    """Put a message into a batch; false: it is full."""
    return builder.append(key=message.key, value=message.value, timestamp=None) is not None


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
