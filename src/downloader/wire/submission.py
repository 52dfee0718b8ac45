"""A job in the form in which clients submit jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    Required,  # pydantic needs this one before Python 3.12
)

from pydantic import ConfigDict, Field, SkipValidation, WithJsonSchema, with_config
from typing_extensions import TypedDict

from downloader.model import FIELD_NAME, MAX_AGGREGATION_CHARS, MAX_URL_CHARS, KeyExists
from downloader.paths import MAX_FOLDER_BYTES
from downloader.wire.aggregation import MAX_INT, Delay, Limit, Rate
from downloader.wire.base import Integer

MAX_SIZE = 2**63 - 1
"""Largest size of a file in bytes that file systems and storages can have."""

MAX_RETRIES = 1000
"""Takes months at the default backoff."""

MAX_PRIORITY = 9
"""Highest priority, the same as in `_lib.lua`; 0, the default, is the lowest."""

MAX_HEADERS = 32

MAX_TAGS = 8
"""Most tags of a job. Each takes memory in the store as long as the job is kept."""

MAX_CONDITION_CHARS = 1024
"""An ETag has some tens of characters."""

NO_CALLBACK = "none"
"""`callback_type` of a job without a callback, whose client polls for the result."""


def _described(**schema: Any) -> Any:
    """Additions to a field's JSON schema: examples, and rules that are checked in code."""
    return Field(json_schema_extra=schema)


_HTTP = {"format": "uri", "maxLength": MAX_URL_CHARS}
_TIME = _described(format="date-time")
_HEADERS = {
    "type": "object",
    "maxProperties": MAX_HEADERS,
    "propertyNames": {"pattern": f"^{FIELD_NAME}$"},
    "additionalProperties": {"type": ["string", "integer"]},
    "examples": [{"Referer": "https://example.org/"}],
}


@with_config(ConfigDict(strict=True, hide_input_in_errors=True, use_attribute_docstrings=True))
class DownloadRequest(TypedDict, total=False):
    """The fields of one job. Unknown fields are ignored, and null means absent."""

    # Types and bounds; what else the service checks is in `api.fields`. The defaults are those of `JobSpec`.

    aggr_id: Required[
        Annotated[
            str, Field(min_length=1, max_length=MAX_AGGREGATION_CHARS), _described(examples=["example.org"])
        ]
    ]
    """Name of the aggregation: the jobs that share limits, usually all jobs of one origin. Printable
    characters."""
    aggr_limit: Required[Annotated[Limit, _described(examples=[4])]]
    """At most this many downloads of the aggregation at once, over all instances. The newest accepted job's
    value applies."""
    aggr_proxy: Annotated[str, _described(**_HTTP)]
    """Proxy URL (http, https, socks5) of the whole aggregation; fixed when the aggregation is first seen."""
    aggr_rate: Rate
    """At most this many downloads of the aggregation start in a second, over all instances. The value of the
    newest accepted job that has this field applies."""
    aggr_delay: Delay
    """At least this many seconds between two starts of the aggregation. The newest value applies, as for
    `aggr_rate`."""
    url: Required[
        Annotated[str, Field(min_length=1), _described(examples=["https://example.org/image.png"], **_HTTP)]
    ]
    """Absolute http or https URL; echoed byte for byte as `resource_url`. Read as a browser reads it:
    surrounding blanks are dropped, characters that a URL cannot have are percent-encoded; user and password
    are sent as Basic authorization. Refused: control characters, a backslash before the path, other
    protocols' ports."""
    callback_type: str
    """A configured backend, such as `http`. `none`: no callback, and no `callback_dst`; the client asks `GET
    /jobs/<id>` instead."""
    callback_dst: Annotated[
        str, _described(examples=["https://client.example/done"], maxLength=MAX_URL_CHARS)
    ]
    """The callback's destination: a URL for `http`, otherwise a topic, a queue or a prefix."""
    callback_url: Annotated[str, _described(deprecated=True, **_HTTP)]
    """Deprecated: `callback_type` `http` with this destination; wins over the pair."""
    callback_error_type: str
    """`callback_type` for failures. By default failures are reported like successes. `none`: no callback."""
    callback_error_dst: Annotated[str, _described(maxLength=MAX_URL_CHARS)]
    """`callback_dst` for failures."""
    extra: Annotated[Any, _described(examples=["order 17"])]
    """Passed back in the callback; a value that is not a string becomes JSON text."""
    mime_type: Annotated[
        str,
        _described(examples=["image/png,image/webp", "!image/vnd.adobe.photoshop,image/*"]),
    ]
    """Comma-separated glob patterns for the content's type; `!` negates. No negated pattern may match, and if
    there are other patterns, at least one of these must match."""
    max_retries: Annotated[Integer, Field(ge=0, le=MAX_RETRIES)]
    """Further attempts; by default `processor.max_retries`."""
    extract_image_size: bool
    """Whether to fill `image_size` for jpeg, png, gif, webp and avif."""
    download_timeout: Annotated[Integer, Field(ge=1, le=MAX_INT)]
    """Seconds for a whole attempt, storing included; by default `processor.download_timeout`, and never more
    than `processor.max_download_timeout`."""
    request_headers: Annotated[Mapping[str, str | int], SkipValidation, WithJsonSchema(_HEADERS)]
    """Request headers, which win over the configured headers. At most 32, 8 KiB together. Of two names that
    differ only in case the last counts. Headers that the downloader sets itself (`Host`, `Range`, hop-by-hop
    headers) are left out, with a warning."""
    user_agent: Annotated[str, Field(max_length=1024)]
    """`User-Agent`, unless `request_headers` has one."""
    s3_bucket: str
    """Store in this bucket of the caller instead of the configured storage; needs `s3_region`, and makes the
    callback optional."""
    s3_region: str
    """The bucket's region."""
    storage_url: Annotated[str, _described(examples=["gs://shop-pictures/new", "az://pictures"])]
    """Store in this bucket of the caller: `gs://BUCKET/PREFIX` in Google Cloud Storage,
    `az://CONTAINER/PREFIX` in Azure, or `s3://BUCKET/PREFIX` with `s3_region`. The file's key follows the
    prefix. Makes the callback optional."""
    subpath: Annotated[str, _described(maxLength=MAX_FOLDER_BYTES, examples=["images/2026"])]
    """Folder under the storage root, before `<id[0:3]>/<id>`; at most 32 parts, not beginning with a dot, and
    no part that could be another job's file."""
    key: Annotated[str, _described(maxLength=MAX_FOLDER_BYTES, examples=["{host}/{path}", "{sha256}{ext}"])]
    """Path of the file under the storage root, in place of `<subpath>/<id[0:3]>/<id>`. `{host}`, `{path}`,
    `{name}`, `{ext}`, `{id}`, `{sha256}` and `{date}` are filled in. The service does not delete the file,
    unless the key has `{sha256}`: then it does when no job has the file any more."""
    key_exists: KeyExists | Literal[""]
    """What to do if a file with this `key` exists: `replace` it (the default), `keep` it, or `fail` with
    `error_code` `key_exists` if it differs."""
    content_type: Annotated[str, Field(max_length=255), _described(examples=["image/png"])]
    """`Content-Type` of the object in S3; by default the type that the file's first bytes have."""
    content_disposition: Annotated[str, Field(max_length=1024), _described(examples=["attachment"])]
    """`Content-Disposition` of the object in S3, in ASCII."""
    tags: Annotated[list[str], Field(max_length=MAX_TAGS), _described(examples=[["import-7", "pictures"]])]
    """Texts of 1 to 64 printable characters without commas, to find and retry jobs by; also in the
    callback."""
    group: Annotated[str, Field(max_length=MAX_AGGREGATION_CHARS), _described(examples=["night-17"])]
    """Name of a group of jobs, in printable characters. When the group is sealed and all its jobs have ended,
    one callback is sent for the group."""
    sha256: str
    """The SHA-256 that the file must have, in 64 hexadecimal digits. A file that differs is not stored."""
    md5: str
    """The MD5 that the file must have, in 32 hexadecimal digits. A file that differs is not stored. MD5 finds
    damage, not forgery; use it only for lists without a better digest."""
    size: Annotated[Integer, Field(ge=0, le=MAX_SIZE)]
    """The number of bytes that the file must have. A file that differs is not stored."""
    max_size: Annotated[Integer, Field(ge=0, le=MAX_SIZE)]
    """Most bytes of the file, never more than `processor.max_size`. A larger file fails with `error_code`
    `too_large`."""
    min_size: Annotated[Integer, Field(ge=0, le=MAX_SIZE)]
    """Least bytes of the file. A smaller file fails with `error_code` `too_small`."""
    min_width: Annotated[Integer, Field(ge=0, le=MAX_INT)]
    """Least width of the image in pixels. A narrower image fails with `error_code` `image_size`, as does a
    file whose width and height cannot be read."""
    min_height: Annotated[Integer, Field(ge=0, le=MAX_INT)]
    """Least height of the image in pixels; as `min_width`."""
    max_pixels: Annotated[Integer, Field(ge=0, le=MAX_SIZE)]
    """Most pixels of the image, width times height; as `min_width`. 0: any."""
    if_none_match: Annotated[str, Field(max_length=MAX_CONDITION_CHARS), _described(examples=['"33a64df5"'])]
    """An `etag` of an earlier response, or several after commas, sent as `If-None-Match`. A 304 ends the job
    as a success without a file, with `not_modified`."""
    if_modified_since: Annotated[
        str,
        Field(max_length=MAX_CONDITION_CHARS),
        _described(examples=["Fri, 27 Nov 2026 21:00:00 GMT"]),
    ]
    """A `last_modified` of an earlier response, sent as `If-Modified-Since`; otherwise as
    `if_none_match`."""
    priority: Annotated[Integer, Field(ge=0, le=MAX_PRIORITY)]
    """Of an aggregation's jobs that are due, the jobs of the highest priority begin first."""
    not_before: Annotated[str, _TIME]
    """A time with an offset from UTC, as in RFC 3339 (`2026-11-27T21:00:00+01:00`). No download begins before
    it, by the store's clock."""
    deadline: Annotated[str, _TIME]
    """A time in the same form as `not_before`, by which the file must be stored. Otherwise the job fails with
    `error_code` `deadline`."""
