"""Lists of jobs, page by page, and failed callbacks that are sent again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from pydantic import SecretStr

from downloader.api.routes.jobs import PAGE
from downloader.config import ApiSettings, TokenSettings
from downloader.model import CallbackOutcome, ErrorCode, Kind, Outcome, Verdict
from downloader.store import CallbackPlan, Changed, JobStore, Listed, Submission
from servers.api import Served, Serving
from servers.jobs import closed, downloaded, end_all, spec_for
from servers.raw_store import RawStore


async def finished(
    store: JobStore, count: int, aggr_id: str = "a", verdict: Verdict = Verdict.FAILED, keep_s: float = 60
) -> list[str]:
    """Ids of jobs with a callback that ended so."""
    specs = [spec_for(store, aggr_id, aggr_limit=count) for _ in range(count)]
    await store.submit([Submission(spec=spec) for spec in specs])
    downloads = (await store.lease(Kind.DOWNLOAD, "me", count, 30)).leases
    plan = CallbackPlan(queue="http c", limit=count)
    done = Outcome(verdict=Verdict.SUCCEEDED)
    await store.settle("me", [downloaded(lease, done, plan, 0) for lease in downloads])
    callbacks = (await store.lease(Kind.CALLBACK, "me", count, 30)).leases
    end = CallbackOutcome(verdict=verdict, error="answered 500" if verdict is Verdict.FAILED else "")
    await store.settle("me", [closed(lease, end, keep_s, count) for lease in callbacks])
    assert len(callbacks) == count
    return [spec.id for spec in specs]


async def listed(api: Served, **query: str) -> list[dict[str, Any]]:
    """All pages, by following the links."""
    found: list[dict[str, Any]] = []
    answer = await api.client.get("/jobs", params=query or {"callback": "failed"})
    while True:
        assert answer.status_code == 200
        found += answer.json()["jobs"]
        if not answer.json()["cursor"]:
            assert "link" not in answer.headers
            return found
        answer = await api.client.get(answer.links["next"]["url"])


async def retried(api: Served, **query: str) -> int:
    """How many, in all pages."""
    total: int = 0
    cursor = ""
    while True:
        answer = (await api.client.post("/retry", params={**query, "cursor": cursor})).json()
        total += answer["retried"]
        if not (cursor := answer["cursor"]):
            return total


async def test_they_are_listed_and_sent_again(api: Served) -> None:
    await finished(api.store, 3, verdict=Verdict.SUCCEEDED)
    failed = await finished(api.store, 2)
    rows = await listed(api)
    assert {row["id"] for row in rows} == set(failed)
    assert {(row["aggr_id"], row["error"]) for row in rows} == {("a", "answered 500")}
    assert await retried(api) == 2
    assert await listed(api) == []
    assert await retried(api) == 0
    leases = (await api.store.lease(Kind.CALLBACK, "me", 9, 30)).leases
    assert {lease.id for lease in leases} == set(failed)


async def test_more_than_a_page(api: Served) -> None:
    """Many end in one call, and thus at the same time."""
    failed = await finished(api.store, PAGE + 10)
    await finished(api.store, PAGE + 10, verdict=Verdict.SUCCEEDED, keep_s=50)
    first = await api.client.get("/jobs", params={"callback": "failed"})
    assert len(first.json()["jobs"]) == PAGE, "jobs whose callback succeeded are not walked"
    assert {row["id"] for row in await listed(api)} == set(failed)
    assert len(await listed(api)) == len(failed)
    assert await retried(api) == len(failed)
    assert await listed(api) == []


async def test_a_page_is_empty_only_at_the_end(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await finished(api.store, PAGE, "a", keep_s=1000)
    [last] = await finished(api.store, 1, "b")
    monkeypatch.setattr("downloader.api.routes.jobs.SEARCH_S", 0.0)
    page = (await api.client.post("/retry?aggr_id=b")).json()
    assert page["retried"] == 0
    assert page["cursor"], "its time was up"
    page = (await api.client.get("/jobs?callback=failed&aggr_id=b")).json()
    assert [job["id"] for job in page["jobs"]] == [last]


async def test_each_job_has_its_url_without_secrets(api: Served) -> None:
    spec = spec_for(api.store, "a", url="https://u:secret@h.example/a?token=secret")
    await api.store.submit([Submission(spec=spec)])
    [job] = await listed(api, state="pending", aggr_id="a")
    assert job["url"].startswith("https://")
    assert "h.example/a?token=" in job["url"]
    assert "secret" not in job["url"]
    told = CallbackOutcome(verdict=Verdict.SUCCEEDED)
    await end_all(api.store, Outcome(verdict=Verdict.FAILED, error="no route"), callback=told)
    [failure] = await listed(api, state="failed")
    assert failure["url"] == job["url"]
    assert (await api.client.get(f"/jobs/{spec.id}")).json()["url"] == job["url"]


async def test_jobs_are_found_and_retried_by_any_of_some_tags(api: Served) -> None:
    for tags in (["x"], ["y", "z"], ["\u00fc z"], []):
        fields = {"aggr_id": "a", "url": "https://h/1", "aggr_limit": 4, "tags": [*tags, *tags]}
        callback = {"callback_type": "http", "callback_dst": "http://c/d"}
        assert (await api.client.post("/download", json=fields | callback)).status_code == 201
    rows = await listed(api, state="pending", aggr_id="a")
    assert sorted(row.get("tags", []) for row in rows) == [[], ["x"], ["y", "z"], ["\u00fc z"]]
    assert len(await listed(api, state="pending", aggr_id="a", tags="x,z,\u00fc z")) == 3
    assert await listed(api, state="pending", aggr_id="a", tags="X") == []
    gone = CallbackOutcome(verdict=Verdict.FAILED, error="gone")
    await end_all(api.store, Outcome(verdict=Verdict.FAILED, error="no route"), callback=gone)
    [failed] = await listed(api, callback="failed", tags="y")
    assert (await api.client.get(f"/jobs/{failed['id']}")).json()["tags"] == ["y", "z"]
    assert await retried(api, tags="none") == 0
    assert await retried(api, tags="x,y") == 2


async def test_a_page_of_large_jobs_is_shorter(api: Served) -> None:
    specs = [spec_for(api.store, "a", extra="x" * 2**20) for _ in range(6)]
    for spec in specs:
        await api.store.submit([Submission(spec=spec)])
    page = await api.store.jobs(Listed.PENDING, "a", "", PAGE)
    assert len(page.jobs) == 4
    rest = await api.store.jobs(Listed.PENDING, "a", page.cursor, PAGE)
    assert {job.id for job in [*page.jobs, *rest.jobs]} == {spec.id for spec in specs}
    assert rest.cursor == ""


async def failed_downloads(store: JobStore, count: int, aggr_id: str, code: ErrorCode) -> list[str]:
    """Jobs whose download has failed, and whose callback about that was delivered."""
    specs = [spec_for(store, aggr_id, aggr_limit=count) for _ in range(count)]
    await store.submit([Submission(spec=spec) for spec in specs])
    failed = Outcome(verdict=Verdict.FAILED, error="e", error_code=code)
    downloads = (await store.lease(Kind.DOWNLOAD, "me", count, 30)).leases
    await store.settle("me", [downloaded(lease, failed, None, 0) for lease in downloads])
    return [spec.id for spec in specs]


async def test_failed_downloads_are_repeated_in_bulk(api: Served) -> None:
    store = api.store
    gone = await failed_downloads(store, PAGE + 5, "a", ErrorCode.HTTP_STATUS)
    slow = await failed_downloads(store, 2, "b", ErrorCode.TIMEOUT)
    assert await retried(api) == 0, "no callback has failed"
    assert await retried(api, download="1", aggr_id="b", error_code=ErrorCode.HTTP_STATUS) == 0
    assert await retried(api, download="1", since="2100-01-01T00:00:00Z") == 0
    answer = (await api.client.post(f"/retry?download=1&error_code={ErrorCode.TIMEOUT}")).json()
    assert answer["retried"] == len(slow), "it goes on until something matched"
    assert await retried(api, download="1") == len(gone)
    assert await retried(api, download="1") == 0
    assert await store.aggregation_sizes() == {"a": len(gone), "b": len(slow)}


async def test_a_deleted_job_is_no_failed_download(raw: RawStore, api: Served) -> None:
    [job_id] = await failed_downloads(api.store, 1, "a", ErrorCode.HTTP_STATUS)
    page = await api.store.jobs(Listed.FAILED_DOWNLOADS, "", "", 9)
    assert [job.id for job in page.jobs] == [job_id]
    await api.store.reap(9, 60)
    await api.store.remove([job_id])
    assert raw.command("ZCARD", raw.key("failed_downloads")) == 0


async def test_callbacks_of_one_destination_are_sent_again(api: Served) -> None:
    await finished(api.store, 2)
    assert await retried(api, destination="http d") == 0
    assert await listed(api, callback="failed", destination="http d") == []
    assert len(await listed(api, callback="failed", destination="http c")) == 2
    assert await retried(api, destination="http c") == 2


@pytest.mark.parametrize("path", ["/retry", "/retry/00000000000000"])
async def test_an_unknown_parameter_of_a_retry_is_refused(api: Served, path: str) -> None:
    await finished(api.store, 1)
    answer = await api.client.post(f"{path}?aggregation=b")
    assert (answer.status_code, answer.json()["field"]) == (422, "aggregation")
    assert len(await listed(api)) == 1


async def test_those_of_an_aggregation_since_a_time(api: Served) -> None:
    first, second = await finished(api.store, 1, "a b"), await finished(api.store, 1, "c")
    now = datetime.now(UTC)
    assert [row["id"] for row in await listed(api, callback="failed", aggr_id="a b")] == first
    assert [
        row["id"] for row in await listed(api, callback="failed", since="2020-01-01T00:00:00Z", aggr_id="c")
    ] == second
    later = now.replace(year=now.year + 1).isoformat()
    assert await listed(api, callback="failed", since=later) == []
    assert await retried(api, since=later) == 0
    assert await retried(api, aggr_id="c") == 1
    assert [row["id"] for row in await listed(api)] == first


async def test_a_failed_callback_counts_from_its_own_failure(raw: RawStore, api: Served) -> None:
    """An operator sends again what failed in an outage, however long before it was downloaded."""
    store, since = api.store, "2020-01-01T00:00:00Z"
    [job_id] = await finished(store, 1)
    raw.command("HSET", raw.key("task", Kind.DOWNLOAD, job_id), "finished", 1000)
    assert ids(await listed(api, callback="failed", since=since)) == {job_id}
    assert await retried(api, since=since) == 1


def ids(rows: list[dict[str, Any]]) -> set[str]:
    return {row["id"] for row in rows}


async def test_jobs_in_each_state(api: Served) -> None:
    store = api.store
    succeeded, failed = await finished(store, 2, verdict=Verdict.SUCCEEDED), await finished(store, 1, "b")
    specs = [spec_for(store, aggr_id, aggr_limit=1) for aggr_id in ("a", "b", "c")]
    await store.submit([Submission(spec=spec) for spec in specs])
    runs = {lease.queue: lease.id for lease in (await store.lease(Kind.DOWNLOAD, "me", 9, 30)).leases}
    await store.cancel(specs[2], None, 60)
    waiting = [spec_for(store, "a") for _ in range(3)]
    await store.submit([Submission(spec=spec) for spec in waiting])

    assert ids(await listed(api, state="succeeded")) == {*succeeded, *failed}
    assert ids(await listed(api, state="succeeded", aggr_id="a")) == set(succeeded)
    assert ids(await listed(api, state="succeeded", callback="failed")) == set(failed)
    assert ids(await listed(api, callback="succeeded")) == set(succeeded)
    assert await listed(api, state="failed") == []
    [row] = await listed(api, state="cancelled", since="2020-01-01T00:00:00Z")
    assert (row["id"], row["callback"], row["error"]) == (runs["c"], None, "cancelled by a client")
    assert row["finished_at"] is not None
    assert ids(await listed(api, state="running")) == {runs["a"], runs["b"]}
    assert ids(await listed(api, state="running", aggr_id="b")) == {runs["b"]}
    rows = await listed(api, state="pending", aggr_id="a")
    assert ids(rows) == {spec.id for spec in waiting}
    assert {(row["aggr_id"], row["state"], row["finished_at"]) for row in rows} == {("a", "pending", None)}
    assert await listed(api, state="pending", aggr_id="none") == []


@pytest.mark.parametrize("which", [Listed.PENDING, Listed.RUNNING])
async def test_pages_go_on_where_the_last_one_ended(api: Served, which: Listed) -> None:
    specs = [spec_for(api.store, aggr_limit=9) for _ in range(7)]
    await api.store.submit([Submission(spec=spec) for spec in specs])
    if which is Listed.RUNNING:
        await api.store.lease(Kind.DOWNLOAD, "me", 9, 30)
    found, cursor = [], ""
    while True:
        page = await api.store.jobs(which, "a", cursor, 3)
        found += [each.id for each in page.jobs]
        if not (cursor := page.cursor):
            break
    assert sorted(found) == sorted(spec.id for spec in specs)


async def test_a_cursor_whose_job_has_gone(api: Served) -> None:
    """It was sent again meanwhile: those of the same time come again, and none is left out."""
    late = await finished(api.store, 2, keep_s=90)
    failed = sorted(await finished(api.store, 5), reverse=True)
    page = await api.store.jobs(Listed.FINISHED, "", "", 4)
    assert [each.id for each in page.jobs] == sorted(late, reverse=True) + failed[:2]
    assert await api.store.retry(failed[1], download=False, limit=4) is Changed.DONE
    rest = await api.store.jobs(Listed.FINISHED, "", page.cursor, 9)
    found = {each.id for each in rest.jobs}
    assert set(failed[2:]) <= found
    assert not found & set(late)


async def test_a_job_that_is_being_deleted_is_not_listed(api: Served) -> None:
    [job_id] = await finished(api.store, 1, keep_s=0)
    assert [job["id"] for job in await listed(api)] == [job_id]
    assert len((await api.store.reap(9, 60)).jobs) == 1
    assert await listed(api) == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({}, "state"),
        ({"aggr_id": "a"}, "state"),
        ({"callback": "delivered"}, "callback"),
        ({"state": "done"}, "state"),
        ({"state": "pending"}, "aggr_id"),
        ({"state": "pending", "aggr_id": "a", "callback": "failed"}, "callback"),
        ({"state": "running", "since": "2020-01-01T00:00:00Z"}, "since"),
        ({"state": "running", "aggr_id": "a", "cursor": "1.."}, "cursor"),
        ({"callback": "failed", "since": "yesterday"}, "since"),
        ({"callback": "failed", "since": "2026-11-27T08:00:00"}, "since"),
        ({"callback": "failed", "since": "2026-11-27"}, "since"),
        ({"callback": "failed", "since": "0001-01-01T00:00:00Z" * 9}, "since"),
        ({"callback": "failed", "cursor": "x"}, "cursor"),
        ({"callback": "failed", "cursor": "1.1.a"}, "cursor"),
        ({"callback": "failed", "cursor": "0.1.*"}, "cursor"),
    ],
)
async def test_a_query_at_fault(api: Served, query: dict[str, str], field: str) -> None:
    answer = await api.client.get("/jobs", params=query)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "query", field)


async def test_a_token_reaches_its_own_aggregations(serving: Serving) -> None:
    secret = "0123456789abcdef"
    token = TokenSettings(name="t", token=SecretStr(secret), scopes=["admin"], aggregations=["a"])
    api = await serving(settings=ApiSettings(tokens=[token]))
    api.client.headers["Authorization"] = f"Bearer {secret}"
    own, _ = await finished(api.store, 1), await finished(api.store, 1, "b")
    assert [row["id"] for row in await listed(api)] == own
    assert await retried(api) == 1


async def failures(api: Served, **query: str) -> list[tuple[str, str, str, str, int]]:
    answer = await api.client.get("/failures", params=query)
    assert answer.status_code == 200
    rows = answer.json()["groups"]
    return [(row["kind"], row["aggr_id"], row["error_code"], row["error"], row["jobs"]) for row in rows]


async def test_failures_are_counted_by_aggregation_and_reason(api: Served) -> None:
    await failed_downloads(api.store, 3, "b-1", ErrorCode.DNS)
    await failed_downloads(api.store, 2, "b-1", ErrorCode.TLS)
    [first, _] = await finished(api.store, 2, "a")
    await finished(api.store, 1, verdict=Verdict.SUCCEEDED)
    callbacks = ("callback", "a", "", "answered 500", 2)
    assert await failures(api) == [
        ("download", "b-1", "dns", "e", 3),
        callbacks,
        ("download", "b-1", "tls", "e", 2),
    ]
    assert await failures(api, q="B") == [
        ("download", "b-1", "dns", "e", 3),
        ("download", "b-1", "tls", "e", 2),
    ]
    assert await failures(api, aggr_id="b") == []
    assert await failures(api, aggr_id="a") == [callbacks]
    await api.client.post(f"/retry/{first}")
    assert await failures(api, aggr_id="a") == [("callback", "a", "", "answered 500", 1)]
    answer = (await api.client.get("/failures")).json()
    assert (answer["downloads"]["jobs"], answer["callbacks"]["jobs"], answer["complete"]) == (5, 1, True)
    newest = await api.store.get(answer["groups"][0]["newest"])
    assert newest is not None
    assert newest.outcome is not None
    assert newest.outcome.error_code == ErrorCode.DNS


async def test_no_more_than_was_counted_is_retried(api: Served) -> None:
    await finished(api.store, 3)
    until = (await api.client.get("/failures")).json()["callbacks"]["newest_at"]
    await trio.sleep(0.002)
    [late] = await finished(api.store, 1)
    assert await retried(api, until=until, q="A") == 3
    assert [row["id"] for row in await listed(api)] == [late]
    assert await listed(api, callback="failed", until=until) == []


async def test_failures_are_counted_over_many_calls(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("downloader.api.routes.failures.COUNTED_AT_ONCE", 2)
    monkeypatch.setattr("downloader.api.routes.failures.COUNTED", 4)
    await finished(api.store, 7)
    newest = (await api.client.get("/failures")).json()
    assert (newest["callbacks"]["jobs"], newest["complete"]) == (4, False)
    everything = (await api.client.get("/failures?all=1")).json()
    assert (everything["callbacks"]["jobs"], everything["complete"]) == (7, True)
    assert len(everything["groups"]) == 1
    monkeypatch.setattr("downloader.api.routes.failures.ROWS", 0)
    none = (await api.client.get("/failures?all=1")).json()
    assert (none["groups"], none["more_groups"], none["callbacks"]["jobs"]) == ([], 1, 7)


async def test_the_newest_failures_are_listed_first(api: Served) -> None:
    old = await failed_downloads(api.store, 1, "a", ErrorCode.DNS)
    new = await failed_downloads(api.store, PAGE, "a", ErrorCode.DNS)
    page = await api.store.jobs(Listed.FAILED_DOWNLOADS, "", "", PAGE)
    assert {job.id for job in page.jobs} == set(new)
    rest = await api.store.jobs(Listed.FAILED_DOWNLOADS, "", page.cursor, PAGE)
    assert [job.id for job in rest.jobs] == old


async def test_a_token_sees_failures_of_its_aggregations_only(serving: Serving, store: JobStore) -> None:
    token = TokenSettings(name="t", token=SecretStr("t" * 20), scopes=["read"], aggregations=["b*"])
    api = await serving(settings=ApiSettings(tokens=[token]))
    await finished(store, 1, aggr_id="b")
    await finished(store, 1, aggr_id="a")
    api.client.headers["Authorization"] = f"Bearer {'t' * 20}"
    assert [aggr_id for _, aggr_id, *_ in await failures(api)] == ["b"]
    assert await failures(api, aggr_id="a") == []


async def test_a_deleted_job_is_no_failure_any_more(api: Served) -> None:
    await finished(api.store, 1, keep_s=0)
    assert len(await failures(api)) == 1
    [reapable] = (await api.store.reap(9, 60)).jobs
    await api.store.remove([reapable.spec.id])
    assert await failures(api) == []


async def test_a_page_has_as_many_jobs_as_are_asked_for(api: Served) -> None:
    ids = await finished(api.store, 3)
    page = (await api.client.get("/jobs?callback=failed&count=2")).json()
    assert (len(page["jobs"]), bool(page["cursor"])) == (2, True)
    assert {job["id"] for job in await listed(api, callback="failed", count="2")} == {*ids}
    for count in ("0", "201", "x", "-1"):
        answer = await api.client.get("/jobs", params={"callback": "failed", "count": count})
        assert (answer.status_code, answer.json()["field"]) == (422, "count")


async def test_running_jobs_have_their_bytes_so_far(serving: Serving, store: JobStore) -> None:
    tokens = [
        TokenSettings(name=name, token=SecretStr(name * 5), scopes=["read"], aggregations=aggregations)
        for name, aggregations in (("all-", ["*"]), ("own-", ["a"]))
    ]
    api = await serving(settings=ApiSettings(tokens=tokens))
    await store.submit([Submission(spec=spec_for(store, "a", aggr_limit=2)) for _ in range(2)])
    long, just_begun = (await store.lease(Kind.DOWNLOAD, "me", 2, 60)).leases
    await store.report("one", "processor", {"instance": "host-1", "running": {long.id: 7, "gone": 1}}, 60)
    oddities: list[object] = [[], None, {long.id: "7"}, {long.id: None}]
    for odd in oddities:
        await store.report(f"newer {odd}", "processor", {"running": odd}, 60)
    for name, instance in (("all-", "host-1"), ("own-", "")):
        headers = {"Authorization": f"Bearer {name * 5}"}
        jobs = (await api.client.get("/jobs?state=running", headers=headers)).json()["jobs"]
        progress = {job["id"]: job.get("progress") for job in jobs}
        assert progress == {long.id: {"received": 7, "instance": instance}, just_begun.id: None}
        job = (await api.client.get(f"/jobs/{long.id}", headers=headers)).json()
        assert job["progress"] == {"received": 7, "instance": instance}
        assert job["instance"] == (instance and "me"), "the owner of the lease"
