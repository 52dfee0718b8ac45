"""Aggregations: shown page by page, and changed by an operator."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
import trio
import trio.testing
from pydantic import SecretStr
from structlog.testing import capture_logs

from downloader.api.routes.aggregations import PAGE
from downloader.config import ApiSettings, RedisSettings, TokenSettings
from downloader.model import Cooldown, ErrorCode, Kind, Outcome, StartRate, Verdict
from downloader.store import CLUSTER_SHARDS, JobStore, Keys, Settled, Submission, open_store
from downloader.store.reader import LISTED_AT_ONCE
from servers.api import Served, Serving
from servers.jobs import downloaded, spec_for, tried_again
from servers.valkey import Valkey

NAMES = ("a/b", "/a", "a/", "a b", "ü", "%2F", "a?b#c", "a//b", "x" * 128)


async def submit(store: JobStore, aggr_id: str = "a", count: int = 1, **fields: Any) -> None:
    specs = [spec_for(store, aggr_id, **fields) for _ in range(count)]
    await store.submit([Submission(spec=spec) for spec in specs])


async def shown(api: Served, aggr_id: str = "a") -> dict[str, Any]:
    answer = await api.client.get(f"/aggregations/{quote(aggr_id, safe='')}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def patched(api: Served, **changes: Any) -> dict[str, Any]:
    answer = await api.client.patch("/aggregations/a", json=changes)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def granted(store: JobStore, count: int = 9) -> int:
    return len((await store.lease(Kind.DOWNLOAD, "me", count, 60)).leases)


async def test_an_aggregation_as_it_runs(api: Served) -> None:
    await submit(api.store, count=3, aggr_limit=2, aggr_proxy="http://me:secret@proxy:8080")
    assert await granted(api.store, 1) == 1
    found = await shown(api)
    assert found.pop("next_due_at").endswith("Z")
    assert found == {
        "aggr_id": "a",
        "state": "no_processor",
        "limit": 2,
        "rate": None,
        "delay": None,
        "overridden": {},
        "proxy": "http://proxy:8080",
        "paused": False,
        "in_flight": 1,
        "pending": 2,
        "cooling_until": None,
        "pace": None,
        "cooling_reason": "",
    }


async def test_an_aggregation_that_cools_down(api: Served) -> None:
    await submit(api.store)
    [lease] = (await api.store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
    pause = Cooldown(seconds=600, asked=True)
    end = Outcome(verdict=Verdict.THROTTLED, error="Received Status code 429", cooldown=pause)
    await api.store.settle("me", [tried_again(lease, end, 0)])
    found = await shown(api)
    assert found["cooling_until"] == found["next_due_at"] is not None
    assert found["cooling_reason"] == "Received Status code 429"


@pytest.mark.parametrize("name", NAMES)
async def test_any_name_can_be_asked_for(api: Served, name: str) -> None:
    await submit(api.store, name)
    assert (await shown(api, name))["aggr_id"] == name
    answer = await api.client.patch(f"/aggregations/{quote(name, safe='')}", json={"limit": 7})
    assert (answer.json()["aggr_id"], answer.json()["limit"]) == (name, 7)


async def test_all_pages_together_have_each_one(api: Served) -> None:
    names = {f"host-{number}" for number in range(3 * PAGE)}
    for name in names:
        await submit(api.store, name)
    await submit(api.store, "busy", count=3)
    seen: list[str] = []
    pages = 0
    answer = await api.client.get("/aggregations")
    while True:
        assert answer.status_code == 200
        rows = answer.json()["aggregations"]
        assert [row["pending"] for row in rows] == sorted((row["pending"] for row in rows), reverse=True)
        seen += [row["aggr_id"] for row in rows]
        pages += 1
        if not answer.json()["cursor"]:
            assert "link" not in answer.headers
            break
        assert answer.links["next"]["url"] == f"/aggregations?cursor={answer.json()['cursor']}"
        answer = await api.client.get(answer.links["next"]["url"])
    assert sorted(seen) == sorted(names | {"busy"})
    assert pages > 1


async def found(api: Served, query: str) -> tuple[list[str], dict[str, Any]]:
    answer = await api.client.get(f"/aggregations?{query}")
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return [row["aggr_id"] for row in page["aggregations"]], page


async def test_they_are_searched_and_sorted_page_by_page(api: Served) -> None:
    for name, jobs, limit in (("img-b", 1, 3), ("IMG-a", 3, 1), ("video", 2, 2), ("img-c", 1, 9)):
        await submit(api.store, name, jobs, aggr_limit=limit)
    await api.client.patch("/aggregations/img-c", json={"paused": True})

    for query, expected in (
        ("q=", ["IMG-a", "video", "img-b", "img-c"]),
        ("sort=", ["IMG-a", "video", "img-b", "img-c"]),
        ("sort=work", ["img-b", "img-c", "video", "IMG-a"]),
        ("sort=aggr_id", ["IMG-a", "img-b", "img-c", "video"]),
        ("sort=-limit", ["img-c", "img-b", "video", "IMG-a"]),
        ("sort=-state&q=img", ["img-c", "IMG-a", "img-b"]),
        ("q=nowhere", []),
    ):
        assert (await found(api, query))[0] == expected, query

    names, page = await found(api, "q=img&sort=aggr_id&count=2")
    assert (names, page["total"]) == (["IMG-a", "img-b"], 3)
    assert page["aggregations"][1]["limit"] == 3
    answer = await api.client.get(f"/aggregations?q=img&sort=aggr_id&count=2&cursor={page['cursor']}")
    assert [row["aggr_id"] for row in answer.json()["aggregations"]] == ["img-c"]
    assert (answer.json()["cursor"], "link" in answer.headers) == ("", False)


async def test_all_of_many_are_found(api: Served) -> None:
    names = [f"host-{number:04}" for number in range(LISTED_AT_ONCE + 2)]
    await api.store.submit([Submission(spec=spec_for(api.store, name)) for name in names])
    page, answer = await found(api, "sort=-aggr_id&count=2")
    assert (page, answer["total"]) == ([names[-1], names[-2]], len(names))


@pytest.mark.parametrize(
    "query", ["sort=colour", "sort=-", "q=&count=0", "q=&count=101", "q=&count=x", "q=&cursor=-1"]
)
async def test_a_search_that_is_refused(api: Served, query: str) -> None:
    answer = await api.client.get(f"/aggregations?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "query")
    if query.startswith("sort"):
        assert answer.json()["detail"].startswith("sort must be one of aggr_id, in_flight, ")


async def test_an_operator_s_limit_holds_until_it_is_cleared(api: Served) -> None:
    await submit(api.store, count=9, aggr_limit=8)
    found = await patched(api, limit=2)
    assert (found["limit"], found["overridden"]) == (2, {"limit": 8})
    await submit(api.store, aggr_limit=5)
    assert await granted(api.store) == 2, "jobs that come later do not change it"
    assert (await patched(api, limit=3))["overridden"] == {"limit": 5}, "nor does a second change hide theirs"
    found = await patched(api, limit=None)
    assert (found["limit"], found["overridden"]) == (5, {})
    assert await granted(api.store) == 3
    assert (await patched(api, limit=None))["limit"] == 5
    await submit(api.store, aggr_limit=6)
    assert await granted(api.store) == 1, "the newest job's value applies again"


async def test_an_operator_s_rate_and_delay_hold_likewise(api: Served) -> None:
    await submit(api.store, count=2, aggr_rate=0.5)
    found = await patched(api, rate=20, delay=1.5)
    assert (found["rate"], found["delay"]) == (20, 1.5)
    assert found["overridden"] == {"rate": 0.5, "delay": None}
    await submit(api.store, aggr_delay=3)
    found = await patched(api, delay=None)
    assert (found["rate"], found["delay"], found["overridden"]) == (20, 3, {"rate": 0.5})
    await submit(api.store)
    found = await patched(api, rate=None)
    assert (found["rate"], found["delay"]) == (0.5, 3), "a job that names none changes nothing"


async def test_a_pause_holds_until_it_ends(api: Served) -> None:
    await submit(api.store, count=3, aggr_limit=9)
    found = await patched(api, paused=True)
    assert (found["paused"], found["next_due_at"], found["limit"]) == (True, None, 9)
    await submit(api.store, aggr_limit=9)
    assert await granted(api.store) == 0
    for end in (False, None):
        await patched(api, paused=True)
        assert not (await patched(api, paused=end))["paused"]
    assert (await patched(api))["next_due_at"] is not None
    assert await granted(api.store) == 4


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"limit": 0}, "out_of_range", "limit"),
        ({"limit": 2.5}, "wrong_type", "limit"),
        ({"limit": True}, "wrong_type", "limit"),
        ({"limit": "2"}, "wrong_type", "limit"),
        ({"rate": 0}, "out_of_range", "rate"),
        ({"rate": True}, "wrong_type", "rate"),
        ({"delay": -1}, "out_of_range", "delay"),
        ({"delay": "1"}, "wrong_type", "delay"),
        ({"paused": 1}, "wrong_type", "paused"),
        ({"pasued": True}, "unknown_field", "pasued"),
        ({"proxy": ""}, "unknown_field", "proxy"),
    ],
)
async def test_a_change_that_is_refused(api: Served, change: Any, code: str, field: str) -> None:
    await submit(api.store, aggr_limit=4)
    answer = await api.client.patch("/aggregations/a", json={"paused": True, **change})
    assert answer.status_code == 422
    assert (answer.json()["code"], answer.json()["field"]) == (code, field)
    assert (answer.json()["detail"] == f"{field} is not a known field.") is (code == "unknown_field")
    found = await shown(api)
    assert (found["limit"], found["paused"]) == (4, False), "all of it or nothing"


@pytest.mark.row("H16")
@pytest.mark.parametrize("names", [[f"{number:x}" for number in range(20_000)], ["x" * 200_000]])
async def test_unknown_fields_without_number_or_end_are_answered_in_short(
    api: Served, names: list[str]
) -> None:
    answer = await api.client.patch("/aggregations/x", json={"limit": 0} | dict.fromkeys(names))
    assert (answer.status_code, answer.json()["code"]) == (422, "out_of_range")
    assert 1 < len(answer.json()["errors"]) <= 11
    assert len(answer.content) < 4096


async def test_what_an_operator_sets_stays_without_jobs(api: Served) -> None:
    """Before the first job, and while there is none: a feed in bursts is empty between two of them."""
    set_first = {"paused": True, "limit": 1, "rate": 0.5}
    answer = await api.client.patch("/aggregations/a", json=set_first)
    assert answer.status_code == 200
    assert {name: answer.json()[name] for name in set_first} == set_first
    assert (await api.client.get("/dashboard/aggregations")).json() == [], "it has no work"
    await submit(api.store, count=2, aggr_limit=2)
    assert await granted(api.store) == 0, "paused"
    assert (await patched(api, paused=False))["limit"] == 1
    [lease] = (await api.store.lease(Kind.DOWNLOAD, "me", 9, 10)).leases
    await api.store.settle("me", [downloaded(lease, Outcome(verdict=Verdict.SUCCEEDED), None, 60)])
    await patched(api, rate=None)
    [lease] = (await api.store.lease(Kind.DOWNLOAD, "me", 9, 10)).leases
    await api.store.settle("me", [downloaded(lease, Outcome(verdict=Verdict.SUCCEEDED), None, 60)])
    view = await shown(api)
    assert (view["limit"], view["overridden"], view["pending"], view["in_flight"]) == (
        1,
        {"limit": None},
        0,
        0,
    )
    await patched(api, limit=None)
    assert (await api.client.get("/aggregations/a")).status_code == 404, "all of it was taken back"


@pytest.mark.parametrize("name", ["x" * 129, "a%00b", "%E2%80%8B", ""])
async def test_what_no_job_can_name_is_no_aggregation(api: Served, name: str) -> None:
    answer = await api.client.patch(f"/aggregations/{name}", json={"paused": True})
    assert answer.status_code == 404


async def test_an_operator_ends_a_cooldown(api: Served) -> None:
    await submit(api.store, count=2, aggr_limit=2)
    [lease] = (await api.store.lease(Kind.DOWNLOAD, "me", 1, 10)).leases
    pause = Cooldown(seconds=600, asked=True, had=StartRate(4.0, 1))
    await api.store.settle("me", [tried_again(lease, Outcome(verdict=Verdict.THROTTLED, cooldown=pause), 0)])
    found = await shown(api)
    assert (found["state"], found["pace"]) == ("cooling", 2.0)
    assert await granted(api.store) == 0
    ended = await patched(api, cooling=None)
    assert (ended["cooling_until"], ended["pace"]) == (None, None)
    assert await granted(api.store) == 2
    refused = await api.client.patch("/aggregations/a", json={"cooling": 5})
    assert (refused.status_code, refused.json()["field"]) == (422, "cooling")


async def test_no_object_and_no_aggregation(api: Served) -> None:
    assert (await api.client.patch("/aggregations/a", content=b"[]")).status_code == 400
    for answer in (
        await api.client.get("/aggregations/a"),
        await api.client.patch("/aggregations/a", json={"paused": False, "limit": None}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_aggregation")
    answer = await api.client.get("/aggregations?cursor=x")
    assert (answer.status_code, answer.json()["field"]) == (422, "cursor")


async def test_tokens(serving: Serving, store: JobStore) -> None:
    def token(name: str, **fields: Any) -> TokenSettings:
        return TokenSettings(name=name, token=SecretStr(name * 20), **fields)

    tokens = [
        token("reader", scopes=["read"]),
        token("mine", scopes=["admin"], aggregations=["my-*"]),
        token("sender", scopes=["submit"]),
    ]
    api = await serving(settings=ApiSettings(tokens=tokens))
    for name in ("my-a", "a"):
        await submit(store, name)

    async def status(name: str, method: str, path: str) -> int:
        headers = {"Authorization": f"Bearer {name * 20}"}
        answer = await api.client.request(method, path, headers=headers, content=b'{"paused": true}')
        return answer.status_code

    assert await status("reader", "GET", "/aggregations/a") == 200
    assert await status("reader", "PATCH", "/aggregations/a") == 403
    assert await status("sender", "GET", "/aggregations/a") == 403
    assert await status("mine", "GET", "/aggregations/a") == 404
    assert await status("mine", "PATCH", "/aggregations/a") == 404
    assert await status("mine", "PATCH", "/aggregations/my-a") == 200
    assert [each.aggr_id for each in (await store.aggregations("", 9)).aggregations if each.paused] == [
        "my-a"
    ]
    for path, total in (("/aggregations", None), ("/aggregations?q=a", 1)):
        rows = await api.client.get(path, headers={"Authorization": f"Bearer {'mine' * 20}"})
        assert [row["aggr_id"] for row in rows.json()["aggregations"]] == ["my-a"]
        assert rows.json().get("total") == total


async def cancelled(api: Served, aggr_id: str = "a") -> dict[str, Any]:
    answer = await api.client.delete(f"/aggregations/{quote(aggr_id, safe='')}/jobs")
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def test_all_jobs_of_an_aggregation_are_cancelled(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that run too; with a callback each; those of others stay."""
    monkeypatch.setattr("downloader.api.routes.aggregations.CANCELLED_AT_ONCE", 2)
    await submit(api.store, count=5, aggr_limit=3, priority=1)
    await submit(api.store, "b")
    leases = (await api.store.lease(Kind.DOWNLOAD, "me", 3, 60)).leases
    of_a = [lease for lease in leases if lease.queue == "a"]
    assert len(of_a) == 2
    assert await cancelled(api) == {"cancelled": 5, "complete": True}
    assert await cancelled(api) == {"cancelled": 0, "complete": True}
    answers = await api.store.renew(Kind.DOWNLOAD, "me", of_a, 60)
    assert answers == [Settled.CANCELLED] * 2
    callbacks = (await api.store.lease(Kind.CALLBACK, "me", 9, 60)).leases
    results = [lease.result for lease in callbacks if lease.result]
    assert [result.error_code for result in results] == [ErrorCode.CANCELLED] * 5
    assert (await shown(api))["in_flight"] == 2, "they hold their slots until they stop"
    assert (await shown(api, "b"))["in_flight"] == 1


async def test_a_request_to_cancel_is_bounded(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("downloader.api.routes.aggregations.CANCELLED_AT_ONCE", 2)
    monkeypatch.setattr("downloader.api.routes.aggregations.CANCEL_S", 1e-9)
    await submit(api.store, count=3)
    assert await cancelled(api) == {"cancelled": 2, "complete": False}
    assert await cancelled(api) == {"cancelled": 1, "complete": True}


async def test_jobs_are_cancelled_by_any_name(api: Served) -> None:
    for name in NAMES:
        await submit(api.store, name)
        assert await cancelled(api, name) == {"cancelled": 1, "complete": True}
    assert await cancelled(api, "unknown") == {"cancelled": 0, "complete": True}
    await submit(api.store, "a/jobs")
    assert (await shown(api, "a/jobs"))["pending"] == 1


async def test_large_jobs_are_cancelled_a_few_at_a_time(api: Served) -> None:
    for _ in range(6):
        await submit(api.store, extra="x" * 2**20)
    specs, more = await api.store.unfinished("a", 9)
    assert (len(specs), more) == (4, True)
    assert await cancelled(api) == {"cancelled": 6, "complete": True}


async def test_a_token_cancels_only_jobs_of_its_aggregations(serving: Serving, store: JobStore) -> None:
    tokens = [
        TokenSettings(name=scope, token=SecretStr(scope * 8), scopes=[scope], aggregations=["a"])
        for scope in ("submit", "retry")
    ]
    api = await serving(settings=ApiSettings(tokens=tokens))
    await submit(store, "a")
    await submit(store, "b")
    api.client.headers["Authorization"] = f"Bearer {'retry' * 8}"
    assert (await api.client.delete("/aggregations/a/jobs")).status_code == 403
    api.client.headers["Authorization"] = f"Bearer {'submit' * 8}"
    assert (await api.client.delete("/aggregations/b/jobs")).status_code == 404
    assert (await cancelled(api))["cancelled"] == 1
    assert await store.aggregation_sizes() == {"b": 1}


async def test_what_an_aggregation_waits_for(api: Served) -> None:
    async def state() -> str:
        [row] = (await api.client.get("/aggregations")).json()["aggregations"]
        assert (await shown(api))["state"] == row["state"]
        return str(row["state"])

    async def report(name: str, **facts: Any) -> None:
        await api.store.report(name, "processor", {"instance": name, **facts}, 60)

    await submit(api.store, count=5, aggr_limit=2)
    assert await state() == "no_processor"
    await report("one", troubles={"disk": "96% full"})
    assert await state() == "disk_full"
    await report("two", troubles={})
    assert await state() == "ready"
    assert await granted(api.store, 1) == 1
    assert await state() == "running"
    assert (await patched(api, rate=0.01))["state"] == "at_rate"
    assert (await patched(api, rate=None, delay=100))["state"] == "at_rate"
    await patched(api, delay=None)
    assert await granted(api.store, 1) == 1
    assert await state() == "at_limit"
    assert (await patched(api, paused=True))["state"] == "paused"
    await patched(api, paused=None)
    await api.client.delete("/aggregations/a/jobs")
    assert await state() == "running"


async def test_a_job_that_waits_for_its_time_is_scheduled(api: Served) -> None:
    await submit(api.store, not_before=2_000_000_000_000)
    await api.store.report("one", "processor", {}, 60)
    assert (await shown(api))["state"] == "scheduled"
    assert (await patched(api, limit=1))["state"] == "scheduled"


async def test_all_aggregations_are_paused_at_once(api: Served) -> None:
    """Those that come later too; each keeps a pause of its own."""
    await submit(api.store, "a", count=2, aggr_limit=2)
    await submit(api.store, "b")
    assert await granted(api.store, 1) == 1
    await patched(api, paused=True)
    for _ in range(2):
        answer = await api.client.patch("/aggregations", json={"paused": True})
        assert (answer.status_code, answer.json()) == (200, {"paused": True})
    await submit(api.store, "c")
    batch = await api.store.lease(Kind.DOWNLOAD, "me", 9, 60, room=9)
    assert (batch.leases, batch.next_due_s) == ([], None)
    page = (await api.client.get("/aggregations")).json()
    assert page["paused"] is True
    assert {row["state"] for row in page["aggregations"]} == {"paused"}
    assert (await api.store.backlog(9)).oldest_due_ms is None
    assert (await api.client.patch("/aggregations", json={"paused": False})).json() == {"paused": False}
    assert (await api.client.get("/aggregations")).json()["paused"] is False
    leases = (await api.store.lease(Kind.DOWNLOAD, "me", 9, 60)).leases
    assert {lease.queue for lease in leases} == {"b", "c"}


async def test_the_end_of_a_pause_of_all_wakes_the_instances(store: JobStore, nursery: trio.Nursery) -> None:
    await store.pause_all(paused=True)
    woken = trio.Event()

    def wake(*_: object) -> None:
        woken.set()

    await nursery.start(partial(store.listen, {Kind.DOWNLOAD: wake}))
    await trio.testing.wait_all_tasks_blocked(0.1)
    woken = trio.Event()
    await store.pause_all(paused=False)
    with trio.fail_after(10):
        await woken.wait()
    nursery.cancel_scope.cancel()


async def test_a_pause_that_reaches_part_of_a_cluster_says_so(serving: Serving) -> None:
    """A shard refuses the user, the others change."""
    with Valkey() as server:
        server.command("ACL", "SETUSER", "svc", "on", ">pw", "allkeys", "+@all", "&*")
        redis = RedisSettings(url=f"unix://svc:pw@{server.socket}", cluster=True)
        async with open_store(redis) as store:
            api = await serving(store=store)
            rest = [f"~*{{{shard}}}*" for shard in range(CLUSTER_SHARDS) if shard != 3]
            server.command("ACL", "SETUSER", "svc", "resetkeys", *rest)
            with capture_logs() as lines:
                response = await api.client.patch("/aggregations", json={"paused": True})
            assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
            assert "Repeat the request" in response.json()["detail"]
            [line] = [line for line in lines if line["event"] == "audit"]
            assert (line["paused"], line["partly"]) == (True, "shards 3 of 16 did not answer")
            keys = Keys(redis.key_prefix, CLUSTER_SHARDS)
            paused = [server.command("EXISTS", keys.key(shard, "paused")) for shard in range(CLUSTER_SHARDS)]
            assert paused == [b":0\r\n" if shard == 3 else b":1\r\n" for shard in range(CLUSTER_SHARDS)]


@pytest.mark.parametrize("body", [{}, {"paused": None}, {"paused": 1}, {"paused": True, "limit": 1}])
async def test_a_pause_of_all_that_is_refused(api: Served, body: dict[str, Any]) -> None:
    answer = await api.client.patch("/aggregations", json=body)
    assert answer.status_code == 422
    assert not await api.store.all_paused()


async def test_only_a_token_with_all_aggregations_pauses_all(serving: Serving) -> None:
    secret = "x" * 20
    token = TokenSettings(name="t", token=SecretStr(secret), scopes=["admin"], aggregations=["a"])
    api = await serving(settings=ApiSettings(tokens=[token]))
    api.client.headers["Authorization"] = f"Bearer {secret}"
    assert (await api.client.patch("/aggregations", json={"paused": True})).status_code == 403
    assert not await api.store.all_paused()
