"""The fields of a job: type, bounds and rules of each, and the rules between fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from downloader.api.auth import Caller, check_job
from downloader.api.globs import Allows
from downloader.api.json import member_text
from downloader.api.problems import Problem, Refused
from downloader.content import MimePatterns
from downloader.model import ID_LENGTH, JobSpec, is_reserved, now_ms
from downloader.net import Url, UrlError, Use, is_forbidden
from downloader.storage import is_bucket_name

MAX_INT = 2**31 - 1
"""Of a limit or a timeout: the largest 32-bit integer, which some clients send for "no limit"."""

MAX_SIZE = 2**63 - 1
"""Of a file, in bytes: the largest that file systems and storages know."""

MAX_RETRIES = 1000
"""Takes months at the default backoff."""

MAX_HEADERS = 32
MAX_HEADER_BYTES = 8 * 1024
"""Names and values of `request_headers` together: origins commonly accept as much."""

MAX_DESTINATION_CHARS = 2048
"""Of a callback's destination that is no URL: SQS queue URLs and Kafka topics are far shorter."""

MAX_SUBPATH_BYTES = 512
"""An S3 key has at most 1024 bytes: prefix, subpath and file name."""

MAX_SEGMENTS = 32
"""Parts of a subpath: each is a folder that is opened for every file."""

MAX_SEGMENT_BYTES = 255
"""A file name's length on common filesystems."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110, 5.6.2."""
_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\U0010ffff]*")
"""RFC 9110, 5.5: no control characters; non-ASCII characters are sent as UTF-8."""

_REGION = re.compile(r"[a-z0-9-]{1,32}")

_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")

_CODES = {
    "missing": "required",
    "string_type": "wrong_type",
    "int_type": "wrong_type",
    "bool_type": "wrong_type",
    "dict_type": "wrong_type",
    "string_too_short": "required",
    "string_too_long": "too_long",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
}
"""Pydantic's error types and their problem codes; the rules below raise the other codes."""


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


def _printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("characters", "has control or invisible characters")
    return text


def _header_value(value: object) -> str:
    value = _whole(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise PydanticCustomError("wrong_type", "must have strings or integers as values")
    text = str(value).strip(" \t")
    if not _VALUE.fullmatch(text):
        raise PydanticCustomError("header_value", "has a value with characters that no header can hold")
    return text


def _request_headers(headers: dict[str, Any]) -> dict[str, str]:
    if len(headers) > MAX_HEADERS:
        raise PydanticCustomError("too_many_headers", "has more than 32 headers")
    if len({name.lower() for name in headers}) != len(headers):
        raise PydanticCustomError("header_name", "has a name twice")
    for name in headers:
        if not _TOKEN.fullmatch(name):
            raise PydanticCustomError("header_name", "has a name that is no token (RFC 9110)")
        if is_forbidden(name):
            raise PydanticCustomError("header_forbidden", "has a header that the downloader sets itself")
    result = {name: _header_value(value) for name, value in headers.items()}
    if sum(len(name) + len(value.encode()) for name, value in result.items()) > MAX_HEADER_BYTES:
        raise PydanticCustomError("headers_too_large", "has more than 8 KiB of names and values")
    return result


def _subpath(text: str) -> str:
    path = text.removesuffix("/")
    if text.startswith("/"):
        raise PydanticCustomError("subpath", "must not be an absolute path")
    if not path.isprintable() or "\\" in path or "%" in path:
        raise PydanticCustomError("subpath", "has control or invisible characters, a backslash or a %")
    if len(path.encode()) > MAX_SUBPATH_BYTES:
        raise PydanticCustomError("too_long", "has more than 512 bytes")
    parts = path.split("/") if path else []
    if len(parts) > MAX_SEGMENTS:
        raise PydanticCustomError("too_long", "has more than 32 parts")
    if path.startswith("."):
        raise PydanticCustomError("subpath", "must not begin with a dot")
    for part in parts:
        if part in ("", ".", "..") or len(part.encode()) > MAX_SEGMENT_BYTES:
            raise PydanticCustomError("subpath", "has an empty or too long part, or one that is . or ..")
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


def _url(use: Use) -> AfterValidator:
    return AfterValidator(lambda url: check_url(url, use) if url else url)


def _required_url(url: str) -> str:
    if not url:
        raise PydanticCustomError("required", "is required")
    return check_url(url, "download")


class DownloadRequest(BaseModel):
    """The fields of one job. Unknown ones are ignored, and null means absent."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)

    aggr_id: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
    aggr_limit: Annotated[Integer, Field(ge=1, le=MAX_INT)]
    aggr_proxy: Annotated[str, _url("proxy")] = ""
    url: Annotated[str, AfterValidator(_required_url)]
    callback_type: str = ""
    callback_dst: str = ""
    callback_url: str = ""
    callback_error_type: str = ""
    callback_error_dst: str = ""
    extra: Any = ""
    mime_type: Annotated[str, AfterValidator(_mime_type)] = ""
    max_retries: Annotated[Integer, Field(ge=0, le=MAX_RETRIES)] | None = None
    extract_image_size: bool = False
    download_timeout: Annotated[Integer, Field(ge=1, le=MAX_INT)] | None = None
    request_headers: Annotated[dict[str, Any], AfterValidator(_request_headers)] = Field(default_factory=dict)
    user_agent: Annotated[str, Field(max_length=1024), AfterValidator(_header_value)] = ""
    s3_bucket: Annotated[str, AfterValidator(_matches(is_bucket_name))] = ""
    s3_region: Annotated[str, AfterValidator(_matches(_REGION.fullmatch))] = ""
    subpath: Annotated[str, AfterValidator(_subpath)] = ""
    sha256: Annotated[str, AfterValidator(_matches(_SHA256.fullmatch)), AfterValidator(str.lower)] = ""
    size: Annotated[Integer, Field(ge=0, le=MAX_SIZE)] | None = None


def parse_job(
    body: bytes,
    members: Mapping[str, Any],
    *,
    new_id: Callable[[str], str],
    backends: frozenset[str],
    buckets: Allows,
    caller: Caller | None = None,
) -> JobSpec:
    """Check one job.

    Args:
        body: its JSON object as received.
        members: `parse_object(body)`.
        new_id: returns a new job id, given the aggregation.
        backends: names of the configured notifier backends.
        buckets: whether jobs may name this bucket.
        caller: the submitter, whose allow-lists apply; `None` while the API is open.

    Raises:
        Refused: with the field at fault: 422, or 403 if it is not on the caller's allow-list.
    """
    given = {name: value for name, value in members.items() if value is not None}
    try:
        request = DownloadRequest.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from None
    fields = vars(request).copy()
    if bool(request.s3_bucket) != bool(request.s3_region):
        missing = "s3_region" if request.s3_bucket else "s3_bucket"
        raise _refused(missing, "required", "is required with the other one")
    if request.s3_bucket and not buckets(request.s3_bucket):
        raise _refused("s3_bucket", "bucket_not_allowed", "is not allowed by processor.s3.buckets")
    destination_field = _complete_callbacks(fields, backends)
    if not isinstance(request.extra, str):
        fields["extra"] = member_text(body, "extra")
    spec = JobSpec(id=new_id(request.aggr_id), created_ms=now_ms(), **fields)
    if caller is not None:
        check_job(caller, spec, destination_field=destination_field)
    return spec


def _complete_callbacks(fields: dict[str, Any], backends: frozenset[str]) -> str:
    """Check the callbacks, and fill in those given by `callback_url` or left out.

    Returns:
        The field that `callback_dst` was read from.
    """
    url = fields.pop("callback_url")
    if url:
        if "http" not in backends:
            raise _refused(
                "callback_url", "unknown_backend", "needs the http backend, which is not configured here"
            )
        _check_destination("callback_url", "http", url)
        fields |= {"callback_type": "http", "callback_dst": url}
    elif fields["callback_type"] or fields["callback_dst"] or not fields["s3_bucket"]:
        _check_pair(fields, "callback_type", "callback_dst", backends)
    if fields["callback_error_type"] or fields["callback_error_dst"]:
        _check_pair(fields, "callback_error_type", "callback_error_dst", backends)
    else:
        fields["callback_error_type"] = fields["callback_type"]
        fields["callback_error_dst"] = fields["callback_dst"]
    return "callback_url" if url else "callback_dst"


def _check_pair(fields: Mapping[str, Any], kind: str, destination: str, backends: frozenset[str]) -> None:
    for name in (kind, destination):
        if not fields[name]:
            raise _refused(name, "required", "is required")
    if fields[kind] not in backends:
        raise _refused(kind, "unknown_backend", "is not a backend that is configured here")
    _check_destination(destination, fields[kind], fields[destination])


@lru_cache(maxsize=256)
def _check_destination(field: str, kind: str, destination: str) -> None:
    """Refuse a malformed destination; cached, since jobs of an aggregation nearly always share theirs."""
    try:
        if kind == "http":
            check_url(destination, "callback")
        elif kind == "storage":
            _subpath(destination)
        else:
            _printable(destination)
    except PydanticCustomError as error:
        raise _refused(field, _code(error.type, error.context), error.message()) from None
    if is_reserved(kind, destination):
        raise _refused(field, "reserved", "is one of Kafka's internal topics")
    if kind != "http" and len(destination) > MAX_DESTINATION_CHARS:
        raise _refused(field, "too_long", "has more than 2048 characters")


def _refusal(error: ValidationError) -> Refused:
    """The first of pydantic's errors, without the value."""
    first = error.errors(include_url=False, include_input=False)[0]
    code = _code(first["type"], first.get("ctx"))
    detail = (
        "is required"
        if code == "required"
        else first["msg"].replace("Input ", "").replace("dictionary", "object")
    )
    return _refused(str(first["loc"][0]), code, detail)


def _code(kind: str, context: Mapping[str, Any] | None) -> str:
    """The problem code of a pydantic error."""
    return str(context["code"]) if kind == "url" and context else _CODES.get(kind, kind)


def _refused(field: str, code: str, detail: str) -> Refused:
    return Refused(Problem(HTTPStatus.UNPROCESSABLE_ENTITY, code, detail=f"{field} {detail}.", field=field))
