"""Models of the JSON in requests, responses and callbacks.

The API responds with these models and describes them in its OpenAPI document, the client parses with them,
and callbacks are made from them. Each field and its description is defined only here.
"""

from __future__ import annotations

from downloader.wire.aggregation import (
    MAX_DELAY_S,
    Aggregation,
    AggregationChanges,
    AggregationLoad,
    AggregationPage,
    AggregationSize,
    AllAggregations,
    CancelledJobs,
)
from downloader.wire.base import LAST_MS, Fault, LineProblem, Problem, moment, rfc3339, unix_ms
from downloader.wire.callback import Callback, callback_body
from downloader.wire.group import (
    Group,
    GroupCallback,
    GroupPage,
    GroupRequest,
    group_callback_body,
)
from downloader.wire.job import (
    Accepted,
    AcceptedLine,
    Attempt,
    Failure,
    FailureCount,
    FailureGroup,
    Failures,
    Job,
    JobCallback,
    JobFile,
    JobPage,
    JobResponse,
    ListedJob,
    Progress,
    Redirect,
    Retried,
    Task,
)
from downloader.wire.service import (
    AuditEntry,
    BacklogPoint,
    FailedDestination,
    Ready,
    Session,
    Status,
    Waiting,
    WaitingCallbacks,
    WaitingDestination,
    WaitingDownloads,
)
from downloader.wire.submission import MAX_HEADERS, NO_CALLBACK, DownloadRequest
