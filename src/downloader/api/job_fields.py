"""What the OpenAPI document adds to the schema of a job's fields.

Words, and rules that validators check in code. A test compares the names with those of `DownloadRequest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from downloader.api.fields import MAX_HEADERS, MAX_SUBPATH_BYTES
from downloader.net import FIELD_NAME, MAX_URL_CHARS

_HTTP: Mapping[str, Any] = {"format": "uri", "maxLength": MAX_URL_CHARS}

JOB_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "aggr_id": {
        "description": "The aggregation: a group of jobs with a common limit, usually those of one origin."
        " Printable characters.",
        "examples": ["example.org"],
    },
    "aggr_limit": {
        "description": "At most this many downloads of the aggregation at once, over all instances. The"
        " newest accepted job's value applies.",
        "examples": [4],
    },
    "aggr_rate": {
        "description": "At most this many downloads of the aggregation start in a second, over the fleet. The"
        " newest accepted job that names one counts."
    },
    "aggr_delay": {"description": "Likewise, at least this many seconds between two starts."},
    "aggr_proxy": {
        "description": "Proxy URL (http, https, socks5) of the whole aggregation; fixed when the aggregation"
        " is first seen.",
        **_HTTP,
    },
    "url": {
        "description": "Absolute http or https URL, read as a browser reads it and echoed byte for byte as"
        " `resource_url`. User and password are sent as Basic authorization.",
        "examples": ["https://example.org/image.png"],
        "minLength": 1,
        **_HTTP,
    },
    "callback_type": {
        "description": "A configured backend, or `none` for a client that asks for the result."
    },
    "callback_dst": {
        "description": "Where the callback goes: for `http` a URL, otherwise a topic, a queue or a prefix.",
        "examples": ["https://client.example/done"],
        "maxLength": MAX_URL_CHARS,
    },
    "callback_url": {
        "description": "Deprecated: `callback_type` `http` with this destination; wins over the pair.",
        "deprecated": True,
        **_HTTP,
    },
    "callback_error_type": {"description": "As `callback_type`, for failures; without it they go there too."},
    "callback_error_dst": {
        "description": "As `callback_dst`, for failures.",
        "maxLength": MAX_URL_CHARS,
    },
    "extra": {
        "description": "Passed back in the callback; a value that is not a string as its JSON text.",
        "examples": ["order 17"],
    },
    "mime_type": {
        "description": "Comma-separated glob patterns; `!` negates. No negated one may match the content's"
        " type, and if there are others, at least one must.",
        "examples": ["image/png,image/webp", "!image/vnd.adobe.photoshop,image/*"],
    },
    "max_retries": {"description": "Further attempts; without it `processor.max_retries`."},
    "sha256": {
        "description": "Of the file that is expected, in hex digits; another one fails with `digest`."
    },
    "size": {"description": "Bytes of the file that is expected; another one fails with `digest`."},
    "extract_image_size": {"description": "Fill `image_size` for jpeg, png, gif, webp and avif."},
    "download_timeout": {
        "description": "Seconds for a whole attempt, storing included; without it that of the configuration."
    },
    "request_headers": {
        "description": "Sent with the request; they win over the configured ones. At most 8 KiB together;"
        " those of the message framing are refused.",
        "maxProperties": MAX_HEADERS,
        "propertyNames": {"pattern": f"^{FIELD_NAME}$"},
        "additionalProperties": {"type": ["string", "integer"]},
        "examples": [{"Referer": "https://example.org/"}],
    },
    "user_agent": {"description": "`User-Agent`, unless `request_headers` has one."},
    "s3_bucket": {"description": "Store in this bucket, with `s3_region`; makes the callback optional."},
    "s3_region": {"description": "Of the bucket."},
    "subpath": {
        "description": "Folder under the storage root, before `<id[0:3]>/<id>`.",
        "maxLength": MAX_SUBPATH_BYTES,
        "examples": ["images/2026"],
    },
    "priority": {
        "description": "Of an aggregation's jobs that are due, those of the highest priority begin first."
    },
    "deadline": {
        "description": "The job fails with `deadline` if its file is not stored by this time (RFC 3339).",
        "type": "string",
        "format": "date-time",
        "default": None,
    },
    "not_before": {
        "description": "No download begins before this time (RFC 3339), by the store's clock.",
        "type": "string",
        "format": "date-time",
        "default": None,
    },
}
