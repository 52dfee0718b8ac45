"""Delivers callbacks by POST, signed as Standard Webhooks (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import binascii
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any

import httpcore2
import httpx2
import trio
from pydantic import BaseModel, ConfigDict, Field
from standardwebhooks import Webhook

from downloader.errors import PluginError
from downloader.net import GuardedBackend
from downloader.notify import (
    Delivered,
    EgressRefused,
    Host,
    NameNotResolved,
    Notifier,
    Payload,
    Rejected,
    Result,
    RetryLater,
    TlsFailed,
    describe_status,
    parse_section,
)
from downloader_plugins.http.client import (
    READ_BYTES,
    Answer,
    BadAnswer,
    BadRequest,
    Client,
    Limits,
    Target,
)

_MAX_RETRY_AFTER_S = 86400.0
"""A day: a peer may not put a callback off for ever."""

_MAX_PORT = 65535
_PORTS = {"http": 80, "https": 443}
_WHSEC = "whsec_"

_TARGETS = 1024
"""Destinations that are kept taken apart."""

_RETRIED: dict[type[Exception], str] = {
    NameNotResolved: "{}",
    TlsFailed: "TLS handshake failed: {}",
    httpcore2.ConnectTimeout: "no connection in time",
    httpcore2.ConnectError: "not connected: {}",
    BadAnswer: "bad response: {}",
    httpcore2.NetworkError: "connection lost: {}",
}
"""What may pass; the first kind that fits gives the reason."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class HttpSettings(BaseModel):
    """`[backends.http]`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    timeout: Seconds = 30.0
    """Seconds for a whole delivery."""
    connect_timeout: Seconds = 5.0
    """Seconds to find and reach the destination, and again for its TLS handshake."""
    secret: str = Field(default="", repr=False)
    """Standard Webhooks secret (`whsec_` and base64); callbacks are signed with it."""
    secrets: list[str] = Field(default_factory=list, repr=False)
    """Several, for rotation: each callback carries a signature of each."""
    ca_file: str = ""
    """PEM file of the certificate authorities to trust instead of the system's."""
    max_connections: int = Field(default=64, ge=1)
    """To one destination."""


@asynccontextmanager
async def open_http(
    section: Mapping[str, Any], host: Host, *, limits: Limits | None = None
) -> AsyncIterator[Notifier]:
    """Open the notifier; its connections are closed when it is.

    Raises:
        PluginError: the section is at fault.
    """
    settings = parse_section(HttpSettings, section)
    client = Client(
        network=GuardedBackend(
            host.egress, tls_timeout_s=settings.connect_timeout, max_read_bytes=READ_BYTES
        ),
        tls=_tls(settings.ca_file),
        connect_s=settings.connect_timeout,
        max_connections=settings.max_connections,
        limits=limits or Limits(),
    )
    notifier = _Http(timeout_s=settings.timeout, signers=_signers(settings), client=client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.drop_idle)
        try:
            yield notifier
        finally:
            nursery.cancel_scope.cancel()
            await client.close()


def _signers(settings: HttpSettings) -> tuple[Webhook, ...]:
    named = [(f"secrets.{index}", secret) for index, secret in enumerate(settings.secrets)]
    if settings.secret:
        named.insert(0, ("secret", settings.secret))
    signers = []
    for key, secret in named:
        body = secret.removeprefix(_WHSEC)
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if not secret.startswith(_WHSEC) or not raw:
            raise PluginError(f"{key}: a Standard Webhooks secret is {_WHSEC} and base64")
        signers.append(Webhook(raw))
    return tuple(signers)


def _tls(ca_file: str) -> ssl.SSLContext:
    if not ca_file:
        return httpcore2.default_ssl_context()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # ssl.SSLError, for a file without certificates, is one
        raise PluginError(f"ca_file: {ca_file} cannot be used: {exc.strerror or exc}") from exc


def _target(destination: str) -> Target:
    """Take a destination apart.

    Raises:
        ValueError: it is not an absolute http or https URL.
    """
    try:
        url = httpx2.URL(destination)
    except httpx2.InvalidURL as exc:
        raise ValueError(str(exc)) from exc
    if url.scheme not in _PORTS or not url.host:
        raise ValueError("not an absolute http or https URL")
    if b"%" in url.raw_host or (url.port is not None and not 0 < url.port <= _MAX_PORT):
        raise ValueError("no such host or port")
    headers = [
        (b"Host", url.netloc),
        (b"User-Agent", b"downloader"),
        (b"Accept", b"*/*"),
        (b"Content-Type", b"application/json"),
    ]
    if url.userinfo:
        credentials = base64.b64encode(f"{url.username}:{url.password}".encode())
        headers.append((b"Authorization", b"Basic " + credentials))
    return Target(
        scheme=url.raw_scheme,
        host=url.raw_host.decode("ascii"),
        port=url.port or _PORTS[url.scheme],
        path=url.raw_path,
        headers=tuple(headers),
    )


@dataclass(slots=True, kw_only=True)
class _Http:
    """The notifier."""

    timeout_s: float
    signers: tuple[Webhook, ...]
    client: Client
    targets: Callable[[str], Target] = field(default_factory=lambda: lru_cache(_TARGETS)(_target))

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """See `Notifier`; reasons hold nothing of the URL but its host."""
        try:
            target = self.targets(destination)
        except ValueError:
            return Rejected("the callback's destination is not an absolute http or https URL")
        with trio.move_on_after(self.timeout_s):
            return await self._post(target, payload)
        return RetryLater(f"no answer within {self.timeout_s:g} s")

    async def _post(self, target: Target, payload: Payload) -> Result:
        try:
            return _result(await self.client.post(target, self._headers(payload), payload.body))
        except EgressRefused as exc:
            return Rejected(str(exc))
        except BadRequest:
            return Rejected("the callback's destination cannot be put into a request")
        except tuple(_RETRIED) as exc:
            reason = next(text for kind, text in _RETRIED.items() if isinstance(exc, kind))
            return RetryLater(reason.format(exc))

    def _headers(self, payload: Payload) -> list[tuple[bytes, bytes]]:
        now = int(time.time())
        headers = [
            (b"webhook-id", payload.job_id.encode()),
            (b"webhook-timestamp", str(now).encode()),
        ]
        if self.signers:
            moment, body = datetime.fromtimestamp(now, UTC), payload.body.decode()
            signatures = " ".join(signer.sign(payload.job_id, moment, body) for signer in self.signers)
            headers.append((b"webhook-signature", signatures.encode()))
        return headers


def _result(answer: Answer) -> Result:
    """What the status says."""
    status = answer.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Delivered()
    reason = f"Received Status code {describe_status(status)}"
    if status == HTTPStatus.GONE:
        return Rejected(reason)
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return RetryLater(f"{reason}: redirects are not followed")
    return RetryLater(reason, _retry_after_s(answer.retry_after))


def _retry_after_s(value: bytes | None) -> float | None:
    """Seconds of `Retry-After` (RFC 9110, 10.2.3), a number or a date; `None` without a sensible one."""
    text = (value or b"").decode("latin-1").strip()
    if text.isdecimal() and text.isascii():
        seconds = float(text[:10])
    else:
        try:
            when = parsedate_to_datetime(text)
        except (ValueError, OverflowError):  # the latter for a number of many digits
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return min(seconds, _MAX_RETRY_AFTER_S) if seconds > 0 else None
