"""The JSON of the API's answers, as types: the views build them, and the OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

_ERRORS = "All errors of a job; the first is also in `code`, `detail` and `field`."
_WARNINGS = "Unknown fields of a job, with the known ones that were probably meant; at most ten."

_DOCUMENTED = with_config(ConfigDict(use_attribute_docstrings=True))


# Pydantic does not see the docstrings of fields that a type inherits.
Code = Annotated[str, Field(description="Stable, for programs.")]
Detail = Annotated[str, Field(description="One sentence for people; may change.")]
JobId = Annotated[
    str, Field(description="For `GET /jobs/<id>` and `POST /retry/<id>`; also in the callback.")
]
StateName = Annotated[str, Field(description="`pending`, `running`, `succeeded`, `failed` or `cancelled`.")]
Attempts = Annotated[int, Field(description="Those that count against the retries.")]
Deliveries = Annotated[int, Field(description="How often it was given to an instance.")]
Cursor = Annotated[str, Field(description="Of the next page; empty at the end.")]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


@_DOCUMENTED
class FaultAnswer(TypedDict):
    """An error in one field of a job, or a warning about it."""

    code: Code
    detail: Detail
    field: str


@_DOCUMENTED
class LineProblem(TypedDict):
    """The answer of `POST /downloads` to a line with an error."""

    code: Code
    detail: Detail
    field: NotRequired[Annotated[str, Field(description="The field or header at fault.")]]
    errors: NotRequired[Annotated[list[FaultAnswer], Field(description=_ERRORS)]]
    warnings: NotRequired[Annotated[list[FaultAnswer], Field(description=_WARNINGS)]]


@_DOCUMENTED
class SessionAnswer(TypedDict):
    """Who is signed in."""

    tokens: bool
    """Whether tokens are configured. Without them the API is open, and nobody needs to sign in."""
    name: str | None
    """The token's name; `null`: nobody is signed in."""
    scopes: list[str]
    """The token's scopes; `admin` includes all."""
    expires_at: Time | None
    """When the session ends; `null` without one."""


@_DOCUMENTED
class ProblemAnswer(LineProblem):
    """An error as a problem document (RFC 9457)."""

    type: str
    """Always `about:blank`: `code` is the kind of error."""
    title: str
    """The name of the status."""
    status: int


@_DOCUMENTED
class AcceptedAnswer(TypedDict):
    """An accepted job."""

    id: JobId
    warnings: NotRequired[Annotated[list[FaultAnswer], Field(description=_WARNINGS)]]


@_DOCUMENTED
class AcceptedLine(AcceptedAnswer):
    """An accepted job of `POST /downloads`."""

    replayed: NotRequired[bool]
    """The line's idempotency key was known; the id is that of the first job with this key."""


@_DOCUMENTED
class IdAnswer(TypedDict):
    """The job's id."""

    id: JobId


@_DOCUMENTED
class StatusAnswer(TypedDict):
    """How it is."""

    status: str


@_DOCUMENTED
class ReadyAnswer(TypedDict):
    """Whether this instance can work."""

    status: str
    """`ok`, or `not ready`."""
    store: bool
    """The store answers."""
    roles: dict[str, bool]
    """Whether each role of this process runs."""
    backends: NotRequired[dict[str, bool]]
    """Whether each backend of this process's notifier is healthy; an unhealthy one does not count."""


@_DOCUMENTED
class AttemptError(TypedDict):
    """A failed attempt."""

    at: Time | None
    error: str


@_DOCUMENTED
class TaskAnswer(TypedDict):
    """A download or a callback. Times are RFC 3339 in UTC."""

    state: StateName
    attempts: Attempts
    deliveries: Deliveries
    due_at: Time | None
    started_at: Time | None
    finished_at: Time | None
    errors: Annotated[list[AttemptError], Field(description="Of the last failed attempts.")]


@_DOCUMENTED
class CallbackAnswer(TaskAnswer):
    """A job's callback."""

    type: str
    destination: str
    """Passwords and query values are hidden."""


@_DOCUMENTED
class FileAnswer(TypedDict):
    """A stored file."""

    path: str
    """For `GET /files/<path>`."""
    size: int
    sha256: str
    mime_type: str
    image_size: str
    """`WxH`, or empty."""
    filename: str
    """From the response's `Content-Disposition`, made safe; empty if it has none."""


@_DOCUMENTED
class JobAnswer(TaskAnswer):
    """A job; the fields of a task are those of its download."""

    id: JobId
    aggr_id: str
    url: str
    """Passwords and query values are hidden."""
    created_at: Time | None
    crashes: int
    """How often an instance that worked on it died."""
    priority: int
    error: str
    error_code: str
    response_code: int
    """The status of the last response; 0 if there was none."""
    file: FileAnswer | None
    """`null` until it is stored."""
    download_url: str
    """The file's URL, as in the callback; empty without a file, or while its storage fails."""
    extra: str
    callback: CallbackAnswer | None
    """`null` while there is none."""
    kept_until: Time | None
    """When file and record are deleted; `null` while the download or its callback goes on."""


@_DOCUMENTED
class ListedAnswer(TypedDict):
    """A job in a list."""

    id: JobId
    aggr_id: str
    state: StateName
    callback: str | None
    """The state of its callback; `null` while there is none."""
    finished_at: Time | None
    """When its download ended."""
    failed_at: Time | None
    """When its callback failed; `null` if it did not."""
    error: str
    """The callback's error if it failed, otherwise the download's."""


@_DOCUMENTED
class ListedPageAnswer(TypedDict):
    """Some jobs. A page may be empty although others follow."""

    jobs: list[ListedAnswer]
    cursor: Cursor


@_DOCUMENTED
class FailuresAnswer(TypedDict):
    """What failed lately."""

    jobs: list[ListedAnswer]
    """The newest failures first."""


@_DOCUMENTED
class RetriedAnswer(TypedDict):
    """What was sent again."""

    retried: int
    """How many callbacks of the page."""
    cursor: Cursor


@_DOCUMENTED
class AggregationAnswer(TypedDict):
    """How an aggregation that has unfinished downloads runs."""

    aggr_id: str
    limit: int
    """At most this many downloads at once, over the fleet."""
    rate: float | None
    """At most this many downloads start in a second, over the fleet."""
    delay: float | None
    """At least this many seconds between two starts."""
    overridden: dict[str, float | None]
    """For each field that an operator has set, what the jobs ask for."""
    proxy: str
    """Passwords are hidden; empty without one."""
    paused: bool
    in_flight: int
    pending: int
    cooling_until: Time | None
    """No download starts until then; `null` while it does not cool down."""
    cooling_reason: str
    next_due_at: Time | None


@_DOCUMENTED
class AggregationsAnswer(TypedDict):
    """A page of aggregations; within it the busiest come first."""

    aggregations: list[AggregationAnswer]
    cursor: Cursor
    total: NotRequired[int]
    """With `q` or `sort`: how many match, on all pages."""


@_DOCUMENTED
class WaitingDownloads(TypedDict):
    """Downloads that wait or run."""

    pending: int
    in_flight: int
    aggregations: int
    """How many have work."""
    cooling: int
    """How many of the busiest cool down."""
    next_due_at: Time | None


@_DOCUMENTED
class WaitingDestination(TypedDict):
    """A destination of callbacks."""

    destination: str
    """Backend, and host, queue, topic or prefix."""
    pending: int
    in_flight: int
    limit: int
    due_at: Time | None


@_DOCUMENTED
class FailedDestination(TypedDict):
    """A destination whose callbacks have failed."""

    destination: str
    failed: int


@_DOCUMENTED
class WaitingCallbacks(TypedDict):
    """Callbacks that wait or run."""

    pending: int
    in_flight: int
    failed: int
    """Given up; they can be sent again."""
    next_due_at: Time | None
    destinations: list[WaitingDestination]
    """Those with the most callbacks."""
    more_destinations: int
    failed_to: list[FailedDestination]
    """Those with the most failed callbacks, of the 500 that are kept longest."""


@_DOCUMENTED
class WaitingAnswer(TypedDict):
    """What waits, now, over the fleet."""

    downloads: WaitingDownloads
    callbacks: WaitingCallbacks


@_DOCUMENTED
class SizeAnswer(TypedDict):
    """An aggregation that has work."""

    name: str
    """`jobs:` and the aggregation."""
    size: int
    """Pending jobs."""


@_DOCUMENTED
class CallbackPayload(TypedDict):
    """What a callback sends; the same for every backend, always with every field."""

    success: bool
    error: str
    """Why it failed; empty after a success."""
    extra: str
    """As the job gave it."""
    resource_url: str
    """The job's `url`, byte for byte."""
    download_url: str
    """Where the file is; empty where there is none."""
    job_id: str
    response_code: int
    """The status of the last response; 0 if there was none."""
    delivered: bool
    delivery_error: str
    image_size: str
    """`WxH`, or empty."""
    error_code: str
    """The kind of failure; empty after a success."""
    size: int
    """Bytes of the file."""
    sha256: str
    mime_type: str
    attempts: int
