"""What each route does, for the OpenAPI document: a row here for each rule and method of the routing table.

A test compares the two, so a new route needs a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from downloader.api.answers import (
    AcceptedAnswer,
    AcceptedLine,
    AggregationAnswer,
    AggregationsAnswer,
    FailuresAnswer,
    IdAnswer,
    JobAnswer,
    LineProblem,
    ListedPageAnswer,
    ReadyAnswer,
    RetriedAnswer,
    SessionAnswer,
    SizeAnswer,
    StatusAnswer,
    WaitingAnswer,
)
from downloader.api.fields import DownloadRequest
from downloader.api.routes.aggregations import PAGE_MAX, SORTS, AggregationPatch
from downloader.api.routes.session import SessionRequest
from downloader.model import State

JSON = "application/json"
NDJSON = "application/x-ndjson"

Schema = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of the query, or a header of the request."""

    name: str
    description: str
    place: str = "query"
    required: bool = False
    schema: Schema = field(default_factory=lambda: _TEXT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer other than a problem document."""

    description: str
    body: Any = None
    """A type that pydantic knows; `None`: there is no JSON."""
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    """The meaning of each header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one route."""

    summary: str
    description: str = ""
    parameters: Sequence[Parameter] = ()
    """Besides those of the path."""
    body: Any = None
    body_type: str = JSON
    answers: Mapping[int, Answer]
    problems: Mapping[int, str] = field(default_factory=dict)
    """By status, when it is answered with a problem document; without those that any route may answer."""
    calls_back: bool = False


PATH_PARAMETERS: Mapping[str, tuple[str, Schema]] = {
    "job_id": (
        "The job's id, as the answer to its POST has it.",
        {"type": "string", "pattern": "^[0-9A-Za-z]{14}$"},
    ),
    "aggr_id": ("The aggregation's name; it may have slashes.", _TEXT),
    "role": ("Whose counters.", {"type": "string", "enum": ["processor", "notifier"]}),
    "key": ("The file's path, `file.path` of the job; it has slashes.", _TEXT),
    "name": ("The file's name.", {"type": "string", "pattern": r"^[\w.-]+$"}),
}
"""Description and schema of the variables in rules."""

_IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key",
    place="header",
    description="The same key with the same job within 24 hours answers the same id and enqueues nothing.",
    schema={"type": "string", "pattern": "^[ -~]{1,255}$"},
)
_CURSOR = Parameter(name="cursor", description="The cursor of an earlier answer; empty: from the start.")
_FAILED_CALLBACKS = (
    Parameter(name="aggr_id", description="Only jobs of this aggregation."),
    Parameter(
        name="since",
        description="Only callbacks that failed, or downloads that ended, at this time (RFC 3339) or later.",
        schema={"type": "string", "anyOf": [{"format": "date-time"}, {"const": ""}]},
    ),
    _CURSOR,
)
_LINK = {"Link": "The next page (RFC 8288)."}
_BAD_QUERY = "a parameter is malformed"
_NO_AGGREGATION = "there is no such aggregation with unfinished downloads"
_UNKNOWN = "there is no such job"
_HTML = "text/html; charset=utf-8"

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/download"): Operation(
        summary="Submit a job",
        description="Accepts a download and answers its id once the store holds it. A callback is required"
        " (the pair, or `callback_url`) unless the job brings its own bucket. Any `Content-Type` is taken.",
        parameters=[_IDEMPOTENCY_KEY],
        body=DownloadRequest,
        answers={
            HTTPStatus.CREATED: Answer(
                description="The job is accepted.",
                body=AcceptedAnswer,
                headers={
                    "Location": "The job's route.",
                    "Idempotent-Replayed": "`true` if the idempotency key was known.",
                },
            )
        },
        problems={
            HTTPStatus.BAD_REQUEST: "the body is not a JSON object, or the idempotency key is malformed",
            HTTPStatus.CONFLICT: "the aggregation uses a proxy that the token may not use",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the body is too large",
            HTTPStatus.UNPROCESSABLE_ENTITY: "fields are at fault, all of them in `errors`, or the"
            " idempotency key was used with another job",
        },
        calls_back=True,
    ),
    ("POST", "/downloads"): Operation(
        summary="Submit any number of jobs",
        description="One job a line, each answered by a line in the same order while further ones are"
        " read. A line's `idempotency_key` works as the header does for a single job. Read while you send.",
        body=DownloadRequest,
        body_type=NDJSON,
        answers={
            HTTPStatus.OK: Answer(
                description="For each line an accepted job or a problem.",
                body=AcceptedLine | LineProblem,
                media_type=NDJSON,
            )
        },
        calls_back=True,
    ),
    ("GET", "/jobs/<job_id>"): Operation(
        summary="One job",
        answers={HTTPStatus.OK: Answer(description="The job.", body=JobAnswer)},
        problems={HTTPStatus.NOT_FOUND: _UNKNOWN},
    ),
    ("DELETE", "/jobs/<job_id>"): Operation(
        summary="Cancel a job",
        description="It may wait or be in flight. Its callback reports the `error_code` `cancelled`.",
        answers={HTTPStatus.ACCEPTED: Answer(description="It is cancelled.", body=IdAnswer)},
        problems={HTTPStatus.NOT_FOUND: _UNKNOWN, HTTPStatus.CONFLICT: "its download is over"},
    ),
    ("GET", "/jobs"): Operation(
        summary="Lists of jobs",
        description="By `state` or `callback` or both; pending ones of one `aggr_id`.",
        parameters=[
            Parameter(
                name="state",
                description="Of the download.",
                schema={"type": "string", "enum": ["", *State]},
            ),
            Parameter(
                name="callback",
                description="The state of the callback, of jobs whose download is over.",
                schema={"type": "string", "enum": ["", State.SUCCEEDED, State.FAILED]},
            ),
            *_FAILED_CALLBACKS,
        ],
        answers={HTTPStatus.OK: Answer(description="A page.", body=ListedPageAnswer, headers=_LINK)},
        problems={HTTPStatus.UNPROCESSABLE_ENTITY: "a parameter is malformed, or there is no such list"},
    ),
    ("GET", "/failures"): Operation(
        summary="What failed lately",
        description="The newest of the jobs whose download or callback failed for good; at most 200.",
        parameters=_FAILED_CALLBACKS[:1],
        answers={HTTPStatus.OK: Answer(description="The newest first.", body=FailuresAnswer)},
    ),
    ("POST", "/retry/<job_id>"): Operation(
        summary="Retry a job",
        description="Sends a failed callback again.",
        parameters=[
            Parameter(
                name="download",
                description="Repeat a failed download instead.",
                schema={"type": "string", "enum": ["1", "0"]},
            )
        ],
        answers={
            HTTPStatus.CREATED: Answer(
                description="It waits again.", body=IdAnswer, headers={"Location": "The job's route."}
            )
        },
        problems={
            HTTPStatus.NOT_FOUND: _UNKNOWN,
            HTTPStatus.CONFLICT: "nothing of it has failed, or its aggregation uses another proxy now",
        },
    ),
    ("POST", "/retry"): Operation(
        summary="Send failed callbacks again",
        description="Those of one page of `GET /jobs?callback=failed`; repeat it with the cursor.",
        parameters=_FAILED_CALLBACKS,
        answers={HTTPStatus.OK: Answer(description="The page is done.", body=RetriedAnswer)},
        problems={HTTPStatus.UNPROCESSABLE_ENTITY: _BAD_QUERY},
    ),
    ("GET", "/aggregations"): Operation(
        summary="List the aggregations with unfinished downloads",
        description="With `q` or `sort` they are searched and sorted, and `total` says how many match.",
        parameters=[
            Parameter(name="q", description="Only those with this in their name, whatever the case."),
            Parameter(
                name="sort",
                description="What they are sorted by; with `-` in front the largest come first. By default"
                " `-work`, the busiest first.",
                schema={"type": "string", "enum": ["", *SORTS, *(f"-{name}" for name in SORTS)]},
            ),
            Parameter(
                name="count",
                description="With `q` or `sort`: how many a page has at the most.",
                schema={"type": "integer", "minimum": 1, "maximum": PAGE_MAX},
            ),
            _CURSOR,
        ],
        answers={HTTPStatus.OK: Answer(description="A page.", body=AggregationsAnswer, headers=_LINK)},
        problems={HTTPStatus.UNPROCESSABLE_ENTITY: _BAD_QUERY},
    ),
    ("GET", "/aggregations/<aggregation:aggr_id>"): Operation(
        summary="Show one aggregation",
        answers={HTTPStatus.OK: Answer(description="The aggregation.", body=AggregationAnswer)},
        problems={HTTPStatus.NOT_FOUND: _NO_AGGREGATION},
    ),
    ("PATCH", "/aggregations/<aggregation:aggr_id>"): Operation(
        summary="Change an aggregation",
        description="At once over the fleet. A merge patch (RFC 7396): `null` undoes what was set.",
        body=AggregationPatch,
        answers={
            HTTPStatus.OK: Answer(description="The aggregation after the change.", body=AggregationAnswer)
        },
        problems={
            HTTPStatus.BAD_REQUEST: "the body is not a JSON object",
            HTTPStatus.NOT_FOUND: _NO_AGGREGATION,
            HTTPStatus.UNPROCESSABLE_ENTITY: "a field is at fault or unknown",
        },
    ),
    ("GET", "/dashboard/aggregations"): Operation(
        summary="Aggregations that have work",
        answers={HTTPStatus.OK: Answer(description="The largest first.", body=list[SizeAnswer])},
    ),
    ("GET", "/stats"): Operation(
        summary="What waits",
        answers={HTTPStatus.OK: Answer(description="Over the fleet.", body=WaitingAnswer)},
    ),
    ("GET", "/stats/<role>"): Operation(
        summary="Counters",
        description="Counters include instances that have ended; gauges are of the live instances.",
        answers={HTTPStatus.OK: Answer(description="The counters by name.", body=dict[str, int | float])},
        problems={HTTPStatus.NOT_FOUND: "there is no such role"},
    ),
    ("GET", "/files/<path:key>"): Operation(
        summary="A stored file",
        description="As an attachment, for storages with local files. `Range` and conditional requests work.",
        answers={
            HTTPStatus.OK: Answer(description="The file.", media_type="application/octet-stream"),
            HTTPStatus.PARTIAL_CONTENT: Answer(
                description="The range asked for.", media_type="application/octet-stream"
            ),
            HTTPStatus.NOT_MODIFIED: Answer(description="The client has it.", media_type=""),
        },
        problems={
            HTTPStatus.NOT_FOUND: "there is no such file",
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "the range begins past the end",
        },
    ),
    ("GET", "/metrics"): Operation(
        summary="Metrics for Prometheus",
        description="Of the whole fleet; every instance answers the same. Also as OpenMetrics.",
        answers={HTTPStatus.OK: Answer(description="The metrics.", media_type="*/*")},
    ),
    ("GET", "/events"): Operation(
        summary="The state of the fleet as events",
        description="Server-sent events: `snapshot` after each change, `alive` when nothing changes.",
        answers={
            HTTPStatus.OK: Answer(description="The events.", media_type="text/event-stream; charset=utf-8")
        },
        problems={HTTPStatus.SERVICE_UNAVAILABLE: "too many clients listen"},
    ),
    ("GET", "/hb"): Operation(
        summary="For load balancers",
        answers={
            HTTPStatus.OK: Answer(description="In service.", body=StatusAnswer),
            HTTPStatus.SERVICE_UNAVAILABLE: Answer(
                description="`api.heartbeat_path` exists.", body=StatusAnswer
            ),
        },
    ),
    ("GET", "/health/live"): Operation(
        summary="Whether the process is alive",
        answers={HTTPStatus.OK: Answer(description="It is.", body=StatusAnswer)},
    ),
    ("GET", "/health/ready"): Operation(
        summary="Whether the instance can work",
        answers={
            HTTPStatus.OK: Answer(description="It can.", body=ReadyAnswer),
            HTTPStatus.SERVICE_UNAVAILABLE: Answer(
                description="The store cannot be reached, or a role does not run.", body=ReadyAnswer
            ),
        },
    ),
    ("GET", "/"): Operation(
        summary="The web page", answers={HTTPStatus.OK: Answer(description="The page.", media_type=_HTML)}
    ),
    ("GET", "/web/<name>"): Operation(
        summary="Files of the web pages",
        answers={HTTPStatus.OK: Answer(description="The file.", media_type="*/*")},
        problems={HTTPStatus.NOT_FOUND: "there is no such file"},
    ),
    ("GET", "/session"): Operation(
        summary="Who is signed in",
        description="By the cookie of `POST /session`, or by the token of this request.",
        answers={HTTPStatus.OK: Answer(description="Who it is, if anybody.", body=SessionAnswer)},
    ),
    ("POST", "/session"): Operation(
        summary="Sign in",
        description="For the web page: the answer's cookie stands for the token for twelve hours. With it,"
        " requests other than `GET` and `HEAD` need the header `X-Downloader-Page: 1`.",
        body=SessionRequest,
        answers={
            HTTPStatus.CREATED: Answer(
                description="Signed in.", body=SessionAnswer, headers={"Set-Cookie": "The session."}
            )
        },
        problems={
            HTTPStatus.BAD_REQUEST: "the body is not a JSON object",
            HTTPStatus.UNAUTHORIZED: "the token is wrong",
            HTTPStatus.NOT_FOUND: "no tokens are configured",
            HTTPStatus.UNPROCESSABLE_ENTITY: "the token is missing or no text",
        },
    ),
    ("DELETE", "/session"): Operation(
        summary="Sign out",
        parameters=[
            Parameter(
                name="X-Downloader-Page",
                description="`1`.",
                place="header",
                required=True,
                schema={"const": "1"},
            )
        ],
        answers={HTTPStatus.NO_CONTENT: Answer(description="The cookie is deleted.", media_type="")},
        problems={HTTPStatus.FORBIDDEN: "the header is missing, or a browser sent it for another site"},
    ),
    ("GET", "/openapi.json"): Operation(
        summary="The OpenAPI document",
        answers={HTTPStatus.OK: Answer(description="OpenAPI 3.1.", body=dict[str, Any])},
    ),
    ("GET", "/docs"): Operation(
        summary="The OpenAPI document as a page",
        answers={HTTPStatus.OK: Answer(description="The page.", media_type=_HTML)},
    ),
}
