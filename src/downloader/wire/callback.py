"""The callback of a job."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict

from downloader.model import JobSpec, Outcome, Verdict


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
    """Where the file is; empty if there is none."""
    job_id: str
    """The id that `POST /download` returned; the same in each callback of the job."""
    response_code: int
    """The status of the last response; 0 if there was none."""
    delivered: bool
    """Always true."""
    delivery_error: str
    """Always empty."""
    image_size: str
    """`WxH`, if the job asked for it; otherwise empty."""
    error_code: str
    """The kind of failure, for programs; empty after a success."""
    size: int
    """Bytes of the file."""
    sha256: str
    """In lower-case hexadecimal digits; empty if there is no file."""
    mime_type: str
    """Detected in the file's first bytes; empty if there is no file."""
    attempts: int
    """Attempts that counted against the retries."""


def callback_body(spec: JobSpec, outcome: Outcome, *, attempts: int, download_url: str) -> bytes:
    """The body of the callback of a job that has ended, in ASCII; the same for every backend."""
    success = outcome.verdict is Verdict.SUCCEEDED
    # Unchecked: `extra` may have a lone surrogate, which pydantic refuses and JSON in ASCII can express.
    callback = Callback.model_construct(
        success=success,
        error=outcome.error,
        extra=spec.extra,
        resource_url=spec.url,
        download_url=download_url if success else "",
        job_id=spec.id,
        response_code=outcome.response_code,
        delivered=True,
        delivery_error="",
        image_size=outcome.file.image_size,
        error_code=str(outcome.error_code),
        size=outcome.file.size,
        sha256=outcome.file.sha256,
        mime_type=outcome.file.mime_type,
        attempts=attempts,
    )
    return _encode(dict(callback)).encode("ascii")


_encode = json.JSONEncoder(separators=(",", ":")).encode
