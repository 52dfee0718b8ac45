"""Counters under the predecessor's names."""

from __future__ import annotations

import pytest

from downloader.model import ErrorCode, Outcome, Verdict
from downloader.observe import NOTIFIER_COUNTERS, PROCESSOR_COUNTERS, Counters
from downloader.service.predecessor import PROCESSOR_NAMES, Workers, callbacks


def test_workers_and_their_pools() -> None:
    workers, counters = Workers(), Counters(PROCESSOR_COUNTERS)
    assert set(workers.snapshot(counters)) == {name for name in PROCESSOR_NAMES if "." not in name}
    with workers.working("a"):
        with workers.working("a"), workers.working("b"):
            now = workers.snapshot(counters)
            assert (now["workers"], now["workerPools"]) == (3, 2)
        with workers.working("b"):
            pass
        now = workers.snapshot(counters)
        assert (now["workers"], now["workerPools"]) == (1, 1)
    with pytest.raises(OSError, match="disk"), workers.working("a"):
        raise OSError("disk")
    counters.add("downloads_failed", 2)
    assert workers.snapshot(counters) == {
        "alive": 1,
        "workers": 0,
        "maxWorkers": 3,
        "spawnedWorkers": 5,
        "workerPools": 0,
        "maxWorkerPools": 2,
        "spawnedWorkerPools": 4,
        "failures": 2,
    }


def test_responses_by_kind() -> None:
    workers = Workers()
    for code, status in (
        ("", 200),
        ("", 200),
        ("tls", 0),
        ("mime_type", 200),
        ("http_status", 404),
        ("dns", 0),
    ):
        workers.ended(Outcome(verdict=Verdict.FAILED, error_code=ErrorCode(code), response_code=status))
    found = workers.snapshot(Counters(PROCESSOR_COUNTERS))
    kinds = {name: count for name, count in found.items() if name.startswith("download.response.")}
    assert kinds == {
        "download.response.200": 2,
        "download.response.tls": 1,
        "download.response.mime": 1,
        "download.response.404": 1,
    }


def test_callbacks() -> None:
    counters = Counters(NOTIFIER_COUNTERS)
    counters.add("callbacks_delivered", 3)
    counters.add("callbacks_failed", 2)
    assert callbacks(counters) == {"alive": 1, "successfulCallbacks": 3, "failedCallbacks": 2}
