"""The fields of a job: type, bounds and rules of each. `parse` has the rules between fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from downloader.api.views import unix_ms
from downloader.content import MimePatterns
from downloader.ids import ID_LENGTH
from downloader.net import (
    FIELD_NAME,
    MAX_URL_CHARS,
    Url,
    UrlError,
    Use,
    is_field_value,
    is_forbidden,
    is_token,
)
from downloader.paths import MAX_FOLDER_BYTES, split_folder
from downloader.storage import is_bucket_name

MAX_INT = 2**31 - 1
"""Largest limit or timeout: the largest 32-bit integer, which some clients send for "no limit"."""

MAX_SIZE = 2**63 - 1
"""Largest size of a file in bytes that file systems and storages can have."""

MAX_RATE = 1e6
"""Starts per second: more than any fleet reaches."""

MAX_DELAY_S = 86400
"""A day, which is also the longest time between two starts that a rate can demand."""

MAX_RETRIES = 1000
"""Takes months at the default backoff."""

MAX_PRIORITY = 9
"""As in `_lib.lua`; 0, the default, is the lowest."""

MAX_HEADERS = 32
MAX_HEADER_BYTES = 8 * 1024
"""Names and values of `request_headers` together: origins commonly accept as much."""

MAX_DESTINATION_CHARS = 2048
"""Length of a callback's destination that is no URL: SQS queue URLs and Kafka topics are far shorter."""

MAX_SEGMENTS = 32
"""Parts of a subpath: each is a folder that is opened for every file."""

MAX_SEGMENT_BYTES = 255
"""A file name's length on common filesystems."""

NO_CALLBACK = "none"
"""`callback_type` of a job without a callback, whose client asks for the result."""

_REGION = re.compile(r"[a-z0-9-]{1,32}")

_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")


def _whole(value: object) -> object:
    """Convert `4.0` to 4: JSON does not distinguish integers from floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]


def check_url(text: str, use: Use) -> str:
    """Check a URL for a use; returns it unchanged.

    Raises:
        PydanticCustomError: with the code of the `UrlError`.
    """
    try:
        Url.parse(text, use)
    except UrlError as error:
        raise PydanticCustomError("url", "{detail}", {"code": error.code, "detail": error.detail}) from None
    return text


def check_printable(text: str) -> str:
    """Check that a text has no control or invisible characters. Raises as `check_url`."""
    if not text.isprintable():
        raise PydanticCustomError("characters", "has control or invisible characters")
    return text


def _header_value(value: object) -> str:
    value = _whole(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise PydanticCustomError("wrong_type", "must have strings or integers as values")
    text = str(value).strip(" \t")
    if not is_field_value(text):
        raise PydanticCustomError("header_value", "has a value with characters that no header can hold")
    return text


def _request_headers(headers: dict[str, Any]) -> dict[str, str]:
    if len(headers) > MAX_HEADERS:
        raise PydanticCustomError("too_many_headers", "has more than 32 headers")
    if len({name.lower() for name in headers}) != len(headers):
        raise PydanticCustomError("header_name", "has a name twice")
    for name in headers:
        if not is_token(name):
            raise PydanticCustomError("header_name", "has a name that is no token (RFC 9110)")
        if is_forbidden(name):
            raise PydanticCustomError("header_forbidden", "has a header that the downloader sets itself")
    result = {name: _header_value(value) for name, value in headers.items()}
    if sum(len(name) + len(value.encode()) for name, value in result.items()) > MAX_HEADER_BYTES:
        raise PydanticCustomError("headers_too_large", "has more than 8 KiB of names and values")
    return result


def check_subpath(text: str) -> str:
    """Check a folder below the storage's root; returns it without a slash at its end."""
    path = text.removesuffix("/")
    if not text:
        return path
    if len(path.encode()) > MAX_FOLDER_BYTES:
        raise PydanticCustomError("too_long", "has more than 512 bytes")
    if path.count("/") >= MAX_SEGMENTS:
        raise PydanticCustomError("too_long", "has more than 32 parts")
    try:
        parts = split_folder(text)
    except ValueError as error:
        raise PydanticCustomError("subpath", "{reason}", {"reason": str(error)}) from None
    if any(len(part.encode()) > MAX_SEGMENT_BYTES for part in parts):
        raise PydanticCustomError("subpath", "has a part with more than 255 bytes")
    # `abc/abcDEFGHIJKLMN` may be the path of another job's file, where no folder can be made.
    if any(len(part) == ID_LENGTH and part.startswith(folder) for folder, part in pairwise(parts)):
        raise PydanticCustomError("subpath", "has a part that could be another job's file")
    return path


def _mime_type(text: str) -> str:
    try:
        MimePatterns.parse(text)
    except ValueError:
        raise PydanticCustomError("mime_pattern", "has a malformed pattern") from None
    return text


def _matches(fits: Callable[[str], object]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text and not fits(text):
            raise PydanticCustomError("malformed", "is malformed")
        return text

    return check


def _time(text: object) -> int:
    """A time with its offset from UTC, as RFC 3339 has it, in Unix ms."""
    if not isinstance(text, str):
        raise PydanticCustomError("wrong_type", "must be a string")
    try:
        return unix_ms(text) if text else 0
    except ValueError as error:
        raise PydanticCustomError("malformed", str(error)) from None


def _url(use: Use) -> AfterValidator:
    return AfterValidator(lambda url: check_url(url, use) if url else url)


Rate = Annotated[float, Field(gt=0, le=MAX_RATE)]
Delay = Annotated[float, Field(ge=0, le=MAX_DELAY_S)]


def _described(**schema: Any) -> Any:
    """Additions to a field's JSON schema: examples, and rules that validators check in code."""
    return Field(json_schema_extra=schema)


_HTTP = {"format": "uri", "maxLength": MAX_URL_CHARS}
_TIME = _described(type="string", format="date-time", default=None)


class DownloadRequest(BaseModel):
    """The fields of one job. Unknown ones are ignored, and null means absent."""

    model_config = ConfigDict(
        strict=True, extra="ignore", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    aggr_id: Annotated[
        str,
        Field(min_length=1, max_length=128),
        AfterValidator(check_printable),
        _described(examples=["example.org"]),
    ]
    """The aggregation: a group of jobs with a common limit, usually those of one origin. Printable
    characters."""
    aggr_limit: Annotated[Integer, Field(ge=1, le=MAX_INT), _described(examples=[4])]
    """At most this many downloads of the aggregation at once, over all instances. The newest accepted job's
    value applies."""
    aggr_proxy: Annotated[str, _url("proxy"), _described(**_HTTP)] = ""
    """Proxy URL (http, https, socks5) of the whole aggregation; fixed when the aggregation is first seen."""
    aggr_rate: Rate | None = None
    """At most this many downloads of the aggregation start in a second, over all instances. The value of the
    newest accepted job that has this field applies."""
    aggr_delay: Delay | None = None
    """At least this many seconds between two starts of the aggregation. The newest value applies, as for
    `aggr_rate`."""
    url: Annotated[
        str,
        Field(min_length=1),
        _url("download"),
        _described(examples=["https://example.org/image.png"], **_HTTP),
    ]
    """Absolute http or https URL; echoed byte for byte as `resource_url`. Read as a browser reads it:
    surrounding blanks are dropped, characters that a URL cannot have are percent-encoded; user and password
    are sent as Basic authorization. Refused: control characters, a backslash before the path, other
    protocols' ports."""
    callback_type: str = ""
    """A configured backend, such as `http`. `none`: no callback, and no `callback_dst`; the client asks `GET
    /jobs/<id>` instead."""
    callback_dst: Annotated[
        str, _described(examples=["https://client.example/done"], maxLength=MAX_URL_CHARS)
    ] = ""
    """Where the callback goes: for `http` a URL, otherwise a topic, a queue or a prefix."""
    callback_url: Annotated[str, _described(deprecated=True, **_HTTP)] = ""
    """Deprecated: `callback_type` `http` with this destination; wins over the pair."""
    callback_error_type: str = ""
    """As `callback_type`, for failures; without it they go where successes go. `none`: nowhere."""
    callback_error_dst: Annotated[str, _described(maxLength=MAX_URL_CHARS)] = ""
    """As `callback_dst`, for failures."""
    extra: Annotated[Any, _described(examples=["order 17"])] = ""
    """Passed back in the callback; a value that is not a string as its JSON text."""
    mime_type: Annotated[
        str,
        AfterValidator(_mime_type),
        _described(examples=["image/png,image/webp", "!image/vnd.adobe.photoshop,image/*"]),
    ] = ""
    """Comma-separated glob patterns; `!` negates. No negated one may match the content's type, and if there
    are others, at least one of them must."""
    max_retries: Annotated[Integer, Field(ge=0, le=MAX_RETRIES)] | None = None
    """Further attempts; without it `processor.max_retries`."""
    extract_image_size: bool = False
    """Whether to fill `image_size` for jpeg, png, gif, webp and avif."""
    download_timeout: Annotated[Integer, Field(ge=1, le=MAX_INT)] | None = None
    """Seconds for a whole attempt, storing included; without it `processor.download_timeout`, and never more
    than `processor.max_download_timeout`."""
    request_headers: Annotated[
        dict[str, Any],
        AfterValidator(_request_headers),
        _described(
            maxProperties=MAX_HEADERS,
            propertyNames={"pattern": f"^{FIELD_NAME}$"},
            additionalProperties={"type": ["string", "integer"]},
            examples=[{"Referer": "https://example.org/"}],
        ),
    ] = Field(default_factory=dict)
    """Sent with the request; they win over the configured ones. At most 32, 8 KiB together. Those of the
    message framing are refused."""
    user_agent: Annotated[str, Field(max_length=1024), AfterValidator(_header_value)] = ""
    """`User-Agent`, unless `request_headers` has one."""
    s3_bucket: Annotated[str, AfterValidator(_matches(is_bucket_name))] = ""
    """Store in this bucket of the caller instead of the configured storage; needs `s3_region`, and makes the
    callback optional."""
    s3_region: Annotated[str, AfterValidator(_matches(_REGION.fullmatch))] = ""
    """The bucket's region."""
    subpath: Annotated[
        str, AfterValidator(check_subpath), _described(maxLength=MAX_FOLDER_BYTES, examples=["images/2026"])
    ] = ""
    """Folder under the storage root, before `<id[0:3]>/<id>`; at most 32 parts, not beginning with a dot, and
    no part that could be another job's file."""
    sha256: Annotated[str, AfterValidator(_matches(_SHA256.fullmatch)), AfterValidator(str.lower)] = ""
    """The SHA-256 that the file must have, in 64 hexadecimal digits. A file that differs is not stored."""
    size: Annotated[Integer, Field(ge=0, le=MAX_SIZE)] | None = None
    """The number of bytes that the file must have. A file that differs is not stored."""
    priority: Annotated[Integer, Field(ge=0, le=MAX_PRIORITY)] = 0
    """Of an aggregation's jobs that are due, those of the highest priority begin first."""
    not_before: Annotated[int, BeforeValidator(_time), _TIME] = 0
    """A time with its offset from UTC, as in RFC 3339 (`2026-11-27T21:00:00+01:00`). No download begins
    before it, by the store's clock."""
    deadline: Annotated[int, BeforeValidator(_time), _TIME] = 0
    """A time in the same form as `not_before`, by which the file must be stored. Otherwise the job fails with
    `error_code` `deadline`."""
