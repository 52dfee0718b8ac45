"""Requests to SQS with boto3. Functions with a client as argument block: call them in threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from downloader.notify import Delivered, Payload, Rejected, Result, RetryLater
from downloader_plugins.aws import error_code, reason_of
from downloader_plugins.sqs.queue import Queue, group_id, same_queue

if TYPE_CHECKING:  # packages of stubs alone, which only type checking has
    from types_boto3_sqs import SQSClient
    from types_boto3_sqs.type_defs import (
        MessageAttributeValueTypeDef,
        SendMessageBatchRequestEntryTypeDef,
        SendMessageBatchResultTypeDef,
    )

P = ParamSpec("P")
T = TypeVar("T")

MESSAGES = 10
"""Most messages in one request: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html"""

MESSAGE_BYTES = 1024 * 1024
"""The largest message that SQS accepts (256 KiB until 2025); a queue may have a lower limit."""

BATCH_BYTES = 256 * 1024
"""Most bytes of several messages in one request, accepted by all versions of SQS and compatible servers. A
larger message is sent alone."""

_MISSING = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
"""Codes for a missing queue; AWS uses the same codes for a forbidden queue."""

_FAULTS_OF_THE_MESSAGE = frozenset(
    {
        "InvalidMessageContents",
        "InvalidParameterValue",
        "BatchRequestTooLong",
        "AWS.SimpleQueueService.BatchRequestTooLong",
    }
)
"""Codes for an invalid body: too large for the queue, or with characters that SQS refuses. Everything else in
the requests is always valid."""


class _NoAnswer(Exception):
    """botocore cannot parse the response, or the response lacks a field."""


FAILURES = (ClientError, BotoCoreError, ResponseParserError, _NoAnswer)
"""The exceptions for `describe`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The result of a request."""

    results: Sequence[Result] = ()
    """A result for each message. Empty if SQS refused all because of one invalid message, so that each has to
    be sent alone."""
    url: str = ""
    """The URL of the queue; empty: to be looked up again."""


def size_of(payload: Payload) -> int:
    """The size in bytes for SQS's limits, with attributes by name, type and value."""
    return len(payload.body) + sum(
        len(name) + len(value["DataType"]) + len(value["StringValue"])
        for name, value in _attributes(payload).items()
    )


def _attributes(payload: Payload) -> dict[str, MessageAttributeValueTypeDef]:
    traceparent = payload.traceparent
    return {"traceparent": {"DataType": "String", "StringValue": traceparent}} if traceparent else {}


def send(client: SQSClient, queue: Queue, cached_url: str, payloads: Sequence[Payload]) -> Sent:
    """Send up to `MESSAGES` messages; several together have at most `BATCH_BYTES`.

    `cached_url` is the URL of an earlier `Sent`, or empty. No exception of botocore is raised.
    """
    try:
        url = cached_url or find(client, queue)
    except FAILURES as exc:
        return _all(payloads, RetryLater(describe(exc, queue)))
    if not url:
        return _all(payloads, Rejected(f"{queue.url} is not the queue {queue.name} of this account"))
    try:
        response = _request(client.send_message_batch, QueueUrl=url, Entries=_entries(queue, payloads))
    except FAILURES as exc:
        if error_code(exc) not in _FAULTS_OF_THE_MESSAGE:
            return _all(payloads, RetryLater(describe(exc, queue)))
        if len(payloads) > 1:
            return Sent(url=url)
        return _all(payloads, Rejected(describe(exc, queue)), url)
    return Sent(results=_results(response, len(payloads)), url=url)


def describe(exc: Exception, queue: Queue | None = None) -> str:
    """The reason for people: SQS's code, but not the text of SQS or botocore."""
    if isinstance(exc, ClientError):
        code = error_code(exc)
        if code in _MISSING and queue is not None:
            return f"queue {queue.name} does not exist or may not be used ({code})"
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return f"SQS answered {status}" if code in ("", str(status)) else f"SQS answered {status} {code}"
    return f"SQS: {'invalid answer' if isinstance(exc, _NoAnswer) else reason_of(exc)}"


def is_denied(exc: Exception) -> bool:
    """Whether SQS denies the permission."""
    return error_code(exc) in ("AccessDenied", "AccessDeniedException")


def _request(operation: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    try:
        return operation(*arguments, **keywords)
    except (AttributeError, TypeError) as exc:  # from botocore's parser, for JSON of another form
        raise _NoAnswer from exc


def find(client: SQSClient, queue: Queue) -> str:
    """The queue's URL; empty if the own queue with that name has another URL than `queue.url`.

    Raises:
        Exception: one of `FAILURES`.
    """
    if not queue.look_up:
        return queue.url
    url: object = _request(client.get_queue_url, QueueName=queue.name).get("QueueUrl")
    if not isinstance(url, str) or not url:
        raise _NoAnswer
    return url if not queue.url or same_queue(url, queue.url) else ""


def _entries(queue: Queue, payloads: Sequence[Payload]) -> list[SendMessageBatchRequestEntryTypeDef]:
    entries: list[SendMessageBatchRequestEntryTypeDef] = []
    for index, payload in enumerate(payloads):
        entry: SendMessageBatchRequestEntryTypeDef = {
            "Id": str(index),
            "MessageBody": payload.body.decode("utf-8"),
        }
        if attributes := _attributes(payload):
            entry["MessageAttributes"] = attributes
        if queue.fifo:
            entry["MessageGroupId"] = group_id(payload.aggr_id)
            entry["MessageDeduplicationId"] = payload.message_id
        entries.append(entry)
    return entries


def _results(response: SendMessageBatchResultTypeDef, count: int) -> list[Result]:
    """The result of each message; a 200 does not mean that all were accepted."""
    results: dict[str, Result] = {row.get("Id", ""): Delivered() for row in response.get("Successful") or ()}
    for failed in response.get("Failed") or ():
        code = failed.get("Code", "")
        reason = f"SQS refused the message: {code}"
        results[failed.get("Id", "")] = (
            Rejected(reason) if code in _FAULTS_OF_THE_MESSAGE else RetryLater(reason)
        )
    unknown = RetryLater("SQS gave no result for the message")
    return [results.get(str(index), unknown) for index in range(count)]


def _all(payloads: Sequence[Payload], result: Result, url: str = "") -> Sent:
    return Sent(results=[result] * len(payloads), url=url)
