"""The section `[backends.http]`, and the settings of destinations."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import BaseModel, Field
from standardwebhooks import Webhook

from downloader.errors import ConfigError, PluginError
from downloader.net import Url, UrlError, is_field_value, is_forbidden, is_token, tls_context
from downloader.notify import parse_section
from downloader.webhooks import signer_of

MAX_BATCH = 1000
"""Most callbacks in one request."""

MAX_WAIT_S = 2.0
"""Longest wait for a batch to fill: a destination whose deliveries take more than 5 s counts as slow."""

_OURS = ("content-type", "traceparent", "webhook-", "ce-")
"""Header names, or beginnings of names, that destinations cannot set."""

_FIELDS = {b"user-agent": (b"User-Agent", b"downloader"), b"accept": (b"Accept", b"*/*")}

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel, extra="forbid", frozen=True, hide_input_in_errors=True):
    secret: str = Field(default="", repr=False)
    """Standard Webhooks secret (`whsec_` and base64) for signing callbacks."""
    secrets: list[str] = Field(default_factory=list, repr=False)
    """Several secrets, for rotation: each callback has a signature for each."""
    ca_file: str = ""
    """PEM file of the certificate authorities to trust instead of the system's."""


class DestinationSettings(_Section, frozen=True):
    """`[[backends.http.destinations]]`: what differs for some destinations.

    Secrets, `ca_file` and `timeout` are those of the section where a destination names none.
    """

    match: str
    """URL of an origin, or the beginning of URLs up to the end of a part of the path. The longest match
    wins."""
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    """Sent with each request."""
    timeout: Seconds | None = None
    """Seconds for a whole delivery."""
    certfile: str = ""
    """PEM file of the client's certificate."""
    keyfile: str = ""
    """PEM file of the certificate's key, unless the key is in `certfile`."""
    format: Literal["plain", "cloudevents"] = "plain"
    """`cloudevents`: with the `ce-*` headers of CloudEvents 1.0 (binary mode); the body is the same."""
    batch: int = Field(default=1, ge=1, le=MAX_BATCH)
    """Most callbacks in one request, never more than `concurrency`. More than 1: the body is a JSON array of
    payloads."""
    batch_wait: float = Field(default=0.0, ge=0, le=MAX_WAIT_S, allow_inf_nan=False)
    """Seconds for which a batch waits for more callbacks."""
    concurrency: int | None = Field(default=None, ge=1)
    """Most callbacks to the origin in flight, over all instances, in place of `notifier.per_destination`;
    only where `match` has no path."""
    rate: float | None = Field(default=None, gt=0, le=1e6)
    """Most callbacks to the origin that are sent in a second, over all instances; only where `match` has no
    path."""


class HttpSettings(_Section, frozen=True):
    """`[backends.http]`."""

    timeout: Seconds = 30.0
    """Seconds for a whole delivery."""
    destinations: list[DestinationSettings] = Field(default_factory=list)
    """Destinations with settings of their own."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """How callbacks to some destinations are sent."""

    match: Url | None
    """`None`: the destinations that no other target matches."""
    timeout_s: float
    signers: Sequence[Webhook]
    fields: Sequence[tuple[bytes, bytes]]
    tls: ssl.SSLContext | None
    """`None`: the transport's default."""
    cloudevents: bool
    batch: int
    batch_wait_s: float

    def matches(self, url: Url) -> bool:
        """Whether the destination has the origin and begins with the path.

        A path that a server may read as another one (`..`, also percent-encoded) matches no path, so that the
        headers of one receiver are not sent to another one at the same origin.
        """
        if self.match is None or url.origin != self.match.origin:
            return self.match is None
        start = self.match.target.removesuffix(b"/")
        rest = url.target.removeprefix(start)
        if not url.target.startswith(start) or rest[:1] not in (b"", b"/", b"?"):
            return False
        return not start or not _climbs(rest.decode())


def _climbs(path: str) -> bool:
    while (plain := unquote(path)) != path:
        path = plain
    return ".." in path


def read_targets(section: Mapping[str, Any]) -> Sequence[Target]:
    """The targets of the section, the longest match first and the default last.

    Raises:
        PluginError: the section is invalid, or a file cannot be used.
    """
    settings = parse_section(HttpSettings, section)
    destinations = [
        _target(f"destinations.{place}.", destination, settings)
        for place, destination in enumerate(settings.destinations)
    ]
    places: dict[tuple[object, bytes], int] = {}
    for place, target in enumerate(destinations):
        assert target.match is not None
        first = places.setdefault((target.match.origin, target.match.target.removesuffix(b"/")), place)
        if first != place:
            raise PluginError(f"destinations.{place}.match: is that of destinations.{first} too")
    destinations.sort(key=lambda target: len(target.match.target) if target.match else 0, reverse=True)
    default = Target(
        match=None,
        timeout_s=settings.timeout,
        signers=_signers("", settings),
        fields=list(_FIELDS.values()),
        tls=_tls("", settings.ca_file),
        cloudevents=False,
        batch=1,
        batch_wait_s=0,
    )
    return [*destinations, default]


def _target(key: str, destination: DestinationSettings, section: HttpSettings) -> Target:
    cloudevents = destination.format == "cloudevents"
    if cloudevents and destination.batch > 1:
        raise PluginError(f"{key}format: cloudevents has no batches; leave out batch")
    if destination.keyfile and not destination.certfile:
        raise PluginError(f"{key}keyfile: needs certfile")
    match = _match(key, destination.match)
    for name in ("concurrency", "rate"):
        if getattr(destination, name) and match.target != b"/":
            raise PluginError(f"{key}{name}: needs a match without a path, since it is of a whole origin")
    signs = destination.secret or destination.secrets
    return Target(
        match=match,
        timeout_s=destination.timeout or section.timeout,
        signers=_signers(key if signs else "", destination if signs else section),
        fields=_fields(key, destination.headers),
        tls=_tls(
            key,
            destination.ca_file or section.ca_file,
            certificate=(destination.certfile, destination.keyfile),
        ),
        cloudevents=cloudevents,
        batch=destination.batch,
        batch_wait_s=destination.batch_wait,
    )


def _match(key: str, text: str) -> Url:
    try:
        Url.parse(text, "callback")
        url = Url.parse(text, "endpoint")
    except UrlError as exc:
        raise PluginError(f"{key}match: {exc.detail}") from None
    if _climbs(url.target.decode()):
        raise PluginError(f"{key}match: has .. in its path")
    return url


def _fields(key: str, headers: Mapping[str, str]) -> Sequence[tuple[bytes, bytes]]:
    fields = dict(_FIELDS)
    for name, value in headers.items():
        if not is_token(name) or is_forbidden(name) or name.lower().startswith(_OURS):
            raise PluginError(f"{key}headers: {name} cannot be set")
        if not is_field_value(value):
            raise PluginError(f"{key}headers.{name}: has characters that no header can hold")
        fields[name.lower().encode()] = name.encode(), value.encode()
    return list(fields.values())


def _signers(key: str, section: _Section) -> Sequence[Webhook]:
    by_key = [(f"{key}secrets.{index}", secret) for index, secret in enumerate(section.secrets)]
    if section.secret:
        by_key.insert(0, (f"{key}secret", section.secret))
    signers = []
    for name, secret in by_key:
        try:
            signers.append(signer_of(secret))
        except ConfigError as exc:
            raise PluginError(f"{name}: {exc}") from None
    return signers


def _tls(key: str, ca_file: str, *, certificate: tuple[str, str] = ("", "")) -> ssl.SSLContext | None:
    """A context with these authorities and certificate; `None` without files: the transport's default."""
    certfile, keyfile = certificate
    if not ca_file and not certfile:
        return None
    try:
        context = tls_context(ca_file)
    except OSError as exc:  # includes ssl.SSLError, for a file without certificates
        raise PluginError(f"{key}ca_file: {ca_file} cannot be used: {exc.strerror or exc}") from exc
    if certfile:
        try:
            context.load_cert_chain(certfile, keyfile or None)
        except OSError as exc:
            raise PluginError(f"{key}certfile: {certfile} cannot be used: {exc.strerror or exc}") from exc
    return context
