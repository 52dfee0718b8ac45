"""What is counted and logged at the end of a download or callback."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
import structlog

from downloader.config import Settings
from downloader.model import Delivery, ErrorCode, JobSpec, Kind, Lease, Outcome, Verdict, new_id
from downloader.observe import NOTIFIER_COUNTERS, PROCESSOR_COUNTERS, Counters
from downloader.scheduler import End, Workload
from downloader.service.work import CallbackWork, DownloadWork

NONE = cast("Any", None)


def lease(kind: Kind) -> Lease:
    spec = JobSpec(id=new_id(0, 1), aggr_id="a", aggr_limit=1, url="http://x/")
    result = Outcome(verdict=Verdict.SUCCEEDED) if kind is Kind.CALLBACK else None
    return Lease(kind=kind, spec=spec, group="a", generation=1, attempts=0, crashes=0, limit=1, result=result)


def downloads() -> DownloadWork:
    return DownloadWork(
        store=NONE,
        settings=Settings(),
        owner="me",
        counters=Counters(PROCESSOR_COUNTERS),
        fetcher=NONE,
        disk_has_room=lambda: True,
        delete=NONE,
    )


def callbacks() -> CallbackWork:
    return CallbackWork(
        store=NONE,
        settings=Settings(),
        owner="me",
        counters=Counters(NOTIFIER_COUNTERS),
        backends={},
        bulkhead=NONE,
        rng=random.Random(0),
        download_url=NONE,
        leases_at_stop=False,
    )


@pytest.mark.parametrize(
    ("end", "event", "level"),
    [
        (Outcome(verdict=Verdict.SUCCEEDED), "job.succeeded", "debug"),
        (Outcome(verdict=Verdict.FAILED, error="no", error_code=ErrorCode.DNS), "job.failed", "warning"),
        (Outcome(verdict=Verdict.FAILED, error="no", error_code=ErrorCode.POISON), "job.poison", "warning"),
        (Outcome(verdict=Verdict.RETRY, error="no"), "job.retry", "info"),
        (Delivery(verdict=Verdict.SUCCEEDED), "callback.delivered", "debug"),
        (Delivery(verdict=Verdict.FAILED, error="no"), "callback.failed", "warning"),
        (Delivery(verdict=Verdict.RETRY, error="no"), "callback.retry", "info"),
    ],
)
def test_an_end_that_nobody_repairs_is_a_warning(end: End, event: str, level: str) -> None:
    work: Workload
    with structlog.testing.capture_logs() as lines:
        kind, work = (
            (Kind.DOWNLOAD, downloads()) if isinstance(end, Outcome) else (Kind.CALLBACK, callbacks())
        )
        work.ended(lease(kind), end, 0.1)
    assert [(line["event"], line["log_level"]) for line in lines] == [(event, level)]
