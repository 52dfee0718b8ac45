"""What Kafka's failures mean to a callback, in words that hold no secrets."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import errors

from downloader.notify import Rejected, Result, RetryLater

TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError, errors.RecordTooLargeError)
"""What a batch is refused with that has more bytes than the topic takes."""


class NotConnected(Exception):
    """No broker can be reached, or none lets us in; the text says why."""


def _text_of(exc: OSError) -> str:
    # asyncio's own text for a refused connection repeats the address.
    return os.strerror(exc.errno) if exc.errno else str(exc) or type(exc).__name__


Words = Sequence[tuple[Any, Callable[[Any], str]]]
"""Exception types, the special ones before the general, and what to say."""

_CONNECTING: Words = (
    (ssl.SSLCertVerificationError, lambda exc: f"TLS handshake failed: {exc.verify_message}"),
    (ssl.SSLError, lambda exc: f"TLS handshake failed: {exc.reason}"),
    (TimeoutError, lambda _: "no answer in time"),
    (socket.gaierror, lambda exc: f"the name cannot be resolved: {exc.strerror}"),
    (OSError, _text_of),
    (errors.UnsupportedSaslMechanismError, lambda _: "the broker does not offer this sasl_mechanism"),
    (
        # KeyError: aiokafka finds no nonce in SCRAM's answer that there is an error (RFC 5802, `e=`).
        (errors.SaslAuthenticationFailed, errors.AuthenticationFailedError, KeyError),
        lambda _: "authentication failed",
    ),
    (errors.KafkaConnectionError, lambda _: "the broker closed the connection"),
    (errors.BrokerResponseError, lambda exc: f"the broker answered {exc.message}"),
    (BaseException, lambda exc: f"not understood ({type(exc).__name__})"),
)

_REJECTED: Words = (
    (TOO_LARGE, lambda _: "the topic does not take callbacks of this size"),
    (errors.InvalidTopicError, lambda _: "the broker does not take the destination for a topic"),
)

_RETRIED: Words = (
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
    """Why a broker could not be reached, or did not let us in."""
    return _said(_CONNECTING, exc) or ""


def failure(exc: BaseException, topic: str) -> Result:
    """What becomes of a callback to this topic that was not delivered for this reason."""
    final = _said(_REJECTED, exc)
    if final is not None:
        return Rejected(f"{topic}: {final}")
    return RetryLater(f"{topic}: {_said(_RETRIED, exc)}")


def _said(words: Words, exc: BaseException) -> str | None:
    return next((say(exc) for types, say in words if isinstance(exc, types)), None)
