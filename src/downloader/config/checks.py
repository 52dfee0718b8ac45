"""Types of the values of settings, with bounds and checks.

A check raises `ValueError`; the message does not repeat the value, only the name of a header.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, SecretStr

from downloader.net import Url, UrlError, is_field_value, is_forbidden, is_token, parse_endpoint

EMBEDDED = "embedded"
"""The `redis.url` for a Valkey started by the service."""

ENCRYPTION_KEY_BYTES = 32
"""Length of a key: 16 bytes to encrypt (AES-128) and 16 to authenticate (HMAC-SHA256)."""

MIN_TOKEN_CHARS = 16
"""Least length of a token, so that guessing is hopeless."""

LONGEST_S = 3600.0
"""Largest lease, grace period and timeout; a larger number is most likely a mistake."""

MAX_S = 1e11
"""Upper bound of durations, 3,000 years: a time so far ahead is still a date (the last year is 9999), and
exact in a double as milliseconds."""


class Section(BaseModel):
    """A table of the configuration; unknown keys are refused, and no message repeats a value."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


def _no_bool(value: object) -> object:
    """Refuse booleans, which pydantic takes for 0 and 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic wants ValueError
    return value


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not is_token(name):
            raise ValueError(f"{name!r} is not a header name")
        if is_forbidden(name):
            raise ValueError(f"{name} is set by the downloader itself")
        if not is_field_value(value):
            raise ValueError(f"the value of {name} has characters that a header cannot have")
    return headers


def _base_url(url: str) -> str:
    return parse_endpoint(url).text if url else url


def _redis_url(url: str) -> str:
    if url == EMBEDDED:
        return url
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme == "unix" and parts.path:
        return url
    if parts.scheme in ("redis", "rediss"):
        return url
    raise ValueError("must be 'embedded', or a redis://, rediss:// or unix:// URL")


def _node(node: str) -> str:
    host, _, port = node.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) <= 65535  # noqa: PLR2004 - TCP's
    # A URL may contain a password, and errors of the connection name the host.
    if not host or "/" in host or "@" in host or not is_port:
        raise ValueError("must be host:port")
    return node


def _bearer(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if len(text) < MIN_TOKEN_CHARS:
        raise ValueError(f"must have at least {MIN_TOKEN_CHARS} characters")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be printable ASCII characters without blanks: the token is sent in a header")
    return token


def _encryption_key(key: SecretStr) -> SecretStr:
    try:
        size = len(base64.urlsafe_b64decode(key.get_secret_value()))
    except ValueError:
        size = 0
    if size != ENCRYPTION_KEY_BYTES:
        raise ValueError(f"must be {ENCRYPTION_KEY_BYTES} random bytes in base64 (openssl rand -base64 32)")
    return key


def _host_pattern(host: str) -> str:
    """Normalise a host name, an address, `*.` with a domain, or `*`, for comparison with hosts."""
    if host == "*":
        return host
    domain = host.removeprefix("*.")
    text = f"[{domain}]" if domain.count(":") > 1 and not domain.startswith("[") else domain
    try:
        origin = Url.parse(f"http://{text}", "endpoint").origin
    except UrlError:
        raise ValueError("must be host names, without scheme and path") from None
    if text.rpartition("]")[2].count(":") or "@" in text or "/" in text:
        raise ValueError("must be host names, without scheme, port and path")
    return host[: len(host) - len(domain)] + origin.host.removesuffix(".")


def _cors_origin(text: str) -> str:
    """Normalise an origin to the form of the header `Origin`; `*` stays."""
    if text == "*":
        return text
    try:
        url = Url.parse(text, "endpoint")
    except UrlError:
        raise ValueError("must be origins, such as https://example.org") from None
    if url.target != b"/" or text.endswith("/"):
        raise ValueError("must be http or https origins, without user and path")
    return url.origin.url


def _destination(pattern: str) -> str:
    kind, colon, glob = pattern.partition(":")
    if pattern != "*" and not (kind and colon and glob):
        raise ValueError("must be URLs, or begin with a type of callbacks, such as sqs:NAME")
    return pattern


def _file_name(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    try:
        return str(Path(value).expanduser()) if value.startswith("~") else value
    except RuntimeError:
        raise ValueError("begins with ~ and a user that does not exist") from None


def _folder(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty")
    return _file_name(value) if isinstance(value, str) else value


Number = BeforeValidator(_no_bool)
Seconds = Annotated[float, Number, Field(gt=0, le=MAX_S)]
SecondsOrZero = Annotated[float, Number, Field(ge=0, le=MAX_S)]
ShortSeconds = Annotated[float, Number, Field(gt=0, le=LONGEST_S)]
Percent = Annotated[float, Number, Field(gt=0, le=100)]
Count = Annotated[int, Number, Field(ge=1)]
CountOrZero = Annotated[int, Number, Field(ge=0)]
Size = Annotated[ByteSize, Number, Field(gt=0)]
FileName = Annotated[str, AfterValidator(_file_name)]
HostPort = Annotated[str, AfterValidator(_node)]
RequestHeaders = Annotated[dict[str, str], AfterValidator(_headers)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
EncryptionKey = Annotated[SecretStr, AfterValidator(_encryption_key)]
CorsOrigin = Annotated[str, AfterValidator(_cors_origin)]
DestinationPattern = Annotated[str, AfterValidator(_destination)]
Folder = Annotated[Path, BeforeValidator(_folder)]
Bearer = Annotated[SecretStr, AfterValidator(_bearer)]
HostPattern = Annotated[str, AfterValidator(_host_pattern)]
