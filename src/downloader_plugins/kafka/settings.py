"""`[backends.kafka]`: the keys, and the options of librdkafka that they set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from downloader.errors import PluginError
from downloader.notify import parse_section

_MAX_PORT = 65535

_SERVER = re.compile(r"(?:\[[^\[\]\s/@]+\]|[^:\[\]\s/@]+)(?::(\d{1,5}))?", re.ASCII)
"""`host`, `host:port`, `[address]` or `[address]:port`."""


def _servers(value: object) -> object:
    return [server.strip() for server in value.split(",")] if isinstance(value, str) else value


def _server(text: str) -> str:
    match = _SERVER.fullmatch(text)
    if match is None or not 0 < int(match[1] or 1) <= _MAX_PORT:
        raise ValueError("must be host:port, or several, separated by commas")
    return text


class KafkaSettings(BaseModel, extra="forbid", frozen=True, hide_input_in_errors=True):
    """`[backends.kafka]`."""

    bootstrap_servers: Annotated[
        list[Annotated[str, AfterValidator(_server)]], BeforeValidator(_servers), Field(min_length=1)
    ]
    """Brokers to ask for all other brokers: `"host:port, host:port"`, or a list."""
    topics: list[str] = Field(default_factory=list)
    """Glob patterns of topics that jobs may name as destination; empty: any."""
    timeout: float = Field(default=30.0, ge=0.1, le=3600)
    """Seconds for a whole delivery; then the callback is tried again later."""
    client_id: str = "downloader"
    """Name of the client in the brokers' logs and quotas."""
    compression_type: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    """`none`, `gzip`, `snappy`, `lz4` or `zstd`."""
    max_request_size: int = Field(default=1024 * 1024, ge=1000, le=1_000_000_000)
    """Bytes; a larger callback is failed without being sent."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Whether connections are encrypted, and whether the client authenticates."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI"] = "PLAIN"
    """How the client authenticates; `GSSAPI` needs a confluent-kafka that was built with libsasl2."""
    sasl_plain_username: str = Field(default="", repr=False)
    """User for PLAIN and SCRAM."""
    sasl_plain_password: str = Field(default="", repr=False)
    """Password for PLAIN and SCRAM; a secret."""
    sasl_kerberos_service_name: str = "kafka"
    """For GSSAPI."""
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

    def options(self) -> dict[str, Any]:
        """The options of librdkafka's producer.

        https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
        """
        timeout_ms = int(self.timeout * 1000)
        request_ms = max(timeout_ms // _REQUESTS_PER_DELIVERY, 10)
        options = {option: getattr(self, key) for key, option in OPTIONS.items() if self.applies(key)}
        if options.get("ssl.key.location") == "":
            options["ssl.key.location"] = self.ssl_certfile
        return {name: value for name, value in options.items() if value != ""} | {
            "bootstrap.servers": ",".join(self.bootstrap_servers),
            "acks": "all",
            "partitioner": "murmur2_random",  # that of Java's client
            "batch.size": min(BATCH_BYTES, self.max_request_size),
            "linger.ms": 0,
            # A batch waits for the report of the batch before, so batches grow with the load.
            "max.in.flight.requests.per.connection": 1,
            "message.timeout.ms": timeout_ms,
            # A retry waits a second at most. So the reports of a broker that refuses come before the timeout.
            "retries": max(3, int(self.timeout / 2)),
            "request.timeout.ms": request_ms,
            "socket.timeout.ms": request_ms,
            "socket.connection.setup.timeout.ms": max(1000, min(request_ms, CONNECT_MS)),
            "socket.nagle.disable": True,
            "reconnect.backoff.ms": BACKOFF_MS,
            "reconnect.backoff.max.ms": MAX_BACKOFF_MS,
            "topic.metadata.propagation.max.ms": min(timeout_ms // 2, FIND_TOPIC_MS),
            "log_level": 0,  # errors come through `error_cb`
            "ssl.endpoint.identification.algorithm": "https" if self.ssl_check_hostname else "none",
        }

    def applies(self, key: str) -> bool:
        """Whether a key has an effect with this `security_protocol`."""
        prefix = key.partition("_")[0].upper()
        return prefix not in ("SSL", "SASL") or prefix in self.security_protocol.split("_")


OPTIONS: Mapping[str, str] = {
    "client_id": "client.id",
    "compression_type": "compression.type",
    "max_request_size": "message.max.bytes",
    "security_protocol": "security.protocol",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_plain_username": "sasl.username",
    "sasl_plain_password": "sasl.password",
    "sasl_kerberos_service_name": "sasl.kerberos.service.name",
    "ssl_cafile": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_keyfile": "ssl.key.location",
    "ssl_password": "ssl.key.password",
}
"""The option of librdkafka for each key that is passed on."""

BATCH_BYTES = 128 * 1024
"""Most bytes of a batch; a larger callback is sent alone."""

CONNECT_MS = 5000
"""Time limit for connecting to a broker."""

BACKOFF_MS, MAX_BACKOFF_MS = 500, 5000
"""Shortest and longest pause between attempts to connect. It is the shortest one after a wrong password."""

FIND_TOPIC_MS = 5000
"""Longest wait for a topic to appear, at most half of `timeout`."""

_REQUESTS_PER_DELIVERY = 3
"""How many requests may time out within a delivery."""


def read_section(section: Mapping[str, Any]) -> KafkaSettings:
    """Parse and check the section.

    Raises:
        PluginError: one line that names the wrong key, without a value.
    """
    settings = parse_section(KafkaSettings, section)
    for key in sorted(settings.model_fields_set):
        if not settings.applies(key):
            needed = key.partition("_")[0].upper()
            raise PluginError(f"{key}: has no effect unless security_protocol has {needed} in it")
    if settings.applies("sasl_mechanism") and settings.sasl_mechanism != "GSSAPI":
        for key in ("sasl_plain_username", "sasl_plain_password"):
            if not getattr(settings, key):
                raise PluginError(f"{key}: is needed for {settings.sasl_mechanism}")
    if settings.ssl_keyfile and not settings.ssl_certfile:
        raise PluginError("ssl_keyfile: needs ssl_certfile")
    return settings
