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
    Retried,
    Task,
)
from downloader.wire.service import (
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

__all__ = [
    "LAST_MS",
    "MAX_DELAY_S",
    "MAX_HEADERS",
    "NO_CALLBACK",
    "Accepted",
    "AcceptedLine",
    "Aggregation",
    "AggregationChanges",
    "AggregationLoad",
    "AggregationPage",
    "AggregationSize",
    "AllAggregations",
    "BacklogPoint",
    "Callback",
    "CancelledJobs",
    "DownloadRequest",
    "FailedDestination",
    "Failure",
    "FailureCount",
    "FailureGroup",
    "Failures",
    "Fault",
    "Group",
    "GroupCallback",
    "GroupPage",
    "GroupRequest",
    "Job",
    "JobCallback",
    "JobFile",
    "JobPage",
    "JobResponse",
    "LineProblem",
    "ListedJob",
    "Problem",
    "Progress",
    "Ready",
    "Retried",
    "Session",
    "Status",
    "Task",
    "Waiting",
    "WaitingCallbacks",
    "WaitingDestination",
    "WaitingDownloads",
    "callback_body",
    "group_callback_body",
    "moment",
    "rfc3339",
    "unix_ms",
]
