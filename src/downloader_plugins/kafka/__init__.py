"""Notifier for Kafka: the destination is the topic, the job's id the key, the payload the value.

The `traceparent` of a job is a header of the record.

A callback counts as delivered when the broker reports that all in-sync replicas have it. librdkafka connects,
makes batches and repeats requests, in threads of its own. A thread of Python takes the reports, but only
while a delivery waits.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio
from confluent_kafka import KafkaError, KafkaException, Producer

from downloader.errors import PluginError
from downloader.notify import (
    Delivered,
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
from downloader_plugins.kafka.settings import OPTIONS, KafkaSettings, read_section

_CHECK_S = 4.0
"""Time limit of `check`, which no cancel can shorten."""

_POLL_S = 0.1
"""Longest wait of the thread for a report. A close waits for it."""

_POLL_EACH_S = 0.01
"""As `_POLL_S`, with two producers, which wait for each other."""

_CLOSE_S = 1.0
"""Time limit of closing librdkafka's producer, for a name resolver that hangs."""

_MOST_UNKNOWN = 100
"""Most names of missing topics that a producer knows. librdkafka asks for each of them every second and
forgets none, so after more of them the producer is replaced."""

_TOPIC = re.compile(r"(?!\.{1,2}\Z)[a-zA-Z0-9._-]{1,249}")
"""A valid name of a topic (org.apache.kafka.common.internals.Topic)."""

_GLOB = re.compile(r"[*?\[]")

_ERROR = re.compile(r"(?:\w+://)?(?P<server>.+?)(?:/\w+)?: (?P<text>.+)")
"""The text of librdkafka for an error of a connection."""

_DETAILS = re.compile(
    r"Connect to \S+ failed: |error:\w+:SSL routines::|[:,]? \((after|average) .*|, verify that .*"
)
"""Parts of such a text that do not help the operator."""

_TOO_LARGE = KafkaError.MSG_SIZE_TOO_LARGE

_UNKNOWN_TOPIC = KafkaError._UNKNOWN_TOPIC  # noqa: SLF001 - the public name of a local error
_DESTROY = KafkaError._DESTROY  # noqa: SLF001 - likewise
_MSG_TIMED_OUT = KafkaError._MSG_TIMED_OUT  # noqa: SLF001 - likewise
_ALL_BROKERS_DOWN = KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001 - likewise

_MISSING = (KafkaError.UNKNOWN_TOPIC_OR_PART, _UNKNOWN_TOPIC)

_REASONS: Mapping[int, str] = {
    _TOO_LARGE: "the topic does not take callbacks of this size",
    KafkaError.TOPIC_EXCEPTION: "the broker does not take the destination for a topic",
    **dict.fromkeys(_MISSING, "there is no such topic"),
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "not authorized to write to the topic",
    _DESTROY: "the connection to Kafka was closed",
}

_CLOSED = KafkaError(_DESTROY)

_FINAL = (_TOO_LARGE, KafkaError.TOPIC_EXCEPTION)
"""Errors that a later attempt would get too."""


@asynccontextmanager
async def open_kafka(section: Mapping[str, Any], host: Host) -> AsyncIterator[Notifier]:
    """Open the notifier. It connects in the background, so it can be opened while brokers are down.

    Closing takes less than two seconds, whatever the brokers do.

    Raises:
        PluginError: the section is invalid.
    """
    kafka = _Kafka(read_section(section), host.logger)
    async with background(kafka.run):
        yield kafka


@dataclass(slots=True, eq=False)
class _Report:
    """The report on a message, of librdkafka or of a broker."""

    error: KafkaError | None = _CLOSED
    """`None` if all in-sync replicas have the message."""
    ended: trio.Event = field(default_factory=trio.Event)
    """Set when the report has come, or the notifier is closed."""


class _Kafka:
    def __init__(self, settings: KafkaSettings, logger: logging.Logger) -> None:
        self._settings = settings
        self._logger = logger
        self._allows = text_globs(settings.topics or ["*"])
        self._errors: list[KafkaError] = []
        """Errors of connections, appended by the thread."""
        self._reported: list[tuple[_Report, KafkaError | None]] = []
        """Appended by the thread."""
        self._producers = [self._open()]
        """The producer, and one without batches after the first batch that was too large for the topic."""
        self._waiting: set[_Report] = set()
        self._wanted = trio.Event()
        """Set while anything waits."""
        self._reason = ""
        """The last error of a connection since the last delivery."""
        self._is_down = False
        """Whether no broker could be reached since the last delivery."""
        self._missing: set[str] = set()
        """Names of missing topics that this producer knows."""
        self._is_closed = False

    def _open(self, **options: Any) -> Producer:
        """Make a producer, which connects in the background.

        Raises:
            PluginError: librdkafka refuses an option, for example a file.
        """
        try:
            return Producer({**self._settings.options(), **options, "error_cb": self._errors.append})
        except KafkaException as exc:
            text = exc.args[0].str().removeprefix("Failed to create producer: ")
            key = next((key for key, option in OPTIONS.items() if option in text), "sasl_mechanism")
            raise PluginError(f"{key}: cannot be used: {text}") from None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take reports while a delivery waits; when cancelled, close."""
        limiter = trio.CapacityLimiter(1)
        task_status.started()
        try:
            while True:
                await self._wanted.wait()
                await trio.to_thread.run_sync(self._poll, limiter=limiter)
                self._take()
                if len(self._missing) > _MOST_UNKNOWN:
                    await self._end()
                    self._producers, self._is_closed = [self._open()], False
                    self._missing.clear()
        finally:
            await self._end()

    async def _end(self) -> None:
        """Close the producers; callbacks that wait will be tried again."""
        self._is_closed = True
        for report in self._waiting:
            report.ended.set()
        with trio.move_on_after(_CLOSE_S, shield=True):
            await trio.to_thread.run_sync(self._close, abandon_on_cancel=True)

    def _poll(self) -> None:
        for producer in self._producers:
            producer.poll(_POLL_S if len(self._producers) == 1 else _POLL_EACH_S)

    def _close(self) -> None:
        while self._producers:
            producer = self._producers.pop()
            producer.purge()
            producer.close()

    def _take(self) -> None:
        """Process what the thread has received."""
        for problem in self._errors:
            self._note(problem)
        for report, error in self._reported:
            report.error = error
            report.ended.set()
            if error is None:
                if self._is_down:
                    self._logger.warning("connected to Kafka again")
                self._reason, self._is_down = "", False
        self._errors.clear()
        self._reported.clear()
        if not self._waiting:
            self._wanted = trio.Event()

    def _note(self, error: KafkaError) -> None:
        """Note an error of a connection; log the first one that leaves no broker."""
        if error.code() == _ALL_BROKERS_DOWN:
            if not self._is_down:
                self._logger.warning("not connected to Kafka: %s", self._reason or "no broker can be reached")
            self._is_down = True
        elif match := _ERROR.fullmatch(_DETAILS.sub("", error.str()).rstrip(" :")):
            text = "no answer in time" if "timed out" in match["text"] else match["text"]
            self._reason = f"{match['server']}: {text}"

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """See `Notifier`. After a timeout or a cancel, the callback may still be delivered later."""
        if (refusal := self._refusal(destination)) is not None:
            return refusal
        message = {
            "topic": destination,
            "key": payload.job_id.encode(),
            "value": payload.body,
            "headers": [("traceparent", payload.traceparent.encode())] if payload.traceparent else [],
        }
        try:
            with trio.move_on_after(self._settings.timeout):
                error = await self._send(0, message)
                if error is not None and error.code() == _TOO_LARGE:  # the message, or the batch
                    error = await self._send(1, message)
                return Delivered() if error is None else self._failure(destination, error)
        except KafkaException as exc:
            if exc.args[0].code() != _TOO_LARGE:
                return self._failure(destination, exc.args[0])
            return Rejected(f"the callback has {len(payload.body)} bytes, too many for max_request_size")
        except BufferError:
            return RetryLater(f"{destination}: earlier callbacks still wait for the topic's broker")
        return self._unanswered(destination)

    def _refusal(self, destination: str) -> Rejected | None:
        """Why a destination can never work."""
        if not _TOPIC.fullmatch(destination):
            return Rejected(
                "the callback's destination is not a Kafka topic:"
                " 1 to 249 letters, digits, dots, underscores and hyphens"
            )
        if is_reserved("kafka", destination):
            return Rejected(f"topic {destination} is one of Kafka's internal topics")
        if not self._allows(destination):
            return Rejected(f"topic {destination} is not allowed by backends.kafka.topics")
        return None

    async def _send(self, number: int, message: Mapping[str, Any]) -> KafkaError | None:
        """Send a message with this producer and wait for the report; returns the report's error.

        Raises:
            KafkaException: the message is too large for a request, or the topic is known to be missing.
            BufferError: too many messages wait.
        """
        if self._is_closed:
            return _CLOSED
        if number == len(self._producers):
            self._producers.append(self._open(**{"batch.num.messages": 1}))
        report = _Report()
        self._producers[number].produce(
            **message, on_delivery=lambda error, _: self._reported.append((report, error))
        )
        with self._polled(report):
            await report.ended.wait()
        return report.error

    @contextmanager
    def _polled(self, report: _Report) -> Iterator[None]:
        """Let the thread take reports and errors meanwhile."""
        self._waiting.add(report)
        self._wanted.set()
        try:
            yield
        finally:
            self._waiting.discard(report)

    def _failure(self, topic: str, error: KafkaError) -> Result:
        """The result of a message with this error in the report."""
        if error.code() == _MSG_TIMED_OUT:
            return self._unanswered(topic)
        if error.code() in _MISSING:
            self._missing.add(topic)
        what = "answered" if error.code() > 0 else "could not be asked:"
        reason = f"{topic}: {_REASONS.get(error.code()) or f'the broker {what} {error.name()}'}"
        return Rejected(reason) if error.code() in _FINAL else RetryLater(reason)

    def _unanswered(self, topic: str) -> RetryLater:
        """The result of a message without a report in time."""
        if self._reason:
            return RetryLater(f"not connected to Kafka: {self._reason}")
        return RetryLater(f"{topic}: the broker did not answer in time")

    async def check(self) -> str:
        """See `Checkable`; lists brokers and topics.

        Raises:
            PluginError: no broker answers, or a topic of `topics` does not exist.
        """
        with self._polled(_Report()):
            try:
                # Not abandoned after a cancel: a producer in use cannot be closed.
                cluster = await trio.to_thread.run_sync(
                    partial(self._producers[0].list_topics, timeout=_CHECK_S)
                )
            except KafkaException as exc:
                reason = self._reason or exc.args[0].name()
                raise PluginError(f"not connected to Kafka: {reason}") from None
        count = f"{len(cluster.brokers)} broker{'s' * (len(cluster.brokers) != 1)}"
        plain_topics = [topic for topic in self._settings.topics if not _GLOB.search(topic)]
        missing = [topic for topic in plain_topics if topic not in cluster.topics]
        if missing:
            raise PluginError(f"{count}, but no topic {', '.join(missing)}")
        if not plain_topics:
            return f"{count}, {len(cluster.topics)} topic{'s' * (len(cluster.topics) != 1)}"
        return f"{count}, topic{'s' * (len(plain_topics) != 1)} {', '.join(plain_topics)} found"
