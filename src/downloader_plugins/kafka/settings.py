"""`[backends.kafka]`: the keys, with aiokafka's names, and the TLS context."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from downloader.errors import PluginError
from downloader.notify import parse_section

DEFAULT_PORT = 9092

_MAX_PORT = 65535

_REQUESTS_PER_DELIVERY = 3
"""How many requests may time out within a delivery. The producer gives up a batch after one or two timeouts,
which should happen before the end of the delivery."""


def _servers(value: object) -> object:
    return [server.strip() for server in value.split(",")] if isinstance(value, str) else value


def _server(text: str) -> str:
    host, port = split_server(text)
    if not host or any(char.isspace() or char in "/@" for char in host) or not 0 < port <= _MAX_PORT:
        raise ValueError("must be host:port, or several, separated by commas")
    return text


def split_server(text: str) -> tuple[str, int]:
    """Host and port of `host`, `host:port`, `[address]` or `[address]:port`; port -1 if invalid."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::(\d{1,5}))?", text, re.ASCII)
    if match is None:
        return "", -1
    return match[1] or match[2], int(match[3]) if match[3] else DEFAULT_PORT


def _compression(value: str) -> str:
    if value not in ("none", "gzip") and find_spec("cramjam") is None:
        raise ValueError(f"{value} needs the package cramjam, which is not installed")
    return value


class KafkaSettings(BaseModel, extra="forbid", frozen=True, hide_input_in_errors=True):
    """`[backends.kafka]`."""

    bootstrap_servers: Annotated[
        list[Annotated[str, AfterValidator(_server)]], BeforeValidator(_servers), Field(min_length=1)
    ]
    """Brokers to ask for all other brokers: `"host:port, host:port"`, or a list."""
    topics: list[str] = Field(default_factory=list)
    """Glob patterns of topics that jobs may name as destination; empty: any."""
    timeout: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Seconds for a whole delivery; then the callback is tried again later."""
    client_id: str = "downloader"
    """Name of the client in the brokers' logs and quotas."""
    compression_type: Annotated[
        Literal["none", "gzip", "snappy", "lz4", "zstd"], AfterValidator(_compression)
    ] = "none"
    """`none`, `gzip`, `snappy`, `lz4` or `zstd`; the last three need the package cramjam."""
    max_request_size: int = Field(default=1024 * 1024, gt=0, le=2**31 - 1)
    """Bytes; a larger callback is failed without being sent."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Whether connections are encrypted, and whether the client authenticates."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI"] = "PLAIN"
    """How the client authenticates; `GSSAPI` needs the package gssapi."""
    sasl_plain_username: str = Field(default="", repr=False)
    """User for PLAIN and SCRAM."""
    sasl_plain_password: str = Field(default="", repr=False)
    """Password for PLAIN and SCRAM; a secret."""
    sasl_kerberos_service_name: str = "kafka"
    """For GSSAPI."""
    sasl_kerberos_domain_name: str = ""
    """Domain for GSSAPI; default the broker's host."""
    ssl_cafile: str = ""
    """PEM file of the certificate authorities to trust instead of the system's."""
    ssl_certfile: str = ""
    """PEM file of the client's certificate."""
    ssl_keyfile: str = ""
    """PEM file of the client's key, if not in `ssl_certfile`."""
    ssl_password: str = Field(default="", repr=False)
    """Password of the key; a secret."""
    ssl_check_hostname: bool = True
    """Whether a broker's certificate must be for the broker's host."""

    @property
    def request_ms(self) -> int:
        """Milliseconds for one request."""
        return max(1, int(self.timeout * 1000 / _REQUESTS_PER_DELIVERY))

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol.endswith("SSL")


def read_section(section: Mapping[str, Any]) -> KafkaSettings:
    """Parse and check the section.

    Raises:
        PluginError: one line that names the wrong key, without a value.
    """
    settings = parse_section(KafkaSettings, section)
    for prefix, needed in (("ssl_", "SSL"), ("sasl_", "SASL")):
        ineffective = sorted(name for name in settings.model_fields_set if name.startswith(prefix))
        if ineffective and needed not in settings.security_protocol.split("_"):
            raise PluginError(f"{ineffective[0]}: has no effect unless security_protocol has {needed} in it")
    if settings.security_protocol.startswith("SASL"):
        _check_sasl(settings)
    if settings.ssl_keyfile and not settings.ssl_certfile:
        raise PluginError("ssl_keyfile: needs ssl_certfile")
    return settings


def _check_sasl(settings: KafkaSettings) -> None:
    if settings.sasl_mechanism == "GSSAPI":
        if find_spec("gssapi") is None:
            raise PluginError("sasl_mechanism: GSSAPI needs the package gssapi, which is not installed")
        return
    for name in ("sasl_plain_username", "sasl_plain_password"):
        if not getattr(settings, name):
            raise PluginError(f"{name}: is needed for {settings.sasl_mechanism}")


def ssl_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """The context for connections to brokers; `None` without TLS.

    Raises:
        PluginError: a file cannot be used.
    """
    if not settings.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ssl_cafile or None)
    except OSError as exc:  # includes ssl.SSLError
        raise _unusable("ssl_cafile", settings.ssl_cafile, exc) from None
    context.check_hostname = settings.ssl_check_hostname
    if settings.ssl_certfile:
        try:
            # An empty password is passed too: without one, OpenSSL would ask at the terminal.
            context.load_cert_chain(
                settings.ssl_certfile, settings.ssl_keyfile or None, settings.ssl_password
            )
        except OSError as exc:
            raise _unusable("ssl_certfile", settings.ssl_certfile, exc) from None
    return context


def _unusable(key: str, path: str, exc: OSError) -> PluginError:
    reason = exc.reason if isinstance(exc, ssl.SSLError) else exc.strerror
    return PluginError(f"{key}: {path} cannot be used: {reason or 'no certificate or key in it'}")
