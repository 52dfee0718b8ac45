"""Rules for single fields of a job, beyond types and bounds; and the `key`, in which names are filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote

from downloader.content import MimePatterns
from downloader.ids import ID_LENGTH, ID_PREFIX_LENGTH
from downloader.model import FIELD_NAME, SHA256_FILLING, JobSpec, now_ms
from downloader.net import Url, UrlError, Use, is_field_value, is_forbidden, is_token
from downloader.paths import (
    MAX_FOLDER_BYTES,
    has_job_file,
    is_device_name,
    safe_name,
    split_folder,
    split_name,
)
from downloader.storage import BucketUrl, is_bucket_name
from downloader.wire import MAX_HEADERS, unix_ms

MAX_HEADER_BYTES = 8 * 1024
"""Names and values of `request_headers` together: origins commonly accept as much."""

MAX_SEGMENTS = 32
"""Parts of a subpath: each is a folder that is opened for every file."""

MAX_SEGMENT_BYTES = 255
"""A file name's length on common filesystems."""

MAX_AHEAD_MS = 366 * 86_400_000
"""How far ahead `not_before` and `deadline` may be: a year."""

MAX_TAG_CHARS = 64
"""Longest tag."""

_REGION = re.compile(r"[a-z0-9-]{1,32}")

_CONTENT_TYPE = re.compile(rf"{FIELD_NAME}/{FIELD_NAME}(?:[ \t]*;[ -~]*)?")


class FieldError(Exception):
    """The value of a field is refused."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        """The problem code."""
        self.detail = detail
        """The rest of a sentence about the error that begins with the field's name."""


def check_url(text: str, use: Use) -> str:
    """Check a URL for a use; returns the URL unchanged.

    Raises:
        FieldError: with the code of the `UrlError`.
    """
    try:
        Url.parse(text, use)
    except UrlError as error:
        raise FieldError(error.code, error.detail) from None
    return text


def check_printable(text: str) -> str:
    """Check that a text has no control or invisible characters. Raises as `check_url`."""
    if not text.isprintable():
        raise FieldError("characters", "has control or invisible characters")
    return text


def _header_value(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise FieldError("wrong_type", "must have strings or integers as values")
    text = str(value).strip(" \t")
    if not is_field_value(text):
        raise FieldError("header_value", "has a value with characters that no header can hold")
    return text


def _request_headers(headers: object) -> dict[str, str]:
    if not isinstance(headers, dict):
        raise FieldError("wrong_type", "should be a valid object")
    if len(headers) > MAX_HEADERS:
        raise FieldError("too_many_headers", "has more than 32 headers")
    checked: dict[str, tuple[str, str]] = {}
    for name, value in headers.items():
        if not is_token(name):
            raise FieldError("header_name", "has a name that is no token (RFC 9110)")
        checked[name.lower()] = name, _header_value(value)  # of two equal names the last counts
    result = {name: value for name, value in checked.values() if not is_forbidden(name)}
    if sum(len(name) + len(value.encode()) for name, value in result.items()) > MAX_HEADER_BYTES:
        raise FieldError("headers_too_large", "has more than 8 KiB of names and values")
    return result


def check_subpath(text: str) -> str:
    """Check a folder below the storage's root; returns the path without a slash at the end."""
    if text:
        check_path(text, "subpath")
    return text.removesuffix("/")


def check_path(text: str, code: str) -> Sequence[str]:
    """Check a path below the storage's root, with a slash at the end or not; returns the parts.

    Raises:
        FieldError: with `code`, or with `too_long`.
    """
    path = text.removesuffix("/")
    if len(path.encode()) > MAX_FOLDER_BYTES:
        raise FieldError("too_long", "has more than 512 bytes")
    if path.count("/") >= MAX_SEGMENTS:
        raise FieldError("too_long", "has more than 32 parts")
    try:
        parts = split_folder(text)
    except ValueError as error:
        raise FieldError(code, str(error)) from None
    if any(len(part.encode()) > MAX_SEGMENT_BYTES for part in parts):
        raise FieldError(code, "has a part with more than 255 bytes")
    # `abc/abcDEFGHIJKLMN` may be the path of another job's file, where no folder can be made.
    if has_job_file(text):
        raise FieldError(code, "has a part that could be another job's file")
    return parts


def _storage_url(text: str) -> str:
    """Check the URL of a bucket, and of a folder there; returns the URL without a slash at the end."""
    if not text:
        return text
    try:
        url = BucketUrl.parse(text)
    except ValueError as error:
        raise FieldError("malformed", str(error)) from None
    if url.prefix:
        check_path(url.prefix, "malformed")
    return f"{url.bucket}/{url.prefix}".removesuffix("/")


def _tags(tags: Sequence[str]) -> Sequence[str]:
    for tag in tags:
        if not 0 < len(tag) <= MAX_TAG_CHARS or "," in tag:
            raise FieldError("malformed", "has a tag that is empty, has a comma or more than 64 characters")
        check_printable(tag)
    return tuple(dict.fromkeys(tags))


def _mime_type(text: str) -> str:
    try:
        MimePatterns.parse(text)
    except ValueError:
        raise FieldError("mime_pattern", "has a malformed pattern") from None
    return text


def _url(use: Use) -> Callable[[str], str]:
    return lambda text: check_url(text, use) if text else text


def _form(fits: Callable[[str], object]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text and not fits(text):
            raise FieldError("malformed", "is malformed")
        return text

    return check


def _http_date(text: str) -> str:
    """Check an HTTP-date; returns the text unchanged."""
    try:
        if text:
            parsedate_to_datetime(_header_value(text))
    except ValueError:
        detail = "must be a date as in Last-Modified: Fri, 27 Nov 2026 21:00:00 GMT"
        raise FieldError("malformed", detail) from None
    return text


def _ascii_value(text: str) -> str:
    """Check the value of a header in ASCII, the only one that S3 returns unchanged."""
    value = _header_value(text)
    if not value.isascii():
        raise FieldError("header_value", "has characters that are not ASCII")
    return value


def _hexadecimal(digits: int) -> Callable[[str], str]:
    check = _form(re.compile(f"[0-9A-Fa-f]{{{digits}}}").fullmatch)
    return lambda text: check(text).lower()


def _time(text: str) -> int:
    """The Unix time in ms of an RFC 3339 text with an offset from UTC; 0 for an empty text."""
    if not text:
        return 0
    try:
        ms = unix_ms(text)
    except ValueError as error:
        raise FieldError("malformed", str(error)) from None
    if ms > now_ms() + MAX_AHEAD_MS:
        raise FieldError("out_of_range", "must be at most a year ahead")
    return ms


CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "aggr_id": check_printable,
    "group": check_printable,
    "aggr_proxy": _url("proxy"),
    "url": _url("download"),
    "mime_type": _mime_type,
    "request_headers": _request_headers,
    "user_agent": _header_value,
    "s3_bucket": _form(is_bucket_name),
    "s3_region": _form(_REGION.fullmatch),
    "storage_url": _storage_url,
    "subpath": check_subpath,
    "key_exists": lambda text: text or "replace",
    "content_type": _form(_CONTENT_TYPE.fullmatch),
    "content_disposition": _ascii_value,
    "tags": _tags,
    "sha256": _hexadecimal(64),
    "md5": _hexadecimal(32),
    "if_none_match": _header_value,
    "if_modified_since": _http_date,
    "not_before": _time,
    "deadline": _time,
}
"""By field: a function that returns the value to keep, or raises `FieldError`."""


_FILLING = re.compile(r"\{(host|path|name|ext|id|sha256|date)\}")

_MEANT = re.compile(r"[%{}]")
"""Characters with a meaning in keys and URLs, which no value may bring in."""

_NO_NAME = "index"
"""Name of the file of a URL whose path ends with a slash."""

_ANY_ID = "~" * ID_LENGTH
"""A text as long as an id that is no part of any job's file."""


def check_key(template: str, url: str) -> None:
    """Check the key of a job for this valid URL, with the fillings.

    Raises:
        FieldError: the key is not the path of a file that the job may have.
    """
    if _MEANT.search(_FILLING.sub("", template)):
        names = "{host}, {path}, {name}, {ext}, {id}, {sha256}, {date}"
        raise FieldError("key", f"has a % or a brace that belongs to none of {names}")
    path = _filled(template, url=url, job_id=_ANY_ID, created_ms=0).replace(SHA256_FILLING, "0" * 64)
    if path.endswith("/"):
        raise FieldError("key", "must not end with a slash")
    parts = check_path(path, "key")
    if len(path) == ID_PREFIX_LENGTH and path.isascii() and path.isalnum():
        raise FieldError("key", "of three letters or digits could be the folder of another job's file")
    if any(map(is_device_name, parts)):
        raise FieldError("key", "has a part that is the name of a device on Windows")


def filled_key(spec: JobSpec) -> str:
    """The checked key of a job with everything filled in that is known before the download."""
    return _filled(spec.key, url=spec.url, job_id=spec.id, created_ms=spec.created_ms)


def _filled(template: str, *, url: str, job_id: str, created_ms: int) -> str:
    parsed = Url.parse(url, "download")
    path = parsed.target.decode().partition("?")[0]
    parts = [_MEANT.sub("_", safe_name(unquote(part))) for part in path.split("/")]
    parts = [part for part in parts[:-1] if part] + [parts[-1] or _NO_NAME]
    name, extension = split_name(parts[-1])
    values = {
        "host": safe_name(parsed.origin.host),
        "path": "/".join(parts),
        "name": name,
        "ext": extension,
        "id": job_id,
        "sha256": SHA256_FILLING,
        "date": datetime.fromtimestamp(created_ms / 1000, UTC).date().isoformat(),
    }
    return _FILLING.sub(lambda match: values[match[1]], template)
