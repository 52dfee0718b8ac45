"""After the largest values that the API and the configuration accept, every route still responds (H31)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from downloader.config.checks import MAX_S
from downloader.model import CallbackOutcome, ErrorCode, Kind, Outcome, Verdict
from downloader.store import CallbackPlan
from servers.api import JOB, Served
from servers.jobs import closed, downloaded

LARGEST: dict[str, Any] = {
    "aggr_id": "x" * 128,
    "aggr_limit": 2**31 - 1,
    "aggr_rate": 1e6,
    "aggr_delay": 86400.0,
    "download_timeout": 2**31 - 1,
    "max_retries": 1000,
    "max_size": 2**53 - 1,
    "extra": "x" * 100_000,
}

FAILED = Outcome(verdict=Verdict.FAILED, error="x" * 500, error_code=ErrorCode.HTTP_STATUS, response_code=999)


async def check_all_routes(api: Served, job_id: str) -> None:
    paths = ["/jobs", "/failures", "/aggregations", "/aggregations?q=x", "/aggregations?sort=-work", "/stats"]
    paths += [f"/jobs/{job_id}", f"/aggregations/{LARGEST['aggr_id']}", "/dashboard/aggregations"]
    paths += ["/stats/processor", "/stats/notifier", "/metrics", "/health/ready"]
    paths += [f"/jobs?state={state}" for state in ("pending", "running", "failed", "scheduled")]
    statuses = {path: (await api.client.get(path)).status_code for path in paths}
    assert {path for path, status in statuses.items() if status not in (200, 422)} == set()
    async with await api.connect() as stream:
        await stream.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b"event: snapshot" not in received:
            data = await stream.receive_some()
            assert data, "the events ended before the first snapshot"
            received += data


@pytest.mark.row("H31")
@pytest.mark.parametrize("field", ["not_before", "deadline"])
async def test_the_last_moment_of_the_last_year_is_refused(api: Served, field: str) -> None:
    response = await api.client.post("/download", json=JOB | {field: "9999-12-31T23:59:59.999999Z"})
    assert (response.status_code, response.json()["field"]) == (422, field)
    assert (await api.client.get("/aggregations")).json()["aggregations"] == []


@pytest.mark.row("H30")
@pytest.mark.parametrize("field", ["not_before", "deadline"])
async def test_a_moment_of_more_than_a_year_ahead_is_refused(api: Served, field: str) -> None:
    for days, status in ((364, 201), (368, 422)):
        moment = (datetime.now(UTC) + timedelta(days=days)).isoformat()
        response = await api.client.post("/download", json=JOB | {field: moment})
        assert response.status_code == status


@pytest.mark.row("H31")
async def test_every_route_responds_after_the_largest_values(api: Served) -> None:
    in_a_year = (datetime.now(UTC) + timedelta(days=364)).isoformat()
    waiting = await api.client.post("/download", json=JOB | LARGEST | {"not_before": in_a_year})
    assert waiting.status_code == 201
    await check_all_routes(api, waiting.json()["id"])
    response = await api.client.post("/download", json=JOB | LARGEST)
    job_id = response.json()["id"]
    [lease] = (await api.store.lease(Kind.DOWNLOAD, "worker", 1, 30)).leases
    await api.store.settle("worker", [downloaded(lease, FAILED, CallbackPlan(queue="g", limit=1), MAX_S)])
    await check_all_routes(api, job_id)
    [lease] = (await api.store.lease(Kind.CALLBACK, "worker", 1, 30)).leases
    delivery = CallbackOutcome(verdict=Verdict.FAILED, error="x" * 500)
    await api.store.settle("worker", [closed(lease, delivery, MAX_S, 4)])
    await check_all_routes(api, job_id)
