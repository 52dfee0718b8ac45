"""`[backends.kafka]`: its keys, by the names of aiokafka and of librdkafka, and what follows from them."""

from __future__ import annotations

import difflib
import re
import ssl
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from downloader.errors import PluginError
from downloader.notify import parse_section

DEFAULT_PORT = 9092

_MAX_PORT = 65535

_REQUESTS_PER_DELIVERY = 3
"""So many requests may time out one after the other within a delivery: the producer gives a batch up after
the time of one request, or of two, and should have done so before the delivery is given up."""

_ALIASES = {
    "batch_size": "max_batch_size",
    "compression_codec": "compression_type",
    "message_max_bytes": "max_request_size",
    "metadata_broker_list": "bootstrap_servers",
    "queue_buffering_max_ms": "linger_ms",
    "request_required_acks": "acks",
    "sasl_mechanisms": "sasl_mechanism",
    "sasl_password": "sasl_plain_password",
    "sasl_username": "sasl_plain_username",
    "socket_timeout_ms": "request_timeout_ms",
    "ssl_ca_location": "ssl_cafile",
    "ssl_ca_pem": "ssl_cadata",
    "ssl_certificate_location": "ssl_certfile",
    "ssl_endpoint_identification_algorithm": "ssl_check_hostname",
    "ssl_key_location": "ssl_keyfile",
    "ssl_key_password": "ssl_password",
    "topic_metadata_refresh_interval_ms": "metadata_max_age_ms",
}
"""Names of librdkafka that aiokafka calls differently."""

_MILLISECONDS = ("delivery_timeout_ms", "message_timeout_ms")
"""librdkafka's names of what is `timeout` here, in seconds."""

_REFUSED = {
    **dict.fromkeys(
        ("message_send_max_retries", "retries"),
        "notifier.retry_schedule says how often a callback is tried",
    ),
    **dict.fromkeys(
        ("transactional_id", "transaction_timeout_ms"),
        "a callback is one message, so there is nothing to be put into a transaction",
    ),
    **dict.fromkeys(
        ("key_serializer", "value_serializer"),
        "key and value are bytes already: the job's id and the payload",
    ),
    "partitioner": "the job's id decides the partition, as in the Java client",
    "ssl_context": "give ssl_cafile, ssl_certfile and ssl_keyfile",
    "sasl_oauth_token_provider": "tokens would need code; PLAIN, SCRAM and GSSAPI are supported",
}
"""Keys that a producer of one of the clients has, and why ours has not."""


def _no_bool(value: object) -> object:
    """Pydantic takes `true` for 1; in a file of settings it is a mistake."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic wants ValueError
    return value


def _servers(value: object) -> object:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list):
        return value
    return [server.strip() if isinstance(server, str) else server for server in value]


def _server(text: str) -> str:
    host, port = split_server(text)
    if not host or any(char.isspace() or char in "/@" for char in host) or not 0 < port <= _MAX_PORT:
        raise ValueError("must be host:port, or several, separated by commas")
    return text


def split_server(text: str) -> tuple[str, int]:
    """Host and port of `host`, `host:port`, `[address]` or `[address]:port`; port -1 if it is no number."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::(\d{1,5}))?", text, re.ASCII)
    if match is None:
        return "", -1
    return match[1] or match[2], int(match[3]) if match[3] else DEFAULT_PORT


def _acks(value: object) -> object:
    if value in ("all", "-1") or (value == -1 and not isinstance(value, bool)):
        return "all"
    raise ValueError('must be "all": a callback is delivered when all in-sync replicas have it')


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _compression(value: str) -> str:
    if value not in ("none", "gzip") and find_spec("cramjam") is None:
        raise ValueError(f"{value} needs the package cramjam, which is not installed")
    return value


def _check_hostname(value: object) -> object:
    """What librdkafka calls `https` and `none`."""
    return {"https": True, "none": False}.get(value, value) if isinstance(value, str) else value


Number = BeforeValidator(_no_bool)
Seconds = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
Milliseconds = Annotated[int, Number, Field(gt=0, le=2**31 - 1)]
Bytes = Annotated[int, Number, Field(gt=0, le=2**31 - 1)]


class KafkaSettings(BaseModel):
    """`[backends.kafka]`. Names with dots mean the same: `bootstrap.servers`; so do librdkafka's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    bootstrap_servers: Annotated[
        list[Annotated[str, AfterValidator(_server)]], BeforeValidator(_servers), Field(min_length=1)
    ]
    """Brokers to ask for the others: `"host:port, host:port"`, or a list of them."""
    topics: list[str] = Field(default_factory=list)
    """Glob patterns of topics that jobs may name as destination; empty: any."""
    timeout: Seconds = 30.0
    """Seconds for a whole delivery; then it is tried again later."""
    acks: Annotated[Literal["all"], BeforeValidator(_acks)] = "all"
    """Only `"all"`: every in-sync replica has the callback when it counts as delivered."""
    client_id: str = "downloader"
    """How the brokers' logs and quotas call this client."""
    compression_type: Annotated[
        Literal["none", "gzip", "snappy", "lz4", "zstd"],
        BeforeValidator(_lower),
        AfterValidator(_compression),
    ] = "none"
    """`none`, `gzip`, `snappy`, `lz4` or `zstd`; the last three need the package cramjam."""
    linger_ms: Annotated[float, Number, Field(ge=0, le=10_000)] = 0.0
    """Milliseconds to wait for more callbacks to send with the first. Those that come while a request is
    under way are gathered anyhow."""
    max_batch_size: Bytes = 128 * 1024
    """Bytes that go to one partition at once; a larger callback goes alone."""
    max_request_size: Bytes = 1024 * 1024
    """Bytes; a larger callback is failed without being sent."""
    request_timeout_ms: Milliseconds | None = None
    """Milliseconds for one request; default a third of `timeout`."""
    retry_backoff_ms: Milliseconds = 100
    """Milliseconds between tries of a request within a delivery."""
    metadata_max_age_ms: Milliseconds = 300_000
    """Milliseconds after which the brokers and topics are asked for again at the latest."""
    connections_max_idle_ms: Milliseconds = 540_000
    """Milliseconds after which an unused connection is closed."""
    enable_idempotence: bool = False
    """Whether the brokers drop what the producer repeats by itself. Not every broker speaks it, and a
    callback that is sent again after a lost report is a new message in any case."""
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(_upper)
    ] = "PLAINTEXT"
    """`PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`."""
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI"], BeforeValidator(_upper)
    ] = "PLAIN"
    """`PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`, or `GSSAPI`, which needs the package gssapi."""
    sasl_plain_username: str = Field(default="", repr=False)
    """User for PLAIN and SCRAM."""
    sasl_plain_password: str = Field(default="", repr=False)
    """Password for PLAIN and SCRAM; a secret."""
    sasl_kerberos_service_name: str = "kafka"
    """For GSSAPI."""
    sasl_kerberos_domain_name: str = ""
    """For GSSAPI; default the broker's host."""
    ssl_cafile: str = ""
    """PEM file of the certificate authorities to trust instead of the system's."""
    ssl_capath: str = ""
    """Folder of such certificates, named as OpenSSL wants them."""
    ssl_cadata: str = ""
    """Such certificates themselves, as PEM text."""
    ssl_certfile: str = ""
    """PEM file of the client's certificate."""
    ssl_keyfile: str = ""
    """PEM file of its key, if that is not in `ssl_certfile`."""
    ssl_password: str = Field(default="", repr=False)
    """Password of the key; a secret."""
    ssl_check_hostname: Annotated[bool, BeforeValidator(_check_hostname)] = True
    """Whether a broker's certificate must be for its host."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        given = self.model_fields_set
        for prefix, needed in (("ssl_", "SSL"), ("sasl_", "SASL")):
            named = sorted(name for name in given if name.startswith(prefix))
            if named and needed not in self.security_protocol.split("_"):
                raise _about(
                    named[0],
                    f"has no effect unless security_protocol has {needed} in it",
                )
        if self.security_protocol.startswith("SASL"):
            self._check_sasl()
        if self.ssl_keyfile and not self.ssl_certfile:
            raise _about("ssl_keyfile", "needs ssl_certfile, whose key it is")
        return self

    def _check_sasl(self) -> None:
        if self.sasl_mechanism == "GSSAPI":
            if find_spec("gssapi") is None:
                raise _about("sasl_mechanism", "GSSAPI needs the package gssapi, which is not installed")
            return
        for name in ("sasl_plain_username", "sasl_plain_password"):
            if not getattr(self, name):
                raise _about(name, f"is needed for {self.sasl_mechanism}")

    @property
    def request_ms(self) -> int:
        """Milliseconds for one request."""
        return self.request_timeout_ms or max(1, int(self.timeout * 1000 / _REQUESTS_PER_DELIVERY))

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol.endswith("SSL")


def _about(name: str, problem: str) -> ValueError:
    """A fault of a rule that spans keys, which pydantic would not name; see `read_section`."""
    return ValueError(f"\0{name}: {problem}")


def read_section(section: Mapping[str, Any]) -> KafkaSettings:
    """The section as settings.

    A key may be written with dots or underscores, as aiokafka or as librdkafka calls it. Dotted keys that are
    not quoted arrive as nested tables.

    Raises:
        PluginError: one line that names the key at fault as it was written, and holds no value.
    """
    values: dict[str, Any] = {}
    written: dict[str, str] = {}
    for key, value in _flat(section):
        plain = key.replace(".", "_")
        name = _ALIASES.get(plain, "timeout" if plain in _MILLISECONDS else plain)
        if name in values:
            raise PluginError(f"{key}: means the same as {written[name]}; give one of them")
        if name in _REFUSED:
            raise PluginError(f"{key}: is not for you to set: {_REFUSED[name]}")
        if name not in KafkaSettings.model_fields:
            raise PluginError(f"{key}: there is no such key{_nearest(key)}")
        values[name] = _seconds(key, value) if plain in _MILLISECONDS else value
        written[name] = key
    try:
        return parse_section(KafkaSettings, values)
    except PluginError as exc:
        name, _, problem = str(exc).rpartition("\0")[2].partition(": ")
        field, *rest = name.split(".")
        key = ".".join([written.get(field, field), *rest])
        raise PluginError(f"{key}: {problem.removeprefix('Value error, ')}") from None


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _nearest(key: str) -> str:
    dotted = "." in key
    known = [*KafkaSettings.model_fields, *_ALIASES, *_MILLISECONDS]
    near = difflib.get_close_matches(key.replace(".", "_"), known, n=1)
    if not near:
        return ""
    return f"; did you mean {near[0].replace('_', '.') if dotted else near[0]}?"


def _seconds(key: str, value: object) -> float:
    try:
        return float(value) / 1000  # type: ignore[arg-type]  # whatever it is, the exceptions tell
    except (TypeError, ValueError):
        raise PluginError(f"{key}: must be a number of milliseconds") from None


def ssl_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """The context for connections to brokers; `None` without TLS.

    Raises:
        PluginError: a file or text in it cannot be used.
    """
    if not settings.tls:
        return None
    context = ssl.create_default_context()
    if settings.ssl_cafile or settings.ssl_capath or settings.ssl_cadata:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for key in ("ssl_cafile", "ssl_capath", "ssl_cadata"):
            _trust(context, key, getattr(settings, key))
    context.check_hostname = settings.ssl_check_hostname
    if settings.ssl_certfile:
        try:
            # A password, if an empty one: without any, OpenSSL would ask at the terminal.
            context.load_cert_chain(
                settings.ssl_certfile, settings.ssl_keyfile or None, settings.ssl_password
            )
        except OSError as exc:  # ssl.SSLError is one
            raise PluginError(
                f"ssl_certfile: {settings.ssl_certfile} cannot be used: {_reason(exc)}"
            ) from None
    return context


def _trust(context: ssl.SSLContext, key: str, value: str) -> None:
    if not value:
        return
    try:
        match key:
            case "ssl_cafile":
                context.load_verify_locations(cafile=value)
            case "ssl_capath":
                context.load_verify_locations(capath=value)
            case _:
                context.load_verify_locations(cadata=value)
    except (OSError, ValueError) as exc:
        shown = "its text" if key == "ssl_cadata" else value
        raise PluginError(f"{key}: {shown} cannot be used: {_reason(exc)}") from None


def _reason(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLError):
        return exc.reason or "no certificate or key in it"
    return getattr(exc, "strerror", None) or str(exc)
