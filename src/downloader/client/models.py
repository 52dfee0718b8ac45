"""What the clients send and answer. Fields that a newer service adds are kept (`model_extra`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Required, TypedDict

from pydantic import BaseModel, ConfigDict

from downloader.client.errors import ApiProblem
from downloader.model import State

_ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


class JobFields(TypedDict, total=False):
    """The fields of a job, as `POST /download` takes them; `docs/api.md` says what they mean."""

    url: Required[str]
    aggr_id: Required[str]
    aggr_limit: Required[int]
    aggr_rate: float
    aggr_delay: float
    aggr_proxy: str
    callback_type: str
    callback_dst: str
    callback_url: str
    callback_error_type: str
    callback_error_dst: str
    extra: Any
    mime_type: str
    sha256: str
    size: int
    max_retries: int
    extract_image_size: bool
    download_timeout: int
    request_headers: Mapping[str, str | int]
    user_agent: str
    s3_bucket: str
    s3_region: str
    subpath: str
    priority: int
    not_before: str
    deadline: str
    idempotency_key: str
    """The job is accepted once, however often it is sent with this key; made at random if absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The answer to one of many jobs: its id, or the problem with it."""

    job: JobFields
    id: str = ""
    problem: ApiProblem | None = None
    warnings: Sequence[str] = ()
    """What the service ignored, such as a field that it does not know."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)


class Failure(_Answer):
    """One failed attempt."""

    at: datetime | None = None
    error: str = ""


class _Work(_Answer):
    """What download and callback have in common."""

    state: str
    """`pending`, `running`, `succeeded`, `failed` or `cancelled`."""
    attempts: int = 0
    """Those that count against the retries."""
    deliveries: int = 0
    """How often an instance has taken it."""
    due_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    errors: Sequence[Failure] = ()
    """The last failed attempts."""

    @property
    def ended(self) -> bool:
        """No attempt follows, unless it is retried."""
        return self.state in _ENDED


class JobFile(_Answer):
    """A stored file."""

    path: str
    size: int
    sha256: str
    mime_type: str = ""
    image_size: str = ""
    filename: str = ""
    """From the response's `Content-Disposition`; empty if it has none, or with an older service."""


class JobCallback(_Work):
    """The callback of a job whose download has ended."""

    type: str
    destination: str


class Job(_Work):
    """A job: `state` and times are its download's."""

    id: str
    aggr_id: str
    url: str
    """Without passwords and values of the query."""
    created_at: datetime | None = None
    crashes: int = 0
    priority: int = 0
    error: str = ""
    """For people; empty unless the download failed."""
    error_code: str = ""
    """For programs."""
    response_code: int = 0
    file: JobFile | None = None
    download_url: str = ""
    """The stored file's URL."""
    extra: str = ""
    callback: JobCallback | None = None
    """`None` until the download has ended."""
    kept_until: datetime | None = None
    """When file and record are deleted; `None` while download or callback goes on."""

    @property
    def succeeded(self) -> bool:
        """The file is stored."""
        return self.state == State.SUCCEEDED


class ListedJob(_Answer):
    """A job in a list."""

    id: str
    aggr_id: str
    state: str
    """The state of its download."""
    callback: str | None = None
    """The state of its callback; `None` while there is none."""
    finished_at: datetime | None = None
    """When its download ended."""
    failed_at: datetime | None = None
    """When its callback failed; `None` if it did not."""
    error: str = ""
    """The callback's error if it failed, otherwise the download's."""


class AggregationChanges(TypedDict, total=False):
    """The fields of an aggregation that an operator may change; `None` undoes an earlier change."""

    limit: int | None
    """Downloads at once."""
    rate: float | None
    """Starts per second."""
    delay: float | None
    """Seconds between two starts."""
    paused: bool | None


class Aggregation(_Answer):
    """An aggregation that has unfinished downloads."""

    aggr_id: str
    limit: int
    rate: float | None = None
    delay: float | None = None
    overridden: Mapping[str, Any] = {}
    """For each field that an operator has set, what its jobs ask for."""
    proxy: str = ""
    paused: bool = False
    in_flight: int = 0
    pending: int = 0
    cooling_until: datetime | None = None
    """`None` while it does not cool down."""
    cooling_reason: str = ""
    next_due_at: datetime | None = None
    """When its first pending job may start; `None` if none is pending, or while it is paused."""
