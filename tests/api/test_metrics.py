"""`GET /metrics`, and counters that outlive an instance in `/stats` and `/events`."""

from __future__ import annotations

import json

import pytest
from prometheus_client import parser

from downloader.api import ApiDeps
from downloader.api.routes.monitoring import families
from downloader.model import Cooldown, ErrorCode, Kind, Outcome, Verdict
from downloader.observe import API_COUNTERS, COUNTERS, HISTOGRAMS, METRICS, Counters
from downloader.store import CallbackPlan
from servers.api import JOB, Served, Serving
from servers.jobs import downloaded, tried_again

LABELS = {"backend", "call", "code", "error_code", "kind", "outcome", "role", "route", "status", "trouble"}
"""All labels that there are. Each has few values: none is an aggregation, a URL or a destination."""


async def scrape(api: Served) -> dict[str, dict[tuple[str, ...], float]]:
    """The samples by name and label values, the latter in the order of the labels' names."""
    answer = await api.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parser.text_string_to_metric_families(answer.text):
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[key] = sample.value
    return found


async def test_each_metric_is_present_from_the_start(api: Served) -> None:
    text = (await api.client.get("/metrics")).text
    for metric in METRICS:
        name = metric.name.removesuffix("_total") if metric.type == "counter" else metric.name
        assert f"# TYPE {metric.name} {metric.type}\n" in text, name
        assert f"# HELP {metric.name} {metric.help}\n" in text
        assert set(metric.labels) <= LABELS
    # What an alert compares with its value of some minutes ago has to be there before it happens.
    found = await scrape(api)
    assert found["downloader_poison_total"] == {("callback",): 0, ("download",): 0}
    assert found["downloader_queue_wait_seconds_bucket"]["download", "+Inf"] == 0


async def test_the_library_answers_in_the_format_that_is_asked_for(api: Served) -> None:
    answer = await api.client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_counters_of_the_api(serving: Serving, deps: ApiDeps) -> None:
    counters = Counters(API_COUNTERS)
    api = await serving(counters=counters)
    job = json.dumps(JOB).encode()
    for body in (job, job, b"[]"):
        await api.post(body, {"Idempotency-Key": "x"} if body is job else None)
    await api.client.post("/downloads", content=b"\n".join([job, b"{}", job, b"nonsense"]))
    await api.client.get("/jobs/NSb4FOAs9fVaQw")
    await api.client.get("/no/such/route")
    await api.client.get("/hb")
    await api.store.report("i", "api", {}, 60, counters.series())
    found = await scrape(api)
    assert found["downloader_jobs_accepted_total"] == {("/download",): 1, ("/downloads",): 2}, (
        "a repeated job counts once"
    )
    assert found["downloader_jobs_refused_total"] == {
        ("not_an_object", "/download"): 1,
        ("required", "/downloads"): 1,
        ("bad_json", "/downloads"): 1,
    }
    assert found["downloader_api_requests_total"] == {
        ("/download", "2xx"): 2,
        ("/download", "4xx"): 1,
        ("/downloads", "2xx"): 1,
        ("/jobs/<job_id>", "4xx"): 1,
        ("other", "4xx"): 1,
        ("/hb", "2xx"): 1,
    }
    assert found["downloader_instances"] == {("api",): 1, ("notifier",): 0, ("processor",): 0}


async def test_totals_over_instances_that_come_and_go(api: Served) -> None:
    for number in range(2):
        processor, notifier = Counters(COUNTERS["processor"]), Counters(COUNTERS["notifier"])
        processor.add("downloads_succeeded", 3, "")
        processor.add("downloads_failed", 1, "dns")
        processor.add("leases_recovered", 2)
        for seconds in (0.01, 0.3, 7200):
            processor.observe("download_seconds", seconds)
        processor.observe("store_call_seconds", 0.002, "lease")
        notifier.add("leases_recovered", 1)
        notifier.add("callbacks_delivered", 2, "http")
        notifier.observe("delivery_seconds", 0.02, "http")
        notifier.observe("store_call_seconds", 0.002, "lease")
        facts = {"counters": processor.snapshot() | {"in_flight": 1}}
        await api.store.report(f"i{number}", "processor", facts, 60, processor.series())
        await api.store.report(f"i{number}", "notifier", {}, 60, notifier.series())
    await api.store.leave("i0", "processor")
    await api.store.leave("i0", "notifier")

    found = await scrape(api)
    assert found["downloader_downloads_total"] == {("", "succeeded"): 6, ("dns", "failed"): 2}
    assert found["downloader_callbacks_total"] == {("http", "delivered"): 4}
    assert found["downloader_leases_expired_total"] == {("download",): 4, ("callback",): 2}
    buckets = found["downloader_download_duration_seconds_bucket"]
    assert [buckets[bound,] for bound in ("0.01", "0.25", "0.5", "1800", "+Inf")] == [2, 2, 4, 4, 6]
    assert found["downloader_download_duration_seconds_count"] == {(): 6}
    assert found["downloader_download_duration_seconds_sum"][()] == pytest.approx(2 * 7200.31)
    assert found["downloader_delivery_duration_seconds_count"] == {("http",): 2}
    assert found["downloader_store_call_duration_seconds_count"] == {("lease",): 4}

    stats = (await api.client.get("/stats/processor")).json()
    assert stats["downloads_succeeded"] == 6
    assert stats["in_flight"] == 1, "of those that live"
    assert not [name for name in stats if "seconds" in name]


def test_unknown_counters_of_another_version_are_ignored() -> None:
    """An older or newer one has other series, labels and buckets in the same totals."""
    series = {
        "processor": {
            "brand_new|a": 1,
            "downloads_failed": 4,
            "downloads_dreamt|x": 1,
            "download_seconds_bucket|0.3": 2,
            "download_seconds_bucket|inf": 1,
        }
    }
    gauges: dict[str, dict[tuple[str, ...], float]] = {
        metric.name: {(): 0.0} for metric in METRICS if metric.type == "gauge"
    }
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(series, gauges)
        for sample in family.samples
    }
    assert found["downloader_downloads_total", "dreamt", "x"] == 1
    assert ("downloader_downloads_total", "failed") not in found
    assert found["downloader_download_duration_seconds_bucket", "0.5"] == 2
    assert found["downloader_download_duration_seconds_bucket", "0.25"] == 0
    assert found["downloader_download_duration_seconds_count",] == 3


@pytest.mark.parametrize("role", COUNTERS)
def test_each_counter_has_a_metric(role: str) -> None:
    sources = {metric.source for metric in METRICS}
    prefixes = tuple(source.removesuffix("*") for source in sources if source.endswith("*"))
    gauges = {"in_flight", "backends_unhealthy"}
    assert not [
        name for name in COUNTERS[role] if name not in sources | gauges and not name.startswith(prefixes)
    ]


def test_each_histogram_has_a_metric() -> None:
    assert set(HISTOGRAMS) == {metric.source for metric in METRICS if metric.type == "histogram"}


async def test_pending_work(api: Served) -> None:
    for name in ("a", "a", "b"):
        await api.post(json.dumps(JOB | {"aggr_id": name, "aggr_limit": 1}).encode())
    [first, second] = (await api.store.lease(Kind.DOWNLOAD, "me", 2, 10)).leases
    plan = CallbackPlan(queue="http client.example", limit=4)
    done = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
    await api.store.settle("me", [downloaded(first, done, plan, 60)])
    cools = Outcome(
        verdict=Verdict.THROTTLED,
        error="slow down",
        error_code=ErrorCode.HTTP_STATUS,
        cooldown=Cooldown(seconds=60.0, asked=True),
    )
    await api.store.settle("me", [tried_again(second, cools, 0)])

    found = await scrape(api)
    assert found["downloader_pending"] == {("download",): 2, ("callback",): 1}
    assert found["downloader_groups"] == {("download",): 2, ("callback",): 1}
    assert found["downloader_in_flight"] == {("download",): 0, ("callback",): 0}
    assert found["downloader_aggregations_cooling"] == {(): 1}
    assert 0 <= found["downloader_callbacks_oldest_due_seconds"][()] < 30
    assert list(found["downloader_next_due_seconds"]) == [("download",)]
    assert found["downloader_callbacks_failed"] == {(): 0}

    assert 0 <= found["downloader_downloads_oldest_due_seconds"][()] < 30

    stats = (await api.client.get("/stats")).json()
    assert stats["downloads"].pop("oldest_due_at")
    assert stats["downloads"] | {"next_due_at": ""} == {
        "pending": 2,
        "in_flight": 0,
        "aggregations": 2,
        "cooling": 1,
        "held": 1,
        "next_due_at": "",
    }
    [destination] = stats["callbacks"].pop("destinations")
    assert destination.pop("due_at")
    assert destination == {"destination": "http client.example", "pending": 1, "in_flight": 0, "limit": 4}
    assert stats["callbacks"] == {
        "pending": 1,
        "in_flight": 0,
        "failed": 0,
        "next_due_at": None,
        "more_destinations": 0,
        "failed_to": [],
    }


async def test_instances_in_trouble_are_counted_once(api: Served) -> None:
    full = {"instance": "one", "troubles": {"disk": "full", "of a newer version": "x"}}
    await api.store.report("one", "processor", full, 60)
    await api.store.report("one", "notifier", full | {"late_s": 1.5}, 60)
    await api.store.report("two", "processor", {"instance": "two", "late_s": 0.5, "troubles": "nonsense"}, 60)
    found = await scrape(api)
    assert found["downloader_instances_in_trouble"] == {("disk",): 1, ("lag",): 1, ("store_memory",): 0}
