"""Deliveries over one connected producer, in batches with one delivery report each.

Each partition gets one batch after the other; messages that arrive meanwhile go with the next batch, so
batches grow with the load. A batch of any size crosses from Trio into the asyncio loop once; the crossing
costs more than anything else.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import trio
from aiokafka import AIOKafkaProducer, errors
from aiokafka.errors import (
    BrokerResponseError,
    KafkaError,
    KafkaTimeoutError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.partitioner import DefaultPartitioner

from downloader.notify import CommitAbandoned, Delivered, GroupCommit, Rejected, Result, RetryLater
from downloader_plugins.kafka.settings import KafkaSettings

TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError, errors.RecordTooLargeError)
"""The exceptions for a batch with more bytes than the topic accepts."""


class NotConnected(Exception):
    """No broker can be reached, or none accepts the credentials; the text tells why."""


def _text_of(exc: OSError) -> str:
    # asyncio's own text for a refused connection repeats the address.
    return os.strerror(exc.errno) if exc.errno else str(exc) or type(exc).__name__


Reasons = Sequence[tuple[Any, Callable[[Any], str]]]
"""Exception types, subclasses before base classes, and the reason for each."""

_CONNECTING: Reasons = (
    (ssl.SSLCertVerificationError, lambda exc: f"TLS handshake failed: {exc.verify_message}"),
    (ssl.SSLError, lambda exc: f"TLS handshake failed: {exc.reason}"),
    (TimeoutError, lambda _: "no answer in time"),
    (socket.gaierror, lambda exc: f"the name cannot be resolved: {exc.strerror}"),
    (OSError, _text_of),
    (errors.UnsupportedSaslMechanismError, lambda _: "the broker does not offer this sasl_mechanism"),
    (
        # KeyError: aiokafka expects a nonce in SCRAM's error message (RFC 5802, `e=`).
        (errors.SaslAuthenticationFailed, errors.AuthenticationFailedError, KeyError),
        lambda _: "authentication failed",
    ),
    (errors.KafkaConnectionError, lambda _: "the broker closed the connection"),
    (errors.BrokerResponseError, lambda exc: f"the broker answered {exc.message}"),
    (BaseException, lambda exc: f"not understood ({type(exc).__name__})"),
)

_REJECTED: Reasons = (
    (TOO_LARGE, lambda _: "the topic does not take callbacks of this size"),
    (errors.InvalidTopicError, lambda _: "the broker does not take the destination for a topic"),
)

_RETRIED: Reasons = (
    (errors.UnknownTopicOrPartitionError, lambda _: "there is no such topic"),
    (errors.TopicAuthorizationFailedError, lambda _: "not authorized to write to the topic"),
    ((errors.RequestTimedOutError, TimeoutError), lambda _: "the broker did not answer in time"),
    (errors.BrokerResponseError, lambda exc: f"the broker answered {exc.message}"),
    (
        (errors.KafkaConnectionError, errors.NodeNotReadyError, errors.StaleMetadata),
        lambda _: "no connection to the topic's broker",
    ),
    (errors.KafkaTimeoutError, lambda _: "earlier callbacks still wait for the topic's broker"),
    (BaseException, lambda exc: f"the Kafka client failed: {type(exc).__name__}"),
)


def connect_reason(exc: BaseException) -> str:
    """Why connecting to a broker failed."""
    return _reason(_CONNECTING, exc) or ""


def failure(exc: BaseException, topic: str) -> Result:
    """The result of a callback to a topic after an exception."""
    final = _reason(_REJECTED, exc)
    if final is not None:
        return Rejected(f"{topic}: {final}")
    return RetryLater(f"{topic}: {_reason(_RETRIED, exc)}")


def _reason(reasons: Reasons, exc: BaseException) -> str | None:
    return next((describe(exc) for types, describe in reasons if isinstance(exc, types)), None)


T = TypeVar("T")

Headers = Sequence[tuple[str, bytes]]
"""Names and values of a record's headers."""

BATCH_BYTES = 128 * 1024
"""Most bytes of a batch; a larger callback is sent alone."""

_RECORD_OVERHEAD_BYTES = 128
"""Upper limit of the bytes of a batch of one record besides key and value: 61 for the batch, 21 for the
record. Counted for each record, so that a batch never has more than `BATCH_BYTES`."""

_HEADER_OVERHEAD_BYTES = 10
"""Upper limit of the two lengths of a header."""

_MAX_BATCH = 1000
"""Most callbacks in a batch; filling a batch blocks the loop for a few milliseconds."""

_FIND_TOPIC_S = 5.0
"""Longest wait for a topic to appear, at most half of `timeout`."""

_FIRST_LOOK_S, _MAX_LOOK_S = 0.1, 1.0
"""First and longest pause between requests for a topic's metadata."""

_STUCK_TIMEOUTS = 2
"""A batch counts as lost by the producer after a multiple of `timeout` without a report."""

_ENDED = RetryLater("the connection to Kafka was closed")

_partition = DefaultPartitioner()


class _Message(NamedTuple):
    topic: str
    partition: int
    key: bytes
    value: bytes
    headers: Headers
    began: float
    """Trio time."""

    @property
    def lane(self) -> tuple[str, int]:
        return self.topic, self.partition


def _size(key: bytes, value: bytes, headers: Headers) -> int:
    fields = sum(len(name) + len(text) + _HEADER_OVERHEAD_BYTES for name, text in headers)
    return len(key) + len(value) + fields + _RECORD_OVERHEAD_BYTES


class Session:
    """Deliveries with a started producer in an asyncio loop, until `lost`; `run` has to run meanwhile.

    When `run` is cancelled all deliveries end.
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
            weight=lambda message: _size(message.key, message.value, message.headers),
            max_weight=BATCH_BYTES,
            lane=lambda message: message.lane,
        )
        self.run = self._messages.run
        self._sent_at: dict[tuple[str, int], float] = {}
        """Trio time when the batch in flight to a partition was given to the producer."""
        self._topics: set[str] = set()
        """Topics for which the producer refreshes metadata."""
        self._failing_since = math.inf
        self.lost = trio.Event()
        """Set when the producer cannot be used any more."""
        self.lost_reason = ""

    async def deliver(self, topic: str, key: bytes, value: bytes, headers: Headers = ()) -> Result:
        """Send a message, and wait for the delivery report; the caller sets the time limit.

        A cancel withdraws a message that was not yet given to the producer.
        """
        if _size(key, value, headers) > self._settings.max_request_size:
            return Rejected(f"the callback has {len(value)} bytes, too many for max_request_size")
        began = trio.current_time()
        try:
            cached = self._cluster.partitions_for_topic(topic) if topic in self._topics else None
            partitions = cached or await self._find(topic)
        except (KafkaError, TimeoutError) as exc:
            return failure(exc, topic)
        if self.lost.is_set():
            return _ENDED
        message = _Message(topic, _partition(key, sorted(partitions), ()), key, value, headers, began)
        try:
            return await self._messages.submit(message)
        except CommitAbandoned:
            return _ENDED
        except trio.Cancelled:
            self._given_up(message)
            raise

    async def look(self) -> tuple[int, set[str]]:
        """The number of brokers, and the names of the topics.

        Raises:
            KafkaError: no broker answers.
        """
        cluster = await self._in_asyncio(self._producer.client.fetch_all_metadata)
        return len(cluster.brokers()), cluster.topics()

    async def _send(self, messages: Sequence[_Message]) -> Sequence[Result]:
        """Send a batch to one partition; if too large, send the messages one by one."""
        topic, lane = messages[0].topic, messages[0].lane
        builder = self._producer.create_batch()
        for message in messages:
            builder.append(key=message.key, value=message.value, headers=message.headers, timestamp=None)
        assert builder.record_count() == len(messages), "`_size` limits a batch"
        builder.close()
        self._sent_at[lane] = began = trio.current_time()
        try:
            await self._in_asyncio(partial(self._hand_over, builder, lane))
        except TOO_LARGE as exc:
            if len(messages) == 1:
                return [failure(exc, topic)]
            return [(await self._send([message]))[0] for message in messages]
        except Exception as exc:  # noqa: BLE001 - an exception of aiokafka fails deliveries, not the service
            if not isinstance(exc, BrokerResponseError) or isinstance(exc, RequestTimedOutError):
                self._failed(began)
            return [failure(exc, topic)] * len(messages)
        finally:
            self._sent_at.pop(lane, None)
        self._failing_since = math.inf
        return [Delivered()] * len(messages)

    async def _hand_over(self, builder: Any, lane: tuple[str, int]) -> None:
        """In asyncio: give the producer a batch, and wait for the report."""
        topic, partition = lane
        try:
            report = await self._producer.send_batch(builder, topic, partition=partition)
        except (KafkaTimeoutError, UnknownTopicOrPartitionError):
            raise
        except AssertionError:  # the topic was deleted, or created again with fewer partitions
            raise UnknownTopicOrPartitionError from None
        except Exception as exc:
            # The producer's sending task has ended, so it accepts nothing.
            self._lose(f"the producer has failed: {type(exc).__name__}")
            raise
        await report

    async def _find(self, topic: str) -> set[int]:
        """Get the partitions of a topic that is new to the producer.

        Raises:
            KafkaError: the topic does not exist or may not be used.
            TimeoutError: no broker answers.
        """
        began, seconds = trio.current_time(), min(_FIND_TOPIC_S, self._settings.timeout / 2)
        try:
            partitions = await self._in_asyncio(lambda: _look_for(self._producer.client, topic, seconds))
        except (KafkaError, TimeoutError) as exc:
            if isinstance(exc, TimeoutError):
                self._failed(began)
            # Otherwise the producer would request the metadata of each wrong name for ever.
            self._topics.discard(topic)
            if not self._loop.is_closed():
                self._producer.client.set_topics(self._topics)
            raise
        self._topics.add(topic)
        return partitions

    def _given_up(self, message: _Message) -> None:
        """Note that a delivery was cancelled."""
        now = trio.current_time()
        if now - self._sent_at.get(message.lane, math.inf) > _STUCK_TIMEOUTS * self._settings.timeout:
            self._lose("a batch was lost in the producer")
        if now - message.began >= self._settings.timeout:
            self._failed(message.began)

    def _failed(self, began: float) -> None:
        """Note a request without a response; after `timeout` without any response the producer is `lost`.

        A new producer is then needed, as the present one asks only known brokers, which may all be gone.
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
            # Tasks in asyncio are never cancelled, so the loop is being closed.
            raise KafkaError("the connection was closed") from None
        return result


async def _look_for(client: Any, topic: str, seconds: float) -> set[int]:
    """In asyncio: request the metadata of a topic until the topic exists or the time is over.

    Raises:
        UnknownTopicOrPartitionError: brokers respond, and the topic does not exist.
        TopicAuthorizationFailedError: the topic may not be used.
        TimeoutError: no broker answers.
    """
    pause_s, responded = _FIRST_LOOK_S, False
    try:
        async with asyncio.timeout(seconds):
            while True:
                await client.add_topic(topic)
                responded = await client.force_metadata_update()
                partitions: set[int] | None = client.cluster.partitions_for_topic(topic)
                if partitions:
                    return partitions
                if topic in client.cluster.unauthorized_topics:
                    raise TopicAuthorizationFailedError(topic)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_LOOK_S)
    except TimeoutError:
        if responded:
            raise UnknownTopicOrPartitionError from None
        raise
