"""Maps exceptions of aiokafka to results, with reasons that contain no secrets."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import errors

from downloader.notify import Rejected, Result, RetryLater

TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError, errors.RecordTooLargeError)
"""The exceptions for a batch with more bytes than the topic accepts."""


class NotConnected(Exception):
    """No broker can be reached, or none accepts our credentials; the text says why."""


def _text_of(exc: OSError) -> str:
    # asyncio's own text for a refused connection repeats the address.
    return os.strerror(exc.errno) if exc.errno else str(exc) or type(exc).__name__


Reasons = Sequence[tuple[Any, Callable[[Any], str]]]
"""Exception types, subclasses before their bases, and the reason for each."""

_CONNECTING: Reasons = (
    (ssl.SSLCertVerificationError, lambda exc: f"TLS handshake failed: {exc.verify_message}"),
    (ssl.SSLError, lambda exc: f"TLS handshake failed: {exc.reason}"),
    (TimeoutError, lambda _: "no answer in time"),
    (socket.gaierror, lambda exc: f"the name cannot be resolved: {exc.strerror}"),
    (OSError, _text_of),
    (errors.UnsupportedSaslMechanismError, lambda _: "the broker does not offer this sasl_mechanism"),
    (
        # KeyError: aiokafka expects a nonce in SCRAM's error answer (RFC 5802, `e=`).
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
    """The result of a callback to this topic, given the exception."""
    final = _reason(_REJECTED, exc)
    if final is not None:
        return Rejected(f"{topic}: {final}")
    return RetryLater(f"{topic}: {_reason(_RETRIED, exc)}")


def _reason(reasons: Reasons, exc: BaseException) -> str | None:
    return next((describe(exc) for types, describe in reasons if isinstance(exc, types)), None)
