"""Groups of jobs over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from downloader.model import ErrorCode, Kind, Outcome, Verdict
from downloader.wire import GroupCallback, group_callback_body
from servers.api import JOB, Served, Serving
from servers.jobs import downloaded, leased
from servers.tokens import bearer, settings

OK = Outcome(verdict=Verdict.SUCCEEDED)
NO = Outcome(verdict=Verdict.FAILED, error="no", error_code=ErrorCode.CONNECT)
WITHOUT = {"callback_type": "none", "callback_dst": None}
CALLBACK = {"callback_type": "http", "callback_dst": "https://client.example/group"}


@pytest.fixture
async def api(serving: Serving) -> Served:
    return await serving()


async def post(api: Served, **fields: object) -> str:
    answer = await api.client.post("/download", json=JOB | WITHOUT | {"group": "g"} | fields)
    assert answer.status_code == 201, answer.text
    job_id: str = answer.json()["id"]
    return job_id


async def group(api: Served, name: str = "g") -> Mapping[str, Any]:
    answer = await api.client.get(f"/groups/{name}")
    assert answer.status_code == 200, answer.text
    shown: Mapping[str, Any] = answer.json()
    return shown


async def test_a_group_from_its_first_job_to_its_callback(api: Served) -> None:
    await post(api)
    await post(api)
    answer = await api.client.post("/groups/g", json=CALLBACK | {"extra": {"n": 1}, "other": 1})
    assert (answer.status_code, answer.json()["state"], answer.json()["jobs"]) == (200, "open", 2)
    answer = await api.client.post("/groups/g/seal")
    assert (answer.status_code, answer.json()["state"]) == (200, "sealed")
    answer = await api.client.post("/download", json=JOB | {"group": "g"})
    assert (answer.status_code, answer.json()["code"]) == (409, "group_sealed")
    line = await api.client.post("/downloads", content=json.dumps(JOB | {"group": "g"}))
    assert (json.loads(line.text)["code"], json.loads(line.text)["field"]) == ("group_sealed", "group")
    for outcome in (OK, NO):
        await api.store.settle("me", [downloaded(await leased(api.store), outcome, None, 60)])
    shown = await group(api)
    assert {name: shown[name] for name in ("state", "succeeded", "failed", "cancelled", "unfinished")} == {
        "state": "complete",
        "succeeded": 1,
        "failed": 1,
        "cancelled": 0,
        "unfinished": 0,
    }
    lease = await leased(api.store, kind=Kind.CALLBACK)
    assert (lease.id, lease.queue) == (shown["callback_id"], "http https://client.example")
    body = json.loads(group_callback_body(lease.spec))
    assert GroupCallback.model_validate(body).model_dump() == {
        "group": "g",
        "jobs": 2,
        "succeeded": 1,
        "failed": 1,
        "cancelled": 0,
        "first_at": shown["first_at"],
        "last_at": shown["last_at"],
        "extra": '{"n":1}',
    }
    shown = (await api.client.get(f"/jobs/{lease.id}")).json()
    assert (shown["callback"]["state"], shown["download_url"]) == ("running", "")
    answer = await api.client.post("/groups/g", json=CALLBACK)
    assert (answer.status_code, answer.json()["code"]) == (409, "group_complete")


async def test_a_complete_group_is_reopened(api: Served) -> None:
    assert (await api.client.post("/groups/g/reopen")).status_code == 404
    await post(api)
    await api.client.post("/groups/g", json=CALLBACK)
    await api.client.post("/groups/g/seal")
    answer = await api.client.post("/groups/g/reopen")
    assert (answer.status_code, answer.json()["code"]) == (409, "group_not_complete")
    await api.store.settle("me", [downloaded(await leased(api.store), OK, None, 60)])
    first = (await group(api))["callback_id"]
    for _ in range(2):
        answer = await api.client.post("/groups/g/reopen")
        assert (answer.status_code, answer.json()["state"], answer.json()["callback_id"]) == (200, "open", "")
    await api.client.post("/groups/g/seal")
    callbacks = (await api.store.lease(Kind.CALLBACK, "me", 9, 60)).leases
    assert {lease.id for lease in callbacks} == {first, (await group(api))["callback_id"]}
    assert len(callbacks) == 2


async def test_a_group_without_jobs(api: Served) -> None:
    for method, path in (("GET", "/groups/g"), ("DELETE", "/groups/g/jobs")):
        answer = await api.client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_group")
    assert (await api.client.post("/groups/g", json=CALLBACK)).json()["state"] == "open"
    assert (await api.client.post("/groups/g/seal")).json()["state"] == "complete"
    lease = await leased(api.store, kind=Kind.CALLBACK)
    body = json.loads(group_callback_body(lease.spec))
    assert (body["jobs"], body["first_at"], body["last_at"], body["extra"]) == (0, None, None, "")


async def test_the_callback_of_a_group_obeys_the_destinations_own_limit(serving: Serving) -> None:
    api = await serving(own_limits={"http https://client.example": 3})
    await api.client.post("/groups/g", json=CALLBACK)
    await api.client.post("/groups/g/seal")
    assert (await leased(api.store, kind=Kind.CALLBACK)).limit == 3


FAULTS: list[tuple[Mapping[str, object], str, str]] = [
    ({}, "callback_type", "required"),
    ({"callback_type": "none"}, "callback_type", "required"),
    (CALLBACK | {"callback_type": "other"}, "callback_type", "unknown_backend"),
    (CALLBACK | {"callback_dst": "ftp://x"}, "callback_dst", "url_scheme"),
    (CALLBACK | {"callback_dst": 4}, "callback_dst", "wrong_type"),
]


@pytest.mark.parametrize(("body", "field", "code"), FAULTS)
async def test_a_callback_that_is_refused(api: Served, body: object, field: str, code: str) -> None:
    answer = await api.client.post("/groups/g", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["field"], problem["code"]) == (422, field, code)
    assert (await api.client.get("/groups/g")).status_code == 404


@pytest.mark.parametrize("name", ["a b", "\u00fc/x", "x" * 128])
async def test_any_name_that_a_job_can_have(api: Served, name: str) -> None:
    await post(api, group=name)
    quoted = name.replace(" ", "%20")
    assert (await group(api, quoted))["name"] == name
    assert (await api.client.post(f"/groups/{quoted}/seal")).json()["name"] == name


@pytest.mark.parametrize("name", ["a%E2%80%8Bb", "x" * 129, ""])
async def test_a_name_that_no_job_can_have(api: Served, name: str) -> None:
    for path in (f"/groups/{name}", f"/groups/{name}/seal"):
        answer = await api.client.post(path, json=CALLBACK)
        assert (answer.status_code, answer.json()["field"]) == (422, "group")
    assert (await api.client.post("/download", json=JOB | {"group": "a\nb"})).status_code == 422


async def test_the_jobs_of_a_group_are_listed(api: Served) -> None:
    ids = [await post(api, aggr_id=aggr_id) for aggr_id in ("a", "b", "a")]
    await post(api, group="other")

    async def listed(**query: str) -> set[str]:
        answer = await api.client.get("/jobs", params={"group": "g", **query})
        return {job["id"] for job in answer.json()["jobs"]}

    assert await listed() == await listed(state="pending") == set(ids)
    lease = await leased(api.store)
    assert await listed(state="running") == {lease.id}
    await api.store.settle("me", [downloaded(lease, NO, None, 60)])
    assert await listed() == {*ids} - {lease.id}
    assert await listed(state="failed") == {lease.id}
    assert (await api.client.get(f"/jobs/{lease.id}")).json()["group"] == "g"
    retried = await api.client.post("/retry", params={"group": "none", "download": "1"})
    assert retried.json()["retried"] == 0
    retried = await api.client.post("/retry", params={"group": "g", "download": "1"})
    assert retried.json()["retried"] == 1
    assert (
        await api.client.get("/jobs", params={"group": "g", "since": "2026-01-01T00:00:00Z"})
    ).status_code == 422


async def test_the_jobs_of_a_group_are_cancelled(api: Served) -> None:
    for aggr_id in ("a", "b", "a"):
        await post(api, aggr_id=aggr_id)
    await post(api, aggr_id="a", **CALLBACK)
    kept = await post(api, group="other")
    await api.store.settle("me", [downloaded(await leased(api.store), OK, None, 60)])
    answer = await api.client.delete("/groups/g/jobs")
    assert (answer.status_code, answer.json()) == (202, {"cancelled": 3, "complete": True})
    assert (await api.client.delete("/groups/g/jobs")).json() == {"cancelled": 0, "complete": True}
    shown = await group(api)
    assert (shown["state"], shown["cancelled"], shown["unfinished"]) == ("open", 2, 1)
    assert (await api.client.get(f"/jobs/{kept}")).json()["state"] == "pending"


async def test_groups_are_listed(api: Served) -> None:
    await post(api)
    await api.client.post("/groups/h", json=CALLBACK)
    page = (await api.client.get("/groups")).json()
    assert ([row["name"] for row in page["groups"]], page["cursor"]) == (["g", "h"], "")
    assert (await api.client.get("/groups", params={"cursor": "x"})).status_code == 422


async def test_a_token_has_the_groups_of_its_list(serving: Serving) -> None:
    api = await serving(settings=settings())
    job = JOB | {"aggr_id": "shop-1", "callback_dst": "https://a.shop.example/done"}
    mine, other = [
        await api.client.post("/download", json=job | {"group": name}, headers=bearer("shop"))
        for name in ("shop-1", "other")
    ]
    assert (mine.status_code, other.status_code, other.json()["field"]) == (201, 403, "group")
    await api.client.post("/groups/other/seal", headers=bearer("worker"))
    callback = {"callback_type": "http", "callback_dst": "https://a.shop.example/group"}
    for method, path, status in (
        ("GET", "/groups/other", 404),
        ("DELETE", "/groups/other/jobs", 404),
        ("POST", "/groups/other/seal", 403),
        ("POST", "/groups/other/reopen", 404),
        ("POST", "/groups/other", 403),
        ("GET", "/groups/shop-1", 200),
        ("POST", "/groups/shop-1", 200),
        ("POST", "/groups/shop-1/seal", 200),
    ):
        answer = await api.client.request(method, path, headers=bearer("shop"), json=callback)
        assert answer.status_code == status, (method, path, answer.text)
    elsewhere = callback | {"callback_dst": "https://evil.example/"}
    answer = await api.client.post("/groups/shop-2", headers=bearer("shop"), json=elsewhere)
    assert (answer.status_code, answer.json()["field"]) == (403, "callback_dst")
    listed = (await api.client.get("/groups", headers=bearer("shop"))).json()["groups"]
    assert [row["name"] for row in listed] == ["shop-1"]
    await api.client.delete("/groups/shop-1/jobs", headers=bearer("shop"))


async def test_the_callback_of_a_group_has_the_limit_of_its_destination(serving: Serving) -> None:
    api = await serving(own_limits={"http https://client.example": 2})
    await api.client.post("/groups/g", json=CALLBACK)
    await api.client.post("/groups/g/seal")
    assert (await leased(api.store, kind=Kind.CALLBACK)).limit == 2
