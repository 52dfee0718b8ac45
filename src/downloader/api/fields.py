"""The fields of a job: type, bounds and rules of each, and the rules between fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache, partial
from http import HTTPStatus
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from downloader.api.auth import Caller, check_job
from downloader.api.globs import Allows
from downloader.api.json import member_text
from downloader.api.problems import Fault, Refused, faulty
from downloader.api.views import unix_ms
from downloader.content import MimePatterns
from downloader.model import ID_LENGTH, JobSpec, is_reserved, now_ms
from downloader.net import EgressPolicy, EgressRefused, Url, UrlError, Use, is_forbidden, is_token
from downloader.storage import is_bucket_name

MAX_INT = 2**31 - 1
"""Of a limit or a timeout: the largest 32-bit integer, which some clients send for "no limit"."""

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
"""Of a callback's destination that is no URL: SQS queue URLs and Kafka topics are far shorter."""

MAX_SUBPATH_BYTES = 512
"""An S3 key has at most 1024 bytes: prefix, subpath and file name."""

MAX_SEGMENTS = 32
"""Parts of a subpath: each is a folder that is opened for every file."""

MAX_SEGMENT_BYTES = 255
"""A file name's length on common filesystems."""

NO_CALLBACK = "none"
"""`callback_type` of a job without a callback, whose client asks for the result."""

_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\U0010ffff]*")
"""RFC 9110, 5.5: no control characters; non-ASCII characters are sent as UTF-8."""

_REGION = re.compile(r"[a-z0-9-]{1,32}")

_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")

_CODES = {
    "missing": "required",
    "string_type": "wrong_type",
    "int_type": "wrong_type",
    "float_type": "wrong_type",
    "bool_type": "wrong_type",
    "dict_type": "wrong_type",
    "string_too_short": "required",
    "string_too_long": "too_long",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "extra_forbidden": "unknown_field",
}
"""Pydantic's error types and their problem codes; the rules below raise the other codes."""

_DETAILS = {"required": "is required", "unknown_field": "is not a known field"}
"""By problem code, where pydantic's own words would not be understood."""


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
        if not is_token(name):
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


def _required_url(url: str) -> str:
    if not url:
        raise PydanticCustomError("required", "is required")
    return check_url(url, "download")


Rate = Annotated[float, Field(gt=0, le=MAX_RATE)]
Delay = Annotated[float, Field(ge=0, le=MAX_DELAY_S)]


class DownloadRequest(BaseModel):
    """The fields of one job. Unknown ones are ignored, and null means absent."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)

    aggr_id: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
    aggr_limit: Annotated[Integer, Field(ge=1, le=MAX_INT)]
    aggr_proxy: Annotated[str, _url("proxy")] = ""
    aggr_rate: Rate | None = None
    aggr_delay: Delay | None = None
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
    priority: Annotated[Integer, Field(ge=0, le=MAX_PRIORITY)] = 0
    not_before: Annotated[int, BeforeValidator(_time)] = 0
    deadline: Annotated[int, BeforeValidator(_time)] = 0


_KNOWN = frozenset(DownloadRequest.model_fields)

_STAND_INS = {
    "aggr_id": "x",
    "aggr_limit": 1,
    "url": "http://x/",
    "callback_url": "http://x/",
    "s3_bucket": "xxx",
    "s3_region": "x",
}
"""Replaces a field with an error while the other rules are checked, if they need the field."""

MAX_WARNINGS = 10
MAX_NAME_CHARS = 64
"""Length of an unknown field's name in a warning."""


def parse_job(
    body: bytes,
    members: Mapping[str, Any],
    *,
    new_id: Callable[[str], str],
    backends: frozenset[str],
    buckets: Allows,
    egress: EgressPolicy,
    caller: Caller | None = None,
    earlier: Sequence[Fault] = (),
) -> JobSpec:
    """Check one job.

    Args:
        body: its JSON object as received.
        members: `parse_object(body)`.
        new_id: returns a new job id, given the aggregation.
        backends: names of the configured notifier backends.
        buckets: whether jobs may name this bucket.
        egress: the policy of callbacks.
        caller: the submitter, whose allow-lists apply; `None` while the API is open.
        earlier: what is wrong with members that are no fields of a job; answered first.

    Raises:
        Refused: with all fields at fault: 422, or 403 if all are well-formed and some are not on the caller's
            allow-lists.
    """
    given = {name: value for name, value in members.items() if value is not None}
    faults = [*earlier]
    try:
        request = DownloadRequest.model_validate(given)
    except ValidationError as error:
        wrong = _faults(error)
        faults += wrong
        at_fault = {fault.field for fault in wrong}
        rest = {name: value for name, value in given.items() if name not in at_fault}
        stand_ins = {name: value for name, value in _STAND_INS.items() if name in at_fault}
        request = DownloadRequest.model_validate(rest | stand_ins)
    fields = vars(request).copy()
    if bool(request.s3_bucket) != bool(request.s3_region):
        missing = "s3_region" if request.s3_bucket else "s3_bucket"
        faults.append(Fault(missing, "required", "is required with the other one"))
    if request.s3_bucket and not buckets(request.s3_bucket):
        faults.append(Fault("s3_bucket", "bucket_not_allowed", "is not allowed by processor.s3.buckets"))
    if request.deadline and request.deadline <= request.not_before:
        faults.append(Fault("deadline", "out_of_range", "must be later than not_before"))
    destination_field = _complete_callbacks(fields, backends, egress, faults)
    if faults:
        raise Refused(faulty(HTTPStatus.UNPROCESSABLE_ENTITY, _first_of_each_field(faults)))
    if not isinstance(request.extra, str):
        fields["extra"] = member_text(body, "extra")
    spec = JobSpec(id=new_id(request.aggr_id), created_ms=now_ms(), **fields)
    if caller is not None:
        check_job(caller, spec, destination_field=destination_field)
    return spec


def unknown_fields(members: Mapping[str, Any]) -> Sequence[Fault]:
    """A warning for each unknown field, with the most similar known name; at most ten."""
    if members.keys() <= _KNOWN:
        return ()
    return [_unknown(name[:MAX_NAME_CHARS]) for name in members if name not in _KNOWN][:MAX_WARNINGS]


@lru_cache(maxsize=256)
def _unknown(name: str) -> Fault:
    """Cached, since a client sends the same field with each job."""
    near = get_close_matches(name, _KNOWN, 1, 0.7)
    hint = f": do you mean `{near[0]}`?" if near else ""
    return Fault(name, "unknown_field", f"unknown field `{name}`{hint}")


def _complete_callbacks(
    fields: dict[str, Any], backends: frozenset[str], egress: EgressPolicy, faults: list[Fault]
) -> str:
    """Check the callbacks, and fill in those given by `callback_url` or left out.

    Adds to `faults`.

    Returns:
        The field that `callback_dst` was read from.
    """
    pair_faults = partial(_pair_faults, fields, backends=backends, check_host=egress.check_host)
    url = fields.pop("callback_url")
    if url:
        if "http" in backends:
            faults += _destination_faults("callback_url", "http", url, egress.check_host)
        else:
            detail = "needs the http backend, which is not configured here"
            faults.append(Fault("callback_url", "unknown_backend", detail))
        fields |= {"callback_type": "http", "callback_dst": url}
    elif fields["callback_type"] == NO_CALLBACK:
        faults += _clear_pair(fields, "callback_type", "callback_dst")
    elif fields["callback_type"] or fields["callback_dst"] or not fields["s3_bucket"]:
        faults += pair_faults("callback_type", "callback_dst")
    if fields["callback_error_type"] == NO_CALLBACK:
        faults += _clear_pair(fields, "callback_error_type", "callback_error_dst")
    elif fields["callback_error_type"] or fields["callback_error_dst"]:
        faults += pair_faults("callback_error_type", "callback_error_dst")
    else:
        fields["callback_error_type"] = fields["callback_type"]
        fields["callback_error_dst"] = fields["callback_dst"]
    return "callback_url" if url else "callback_dst"


def _clear_pair(fields: dict[str, Any], kind: str, destination: str) -> Iterator[Fault]:
    """Set these fields to no callback, and yield the errors."""
    if fields[destination]:
        yield Fault(destination, "malformed", f"must be absent if {kind} is {NO_CALLBACK}")
    fields[kind] = fields[destination] = ""


def _pair_faults(
    fields: Mapping[str, Any],
    kind: str,
    destination: str,
    *,
    backends: frozenset[str],
    check_host: Callable[[str], None],
) -> Iterator[Fault]:
    """The errors of a callback's type and destination, which are in these fields."""
    if missing := [name for name in (kind, destination) if not fields[name]]:
        yield from (Fault(name, "required", "is required") for name in missing)
    elif fields[kind] not in backends:
        yield Fault(kind, "unknown_backend", "is not a backend that is configured here")
    else:
        yield from _destination_faults(destination, fields[kind], fields[destination], check_host)


@lru_cache(maxsize=256)
def _destination_faults(
    field: str, kind: str, destination: str, check_host: Callable[[str], None]
) -> Sequence[Fault]:
    """What is wrong with a destination; cached, since jobs of an aggregation nearly always share theirs."""
    try:
        if kind == "http":
            check_host(Url.parse(check_url(destination, "callback"), "callback").origin.host)
        elif kind == "storage":
            _subpath(destination)
        else:
            _printable(destination)
    except PydanticCustomError as error:
        return [Fault(field, _code(error.type, error.context), error.message())]
    except EgressRefused:
        return [Fault(field, "egress", "has a host that egress.callbacks does not allow")]
    if is_reserved(kind, destination):
        return [Fault(field, "reserved", "is one of Kafka's internal topics")]
    if kind != "http" and len(destination) > MAX_DESTINATION_CHARS:
        return [Fault(field, "too_long", "has more than 2048 characters")]
    return []


def _first_of_each_field(faults: Iterable[Fault]) -> Sequence[Fault]:
    """The faults as sentences, without those that follow from another fault of the same field."""
    found: dict[str, Fault] = {}
    for fault in faults:
        found.setdefault(fault.field, replace(fault, detail=f"{fault.field} {fault.detail}."))
    return list(found.values())


def refusal(error: ValidationError) -> Refused:
    """422 for a body that a model refused, with all fields at fault."""
    return Refused(faulty(HTTPStatus.UNPROCESSABLE_ENTITY, _first_of_each_field(_faults(error))))


def _faults(error: ValidationError) -> Sequence[Fault]:
    return [_fault(each) for each in error.errors(include_url=False, include_input=False)]


def _fault(error: ErrorDetails) -> Fault:
    """One of pydantic's errors, without the value."""
    code = _code(error["type"], error.get("ctx"))
    detail = _DETAILS.get(code) or error["msg"].replace("Input ", "").replace("dictionary", "object")
    return Fault(str(error["loc"][0]), code, detail)


def _code(kind: str, context: Mapping[str, Any] | None) -> str:
    """The problem code of a pydantic error."""
    return str(context["code"]) if kind == "url" and context else _CODES.get(kind, kind)
