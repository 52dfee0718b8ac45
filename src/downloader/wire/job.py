"""Accepted jobs: states, results and lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from downloader.model import State
from downloader.wire.base import Cursor, KnownError, KnownState, Moment, Warnings, WireModel, optional

_ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


JobId = Annotated[
    str, Field(description="For `GET /jobs/<id>` and `POST /retry/<id>`; also in the callback.")
]

RedactedUrl = Annotated[str, Field(description="Passwords and query values are hidden.")]


class Accepted(WireModel):
    """The id of an accepted job."""

    id: JobId
    warnings: Warnings = ()


class AcceptedLine(Accepted):
    """An accepted job of `POST /downloads`."""

    replayed: Annotated[bool, optional()] = False
    """The line's idempotency key was known; the id is the id of the first job with this key."""


class Failure(WireModel):
    """A failed attempt."""

    at: Moment | None = None
    error: str = ""


class Task(WireModel):
    """A download or a callback. Times are RFC 3339 in UTC."""

    state: KnownState
    attempts: int = 0
    """Attempts that count against the retries."""
    deliveries: int = 0
    """How many times an instance got the task."""
    crashes: int = 0
    """How many instances died while working on the task."""
    instance: str = ""
    """The instance that works on the task, or worked on it last. Empty if unknown, and for a token that does
    not have all aggregations."""
    due_at: Moment | None = None
    started_at: Moment | None = None
    finished_at: Moment | None = None
    errors: Sequence[Failure] = ()
    """The last failed attempts."""

    @property
    def ended(self) -> bool:
        """Whether no attempt follows, except after a retry."""
        return self.state in _ENDED


class JobFile(WireModel):
    """A stored file."""

    path: str
    """Path for `GET /files/<path>`."""
    size: int
    """Bytes."""
    sha256: str
    """Lower-case hexadecimal digits."""
    md5: str = ""
    """The job's `md5`, which the file has; empty if the job has none."""
    mime_type: str = ""
    image_size: str = ""
    """`WxH`, or empty."""
    filename: str = ""
    """From the response's `Content-Disposition`, made safe; empty without a name in the header."""


class JobResponse(WireModel):
    """Metadata of the file from the response; an absent header is an empty text."""

    etag: str = ""
    """`ETag`, with quotes, for a later job's `if_none_match`."""
    last_modified: str = ""
    """`Last-Modified`, for a later job's `if_modified_since`."""
    content_type: str = ""
    """`Content-Type`; `mime_type` of the file follows from the bytes."""
    final_url: RedactedUrl = ""
    """The URL after redirects; empty if there was none."""
    not_modified: bool = False
    """A 304 to the job's `if_none_match` or `if_modified_since`: there is no file."""


class JobCallback(Task):
    """The callback of a job whose download has ended."""

    type: str
    destination: RedactedUrl


class Progress(WireModel):
    """The progress of a download that has run for some seconds."""

    received: int
    """Bytes so far, from the last report of the instance."""
    instance: str
    """The instance that downloads; empty for a token that does not have all aggregations."""


class Redirect(WireModel):
    """A redirect that was followed."""

    status: int
    url: RedactedUrl
    """The target."""


class Attempt(WireModel):
    """The course of an attempt at a download."""

    phases: Mapping[str, float]
    """Seconds by phase: `queue` (from the time at which the job was due), `robots`, `dns`, `connect`, `tls`,
    `first_byte`, `body` and `store`, over all redirects. There is no `dns`, `connect` and `tls` if the
    connection was kept from an earlier download."""
    address: str = ""
    """The address that the last connection went to; empty through a proxy."""
    redirects: Sequence[Redirect] = ()
    """The redirects, in order."""


class Job(Task):
    """A job; the fields of a task are the download's."""

    id: JobId
    aggr_id: str
    url: RedactedUrl
    created_at: Moment | None = None
    priority: int = 0
    error: str = ""
    """For people; empty unless the download failed."""
    error_code: KnownError = ""
    """For programs; empty unless the download failed."""
    response_code: int = 0
    """The status of the last response; 0 if there was none."""
    file: JobFile | None = None
    """`null` until the file is stored."""
    response: JobResponse | None = None
    """`null` until the download has succeeded."""
    download_url: str = ""
    """The file's URL, as in the callback; empty without a file, or while the storage fails."""
    extra: str = ""
    tags: Sequence[str] = ()
    group: str = ""
    """The group that the job belongs to; empty: none."""
    callback: JobCallback | None = None
    """`null` while there is none."""
    last_attempt: Annotated[Attempt | None, optional()] = None
    """The last attempt, if it failed or took at least a second."""
    progress: Annotated[Progress | None, optional()] = None
    """The progress of a download that has run for some seconds."""
    kept_until: Moment | None = None
    """When file and record are deleted; `null` until the download and the callback have ended."""

    @property
    def succeeded(self) -> bool:
        """Whether the file is stored, or not modified."""
        return self.state == "succeeded"


class ListedJob(WireModel):
    """A job in a list."""

    id: JobId
    aggr_id: str
    url: RedactedUrl = ""
    state: KnownState
    """The state of the download."""
    callback: KnownState | None = None
    """The state of the callback; `null` while there is none."""
    finished_at: Moment | None = None
    """When the download ended."""
    failed_at: Moment | None = None
    """When the callback failed; `null` without a failure."""
    error: str = ""
    """The error of a failed callback, otherwise the download's error."""
    error_code: KnownError = ""
    """Error code of the download; empty unless the download failed or was cancelled."""
    destination: str = ""
    """Backend and host, queue, topic or prefix of the callback; empty without one."""
    tags: Annotated[Sequence[str], optional()] = ()
    group: Annotated[str, optional()] = ""
    """The job's group."""
    progress: Annotated[Progress | None, optional()] = None
    """The progress of a download that has run for some seconds."""


class JobPage(WireModel):
    """A page of jobs. Only the last page may be empty."""

    jobs: Sequence[ListedJob]
    cursor: Cursor


class FailureCount(WireModel):
    """Number of failed jobs."""

    jobs: int
    newest_at: Moment | None
    """When the last job failed; `null` without jobs. As `until` of `POST /retry`, it excludes later
    failures."""


class FailureGroup(FailureCount):
    """Failed downloads or callbacks of an aggregation that have the same reason."""

    kind: Literal["download", "callback"]
    aggr_id: str
    error_code: KnownError = ""
    """Error code of the downloads; empty for callbacks."""
    error: str
    newest: str
    """The id of the job that failed last."""


class Failures(WireModel):
    """Jobs whose download or callback failed for good and can be retried, by aggregation and reason."""

    groups: Sequence[FailureGroup]
    """The groups with the most jobs, at most 100."""
    more_groups: int
    downloads: FailureCount
    """Failed downloads of all groups."""
    callbacks: FailureCount
    """Failed callbacks of all groups."""
    complete: bool
    """Whether all failed jobs were counted, not only the newest."""


class Retried(WireModel):
    """The result of a request to retry jobs."""

    retried: int
    """Number of jobs that were retried."""
    cursor: Cursor
