"""The callback of a job."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from downloader.model import JobSpec, Outcome, Verdict
from downloader.wire.base import KnownError


class Callback(BaseModel):
    """The payload of a callback; fields that a newer service adds are ignored."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    success: bool
    """Whether the file was downloaded and stored."""
    error: str
    """For people; empty after a success."""
    extra: str
    """The job's `extra`."""
    resource_url: str
    """The job's `url`, byte for byte."""
    download_url: str
    """The file's path; empty if there is no file."""
    job_id: str
    """The id that `POST /download` returned; the same in each callback of the job."""
    response_code: int
    """The status of the last response; 0 if there was none."""
    delivered: bool
    """Always true."""
    delivery_error: str
    """Always empty."""
    image_size: str
    """`WxH`, if the job asked for the size of an image; otherwise empty."""
    error_code: KnownError
    """The kind of failure, for programs; empty after a success."""
    size: int
    """Bytes of the file."""
    sha256: str
    """Lower-case hexadecimal digits; empty if there is no file."""
    md5: str = ""
    """The job's `md5`, which the file has; empty if the job has none, or if there is no file."""
    mime_type: str
    """Detected in the file's first bytes; empty if there is no file."""
    attempts: int
    """Attempts that counted against the retries."""
    tags: Sequence[str] = ()
    """The job's `tags`."""
    etag: str = ""
    """The response's `ETag`, with quotes, for a later job's `if_none_match`; empty without one."""
    last_modified: str = ""
    """The response's `Last-Modified`, for a later job's `if_modified_since`; empty without one."""
    content_type: str = ""
    """The response's `Content-Type`; empty if it has none. `mime_type` follows from the file's bytes."""
    final_url: str = ""
    """The URL that the file came from, after redirects, without user and password; empty after a failure."""
    not_modified: bool = False
    """Whether the origin answered 304 to the job's `if_none_match` or `if_modified_since`: a success without
    a file."""


def callback_body(
    spec: JobSpec, outcome: Outcome, *, attempts: int, download_url: str, final_url: str = ""
) -> bytes:
    """The body of the callback of a job that has ended, in ASCII; the same for every backend."""
    response = outcome.response
    # No `Callback`: `extra` may have a lone surrogate, which pydantic refuses and JSON in ASCII can express.
    callback = {
        "success": outcome.verdict is Verdict.SUCCEEDED,
        "error": outcome.error,
        "extra": spec.extra,
        "resource_url": spec.url,
        "download_url": download_url if outcome.has_file else "",
        "job_id": spec.id,
        "response_code": outcome.response_code,
        "delivered": True,
        "delivery_error": "",
        "image_size": outcome.file.image_size,
        "error_code": str(outcome.error_code),
        "size": outcome.file.size,
        "sha256": outcome.file.sha256,
        "md5": spec.md5 if outcome.has_file else "",
        "mime_type": outcome.file.mime_type,
        "attempts": attempts,
        "tags": spec.tags,
        "etag": response.etag,
        "last_modified": response.last_modified,
        "content_type": response.content_type,
        "final_url": final_url,
        "not_modified": response.not_modified,
    }
    return _encode(callback).encode("ascii")


_encode = json.JSONEncoder(separators=(",", ":")).encode
