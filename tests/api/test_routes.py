"""Every route but POST /download and GET /files."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from downloader.config import ApiSettings, TokenSettings
from downloader.errors import StorageError
from downloader.model import (
    CallbackOutcome,
    ErrorCode,
    FileFacts,
    JobSpec,
    Kind,
    Outcome,
    Verdict,
    callback_queue,
)
from downloader.store import CallbackPlan, JobStore
from servers.api import JOB, Served, Serving, read_to_end
from servers.jobs import closed, downloaded

FAILED = Outcome(
    verdict=Verdict.FAILED,
    error="Received Status code 404 Not Found",
    error_code=ErrorCode.HTTP_STATUS,
    response_code=404,
)
SUCCEEDED = Outcome(
    verdict=Verdict.SUCCEEDED,
    response_code=200,
    file=FileFacts(size=10, sha256="ab" * 32, mime_type="image/png", image_size="1x2", filename="a.png"),
)


async def submit(api: Served, **changes: Any) -> str:
    answer = await api.client.post("/download", json=JOB | changes)
    assert answer.status_code == 201
    job_id: str = answer.json()["id"]
    return job_id


async def finish(store: JobStore, outcome: Outcome) -> None:
    [lease] = (await store.lease(Kind.DOWNLOAD, "worker", 1, 30)).leases
    kind, destination = lease.spec.callback(success=outcome.verdict is Verdict.SUCCEEDED)
    plan = CallbackPlan(queue=callback_queue(kind, destination), limit=4)
    await store.settle("worker", [downloaded(lease, outcome, plan, 60.0)])


async def fail_callback(store: JobStore) -> None:
    [lease] = (await store.lease(Kind.CALLBACK, "worker", 1, 30)).leases
    delivery = CallbackOutcome(verdict=Verdict.FAILED, error="answered 500")
    await store.settle("worker", [closed(lease, delivery, 60.0, 4)])


async def test_hb(serving: Serving, tmp_path: Path) -> None:
    flag = tmp_path / "out-of-service"
    api = await serving(settings=ApiSettings(heartbeat_path=str(flag)))
    assert (await api.client.get("/hb")).text == "OK"
    flag.touch()
    assert (await api.client.get("/hb")).status_code == 503
    flag.unlink()
    assert (await api.client.get("/hb")).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"])
async def test_each_method_of_a_load_balancer_gets_the_heartbeat(
    serving: Serving, tmp_path: Path, method: str
) -> None:
    token = TokenSettings(name="t", token=SecretStr("0123456789abcdef"), scopes=["admin"])
    flag = tmp_path / "out-of-service"
    api = await serving(settings=ApiSettings(heartbeat_path=str(flag), tokens=[token]))
    request = f"{method} /hb HTTP/1.0\r\n\r\n".encode()
    assert (await api.say(request)).startswith(b"HTTP/1.1 200 OK\r\n")
    flag.touch()
    assert (await api.say(request)).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


async def test_hb_with_a_path_that_cannot_be_looked_at(serving: Serving, tmp_path: Path) -> None:
    api = await serving(settings=ApiSettings(heartbeat_path=str(tmp_path / ("x" * 300))))
    assert (await api.client.get("/hb")).status_code == 200


async def test_health(api: Served) -> None:
    assert (await api.client.get("/health/live")).json() == {"status": "ok"}
    ready = await api.client.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ok", "store": True, "roles": {"api": True, "processor": True}}


async def test_an_unhealthy_backend_is_shown_and_leaves_the_instance_ready(serving: Serving) -> None:
    api = await serving(healthy=lambda: {"http": True, "kafka": False})
    ready = await api.client.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["status"] == "ok"
    assert ready.json()["backends"] == {"http": True, "kafka": False}


async def test_not_ready_while_the_disk_is_full(serving: Serving) -> None:
    troubles = {"store_memory": "almost full"}
    api = await serving(troubles=lambda: troubles)
    assert (await api.client.get("/health/ready")).status_code == 200, "elsewhere it is as full"
    troubles["disk"] = "the spool's disk is 96% full"
    ready = await api.client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
    assert ready.json()["reasons"] == ["the spool's disk is 96% full"]


async def test_not_ready_while_a_role_does_not_run(serving: Serving) -> None:
    api = await serving(ready=lambda: {"api": True, "notifier": False})
    ready = await api.client.get("/health/ready")
    assert ready.status_code == 503
    assert ready.json()["roles"] == {"api": True, "notifier": False}


async def test_aggregations_largest_first(api: Served) -> None:
    assert (await api.client.get("/dashboard/aggregations")).json() == []
    for aggr_id, count in (("small", 1), ("large", 3), ("middle", 2)):
        for _ in range(count):
            await submit(api, aggr_id=aggr_id)
    assert (await api.client.get("/dashboard/aggregations")).json() == [
        {"name": "jobs:large", "size": 3},
        {"name": "jobs:middle", "size": 2},
        {"name": "jobs:small", "size": 1},
    ]


async def test_stats_are_summed(api: Served) -> None:
    reports: list[Mapping[str, Any]] = [
        {"host": "a", "counters": {"succeeded": 2, "seconds": 0.5}, "predecessor": {"alive": 1}},
        {"host": "b", "counters": {"succeeded": 3, "failed": 1, "up": True, "name": "x"}},
        {"predecessor": {"alive": 1, "download.response.404": 2}},
        {"host": "c"},
    ]
    for number, facts in enumerate(reports):
        await api.store.report(f"i{number}", "processor", facts, 60)
    answer = await api.client.get("/stats/processor")
    found = {"failed": 1, "seconds": 0.5, "succeeded": 5, "alive": 2, "download.response.404": 2}
    assert answer.json() == found
    assert (await api.client.get("/stats/notifier")).json() == {}
    other = await api.client.get("/stats/api")
    assert (other.status_code, other.json()["code"]) == (404, "not_found")


async def test_a_new_job(api: Served) -> None:
    job_id = await submit(api)
    answer = await api.client.get(f"/jobs/{job_id}")
    assert answer.status_code == 200
    job = answer.json()
    assert job["id"] == job_id
    assert job["aggr_id"] == "example.org"
    assert job["url"] == JOB["url"]
    assert job["state"] == "pending"
    assert (job["attempts"], job["file"], job["callback"], job["errors"]) == (0, None, None, [])
    assert (
        job["priority"],
        (await api.client.get(f"/jobs/{await submit(api, priority=9)}")).json()["priority"],
    ) == (0, 9)
    assert job["created_at"].endswith("Z")


async def test_a_downloaded_job(api: Served) -> None:
    job_id = await submit(api, extra="of mine", md5="cd" * 16)
    await finish(api.store, SUCCEEDED)
    job = (await api.client.get(f"/jobs/{job_id}")).json()
    assert job["state"] == "succeeded"
    assert job["response_code"] == 200
    assert job["file"] == {
        "path": f"{job_id[:3]}/{job_id}",
        "size": 10,
        "sha256": "ab" * 32,
        "md5": "cd" * 16,
        "mime_type": "image/png",
        "image_size": "1x2",
        "filename": "a.png",
    }
    assert job["download_url"] == f"https://files.example/{job_id[:3]}/{job_id}"
    assert (job["extra"], job["kept_until"]) == ("of mine", None)
    callback = job["callback"]
    assert callback["type"] == "http"
    assert callback["destination"] == JOB["callback_dst"]
    assert callback["state"] == "pending"


async def test_a_failed_job_whose_callback_failed(api: Served) -> None:
    job_id = await submit(api)
    await finish(api.store, FAILED)
    await fail_callback(api.store)
    job = (await api.client.get(f"/jobs/{job_id}")).json()
    assert (job["state"], job["error"], job["error_code"]) == ("failed", FAILED.error, "http_status")
    assert job["file"] is None
    assert job["callback"]["state"] == "failed"
    assert [entry["error"] for entry in job["callback"]["errors"]] == ["answered 500"]
    assert job["download_url"] == ""
    finished = datetime.fromisoformat(job["callback"]["finished_at"])
    assert datetime.fromisoformat(job["kept_until"]) - finished == timedelta(seconds=60)


async def test_a_failing_storage_hides_no_job(serving: Serving) -> None:
    def fail(_: JobSpec, __: str) -> str:
        raise StorageError("it does not answer")

    api = await serving(download_url=fail)
    job_id = await submit(api)
    await finish(api.store, SUCCEEDED)
    job = (await api.client.get(f"/jobs/{job_id}")).json()
    assert (job["state"], job["download_url"]) == ("succeeded", "")


async def test_callback_type_none_needs_no_destination(api: Served) -> None:
    job_id = await submit(api, callback_type="none", callback_dst=None, md5="cd" * 16)
    [lease] = (await api.store.lease(Kind.DOWNLOAD, "worker", 1, 30)).leases
    assert lease.spec.callback(success=True) == lease.spec.callback(success=False) == ("", "")
    await api.store.settle("worker", [downloaded(lease, SUCCEEDED, None, 60.0)])
    job = (await api.client.get(f"/jobs/{job_id}")).json()
    assert (job["state"], job["callback"]) == ("succeeded", None)
    assert (job["file"]["md5"], job["kept_until"] is not None) == ("cd" * 16, True)


async def test_failures_alone_may_go_nowhere(api: Served) -> None:
    await submit(api, callback_error_type="none")
    [lease] = (await api.store.lease(Kind.DOWNLOAD, "worker", 1, 30)).leases
    assert lease.spec.callback(success=True) == ("http", JOB["callback_dst"])
    assert lease.spec.callback(success=False) == ("", "")


async def test_a_job_waits_for_its_time(api: Served) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    waits = await submit(api, not_before=later.astimezone(timezone(timedelta(hours=2))).isoformat())
    runs = await submit(api, not_before="2020-01-01T00:00:00Z")
    batch = await api.store.lease(Kind.DOWNLOAD, "worker", 9, 30)
    assert [lease.id for lease in batch.leases] == [runs]
    assert batch.next_due_s == pytest.approx(3600, abs=30)
    job = (await api.client.get(f"/jobs/{waits}")).json()
    assert datetime.fromisoformat(job["due_at"]) - later < timedelta(milliseconds=1)


CANARY = "c4n4ry"


@pytest.mark.row("H20")
async def test_a_job_shows_no_secrets(api: Served) -> None:
    job_id = await submit(
        api,
        url=f"https://example.org/a?X-Amz-Signature={CANARY}&b={CANARY}#{CANARY}",
        callback_dst=f"https://user:{CANARY}@client.example/done?token={CANARY}",
        aggr_proxy=f"http://user:{CANARY}@proxy.example",
        request_headers={"Authorization": CANARY},
    )
    await finish(api.store, FAILED)
    answer = await api.client.get(f"/jobs/{job_id}")
    assert CANARY not in answer.text
    assert answer.json()["url"].startswith("https://example.org/a?X-Amz-Signature=")


@pytest.mark.parametrize(
    "job_id", ["00000000000000", "x", "a" * 200, "..%2f..", "%00", "ü" * 14, "0000000000000*"]
)
@pytest.mark.parametrize(("method", "route"), [("GET", "jobs"), ("DELETE", "jobs"), ("POST", "retry")])
async def test_unknown_jobs(api: Served, method: str, route: str, job_id: str) -> None:
    answer = await api.client.request(method, f"/{route}/{job_id}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_failed_callback_is_sent_again(api: Served) -> None:
    job_id = await submit(api)
    await finish(api.store, SUCCEEDED)
    await fail_callback(api.store)
    answer = await api.client.post(f"/retry/{job_id}")
    assert answer.status_code == 201
    assert answer.json() == {"id": job_id}
    assert answer.headers["location"] == f"/jobs/{job_id}"
    job = (await api.client.get(f"/jobs/{job_id}")).json()
    assert (job["state"], job["callback"]["state"]) == ("succeeded", "pending")


async def test_a_failed_download_is_run_again(api: Served) -> None:
    job_id = await submit(api)
    await finish(api.store, FAILED)
    await fail_callback(api.store)
    assert (await api.client.post(f"/retry/{job_id}?download=1")).status_code == 201
    assert (await api.client.get(f"/jobs/{job_id}")).json()["state"] == "pending"


@pytest.mark.parametrize("value", ["0", "false", ""])
async def test_download_0_sends_the_callback_of_a_failed_download(api: Served, value: str) -> None:
    job_id = await submit(api)
    await finish(api.store, FAILED)
    await fail_callback(api.store)
    assert (await api.client.post(f"/retry/{job_id}?download={value}")).status_code == 201
    job = (await api.client.get(f"/jobs/{job_id}")).json()
    assert (job["state"], job["callback"]["state"]) == ("failed", "pending")


@pytest.mark.parametrize("query", ["", "?download=1", "?download=0"])
async def test_a_job_that_has_not_failed_is_not_retried(api: Served, query: str) -> None:
    job_id = await submit(api)
    answer = await api.client.post(f"/retry/{job_id}{query}")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_to_be_retried")


async def test_a_job_is_cancelled(api: Served) -> None:
    job_id = await submit(api)
    for _ in range(2):
        answer = await api.client.delete(f"/jobs/{job_id}")
        assert (answer.status_code, answer.json()) == (202, {"id": job_id})
    job = (await api.client.get(f"/jobs/{job_id}")).json()
    assert (job["state"], job["error_code"], job["file"]) == ("cancelled", "cancelled", None)
    assert job["callback"]["state"] == "pending"
    [lease] = (await api.store.lease(Kind.CALLBACK, "worker", 9, 30)).leases
    assert lease.queue == callback_queue("http", JOB["callback_dst"])


async def test_its_failure_goes_where_failures_go_and_without_a_callback_nowhere(api: Served) -> None:
    bucket = {"s3_bucket": "abc", "s3_region": "eu-west-2", "callback_type": "", "callback_dst": ""}
    failures = {"callback_error_type": "sqs", "callback_error_dst": "failures"}
    for changes in (bucket, failures):
        assert (await api.client.delete(f"/jobs/{await submit(api, **changes)}")).status_code == 202
    [lease] = (await api.store.lease(Kind.CALLBACK, "worker", 9, 30)).leases
    assert lease.queue == "sqs failures"
    assert (await api.store.reap(9, 60)).jobs == [], "it is kept for a while"


async def test_a_job_whose_download_is_over_is_not_cancelled(api: Served) -> None:
    job_id = await submit(api)
    await finish(api.store, SUCCEEDED)
    answer = await api.client.delete(f"/jobs/{job_id}")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_to_be_cancelled")
    assert (await api.client.get(f"/jobs/{job_id}")).json()["state"] == "succeeded"


@pytest.mark.parametrize("outcome", [SUCCEEDED, FAILED])
async def test_what_is_left_of_an_ended_job_is_deleted_at_once(api: Served, outcome: Outcome) -> None:
    job_id = await submit(api)
    answer = await api.client.delete(f"/jobs/{job_id}?purge=1")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_ended")
    [lease] = (await api.store.lease(Kind.DOWNLOAD, "worker", 9, 30)).leases
    await api.store.settle("worker", [downloaded(lease, outcome, None, 60.0)])
    for _ in range(2):
        answer = await api.client.delete(f"/jobs/{job_id}?purge=1")
        assert (answer.status_code, answer.json()) == (202, {"id": job_id})
    assert (await api.client.get(f"/jobs?state={outcome.verdict}")).json()["jobs"] == []
    assert (await api.client.post(f"/retry/{job_id}?download=1")).status_code == 409
    [reaped] = (await api.store.reap(9, 60)).jobs
    assert reaped.has_file is (outcome is SUCCEEDED)
    await api.store.remove([reaped.spec.id])
    for gone in (await api.client.get(f"/jobs/{job_id}"), await api.client.delete(f"/jobs/{job_id}?purge=1")):
        assert (gone.status_code, gone.json()["code"]) == (404, "unknown_job")


async def test_a_job_whose_callback_is_pending_is_not_deleted(api: Served) -> None:
    job_id = await submit(api)
    await finish(api.store, SUCCEEDED)
    answer = await api.client.delete(f"/jobs/{job_id}?purge=1")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_ended")
    assert (await api.store.reap(9, 60)).jobs == []


@pytest.mark.row("H18")
async def test_a_form_on_another_site_cannot_retry(api: Served) -> None:
    job_id = await submit(api)
    answer = await api.client.post(f"/retry/{job_id}", headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "//etc/passwd", 404, "not_found"),
        ("GET", "/hb/", 404, "not_found"),
        ("GET", "/download", 405, "method_not_allowed"),
        ("PUT", "/download", 405, "method_not_allowed"),
        ("DELETE", "/stats", 405, "method_not_allowed"),
        ("POST", "/jobs/x", 405, "method_not_allowed"),
        ("TRACE", "/stats", 405, "method_not_allowed"),
        ("GET", "/web/none.css", 404, "not_found"),
    ],
)
async def test_errors_are_problem_documents(
    api: Served, method: str, path: str, status: int, code: str
) -> None:
    answer = await api.client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["code"] == code
    assert answer.json()["status"] == status
    if status == 405:
        assert answer.headers["allow"]


async def test_a_body_of_unknown_length_that_is_too_large(api: Served) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 65_536

    answer = await api.client.patch("/aggregations/x", content=body())
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize("route", ["/stats", "/jobs/NSb4FOAs9fVaQw", "/metrics", "/health/ready"])
async def test_a_client_that_sends_no_more_gets_its_answer(api: Served, route: str) -> None:
    async with await api.connect() as stream:
        await stream.send_all(f"GET {route} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await stream.send_eof()
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 ")


async def test_head_and_options(api: Served) -> None:
    head = await api.client.head("/health/live")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    options = await api.client.options("/download")
    assert options.status_code == 200
    assert set(options.headers["allow"].split(", ")) == {"POST", "OPTIONS"}
    assert not [name for name in options.headers if name.startswith("access-control")]
    assert (await api.client.options("*")).status_code in (200, 404)
    assert (await api.client.get("/hb")).status_code == 200


async def test_the_page_and_its_policy(api: Served) -> None:
    page = await api.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert page.headers["cache-control"] == "no-cache"
    assert "HTTP API" in page.text
    assert not re.search(
        r"\bstyle=|\bon[a-z]+=|javascript:|<style|<script(?! type=\"module\" src=)", page.text
    )
    for name in re.findall(r'(?:src|href)="web/([^"]+)"', page.text):
        assert (await api.client.get(f"/web/{name}")).status_code == 200


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("style.css", "text/css; charset=utf-8"),
        ("page.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
async def test_files_of_the_page(api: Served, name: str, kind: str) -> None:
    answer = await api.client.get(f"/web/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none';")


class Broken:
    """A store with a bug."""

    def __init__(self, store: JobStore) -> None:
        self.new_id = store.new_id

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"secret {CANARY}")


@pytest.mark.parametrize("path", ["/jobs/00000000000000", "/dashboard/aggregations", "/stats/processor"])
async def test_a_bug_of_ours_is_a_500_without_details(
    serving: Serving, store: JobStore, path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    api = await serving(store=Broken(store))
    answer = await api.client.get(path)
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert CANARY not in answer.text
    # The sampler of the web page logs its own failures, with another path.
    assert [
        line for line in "".join(capfd.readouterr()).splitlines() if "api.failed" in line and path in line
    ]
    assert (await api.client.get("/hb")).status_code == 200
