"""`Client` and `AsyncClient`, for programs that send jobs to a running service and read the results.

::

    with Client("http://127.0.0.1:8000") as client:
        job_id = client.submit(url="https://example.org/a.png", aggr_id="example.org", aggr_limit=4, ...)
        print(client.wait(job_id).state)

`verify` checks the signature of a received callback; it is the function of `downloader.webhooks`.
"""

from __future__ import annotations

from downloader.client.client import RETRIES, AsyncClient, Client
from downloader.client.messages import (
    ApiProblem,
    ClientError,
    JobFields,
    JobFilters,
    Submitted,
    Unreachable,
    WaitTimeout,
)
from downloader.webhooks import WebhookError, verify
from downloader.wire import (
    Aggregation,
    AggregationChanges,
    Attempt,
    AuditEntry,
    Callback,
    Failures,
    Group,
    GroupCallback,
    Job,
    JobCallback,
    JobFile,
    JobResponse,
    ListedJob,
)

__all__ = [
    "RETRIES",
    "Aggregation",
    "AggregationChanges",
    "ApiProblem",
    "AsyncClient",
    "Attempt",
    "AuditEntry",
    "Callback",
    "Client",
    "ClientError",
    "Failures",
    "Group",
    "GroupCallback",
    "Job",
    "JobCallback",
    "JobFields",
    "JobFile",
    "JobFilters",
    "JobResponse",
    "ListedJob",
    "Submitted",
    "Unreachable",
    "WaitTimeout",
    "WebhookError",
    "verify",
]
