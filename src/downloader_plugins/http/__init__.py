"""Notifier that sends callbacks by POST, signed as Standard Webhooks (https://www.standardwebhooks.com)."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any

import httpx2
import trio
from pydantic import BaseModel, Field
from standardwebhooks import Webhook

from downloader.errors import ConfigError, PluginError
from downloader.net import (
    BadRequest,
    NetError,
    ResponseBody,
    Route,
    Transport,
    Url,
    UrlError,
    build_request,
    parse_retry_after,
    tls_context,
)
from downloader.notify import (
    Delivered,
    EgressRefused,
    Host,
    Notifier,
    Payload,
    Rejected,
    Result,
    RetryLater,
    TlsFailed,
    describe_status,
    parse_section,
)
from downloader.webhooks import signer_of

ANSWER_BYTES = 64 * 1024
"""Most bytes read of a response, including head and 1xx."""

ANSWER_S = 2.0
"""Time limit for reading a response after the status; only done to keep the connection."""

_DESTINATIONS = 1024
"""Number of parsed destinations in the cache."""

_KEPT = 64
"""Most idle connections to one destination. `notifier.per_destination` limits those in use."""

_FIELDS = (
    (b"User-Agent", b"downloader"),
    (b"Accept", b"*/*"),
    (b"Content-Type", b"application/json"),
)

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class HttpSettings(BaseModel, extra="forbid", frozen=True, hide_input_in_errors=True):
    """`[backends.http]`."""

    timeout: Seconds = 30.0
    """Seconds for a whole delivery."""
    secret: str = Field(default="", repr=False)
    """Standard Webhooks secret (`whsec_` and base64) for signing callbacks."""
    secrets: list[str] = Field(default_factory=list, repr=False)
    """Several secrets, for rotation: each callback has a signature for each."""
    ca_file: str = ""
    """PEM file of the certificate authorities to trust instead of the system's."""


@asynccontextmanager
async def open_http(
    section: Mapping[str, Any], host: Host, *, answer_s: float = ANSWER_S
) -> AsyncIterator[Notifier]:
    """Open the notifier, which sends through the host's transport.

    Raises:
        PluginError: the section is invalid.
    """
    settings = parse_section(HttpSettings, section)
    tls = _tls(settings.ca_file)

    def route(destination: str) -> Route:
        return Route(
            url=Url.parse(destination, "callback"),
            keep=_KEPT,
            answer_bytes=ANSWER_BYTES,
            tls=tls,
            expect=lambda _phase, _seconds: None,  # the delivery as a whole has a deadline
        )

    yield _Http(
        timeout_s=settings.timeout,
        answer_s=answer_s,
        signers=_signers(settings),
        transport=host.transport,
        route=lru_cache(_DESTINATIONS)(route),
    )


def _signers(settings: HttpSettings) -> tuple[Webhook, ...]:
    by_key = [(f"secrets.{index}", secret) for index, secret in enumerate(settings.secrets)]
    if settings.secret:
        by_key.insert(0, ("secret", settings.secret))
    signers = []
    for key, secret in by_key:
        try:
            signers.append(signer_of(secret))
        except ConfigError as exc:
            raise PluginError(f"{key}: {exc}") from None
    return tuple(signers)


def _tls(ca_file: str) -> ssl.SSLContext | None:
    """A context that trusts the authorities in `ca_file`; `None` without a file: the transport's default."""
    if not ca_file:
        return None
    try:
        return tls_context(ca_file)
    except OSError as exc:  # includes ssl.SSLError, for a file without certificates
        raise PluginError(f"ca_file: {ca_file} cannot be used: {exc.strerror or exc}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class _Http:
    timeout_s: float
    answer_s: float
    signers: tuple[Webhook, ...]
    transport: Transport
    route: Callable[[str], Route]
    """Returns the route to a destination; raises `UrlError`."""

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """See `Notifier`; reasons contain only the host of the URL."""
        try:
            route = self.route(destination)
        except UrlError as exc:
            return Rejected(f"the callback's destination {exc.detail}")
        request = build_request("POST", route, self._fields(payload), payload.body)
        response: httpx2.Response | None = None
        try:
            with trio.move_on_after(self.timeout_s) as scope:
                response = await self.transport.handle_async_request(request)
                scope.deadline = min(scope.deadline, trio.current_time() + self.answer_s)
                await _finish(response)
        except (EgressRefused, BadRequest) as exc:
            return Rejected(str(exc))
        except TlsFailed as exc:
            return RetryLater(f"TLS handshake failed: {exc}")
        except NetError as exc:
            return RetryLater(str(exc))
        return RetryLater(f"no answer within {self.timeout_s:g} s") if response is None else _result(response)

    def _fields(self, payload: Payload) -> list[tuple[bytes, bytes]]:
        now = int(time.time())
        fields = [
            *_FIELDS,
            (b"webhook-id", payload.message_id.encode()),
            (b"webhook-timestamp", b"%d" % now),
        ]
        if payload.traceparent:
            fields.append((b"traceparent", payload.traceparent.encode()))
        if self.signers:
            moment, body = datetime.fromtimestamp(now, UTC), payload.body.decode()
            signatures = " ".join(signer.sign(payload.message_id, moment, body) for signer in self.signers)
            fields.append((b"webhook-signature", signatures.encode()))
        return fields


async def _finish(response: httpx2.Response) -> None:
    """Read the response up to the limits; an error does not change the result."""
    body = response.stream
    assert isinstance(body, ResponseBody)
    with suppress(NetError):
        while await body.read() is not None:
            pass


def _result(response: httpx2.Response) -> Result:
    """The result for a status."""
    status = response.status_code
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Delivered()
    reason = f"Received Status code {describe_status(status)}"
    if status == HTTPStatus.GONE:
        return Rejected(reason)
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return RetryLater(f"{reason}: redirects are not followed")
    after_s = parse_retry_after(response.headers.get("retry-after", ""), datetime.now(UTC))
    return RetryLater(reason, after_s or None)
