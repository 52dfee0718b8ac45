"""Quotas of tokens: what is too much is answered 429, until some of it has ended."""

from __future__ import annotations

import json

import pytest
from pydantic import SecretStr

from downloader.config import ApiSettings, TokenSettings
from downloader.model import Kind, Outcome, Verdict
from servers.api import JOB, Served, Serving
from servers.jobs import downloaded
from servers.raw_store import RawStore
from servers.tokens import bearer, secret, submit

FAILED = Outcome(verdict=Verdict.FAILED, error="no")


async def serve(serving: Serving, **quotas: object) -> Served:
    tokens = [
        TokenSettings.model_validate(
            {"name": name, "token": SecretStr(secret(name)), "scopes": ["admin"], **more}
        )
        for name, more in (("alice", quotas), ("bob", {}))
    ]
    return await serving(settings=ApiSettings(tokens=tokens))


async def statuses(api: Served, token: str, *names: str, **fields: object) -> list[int]:
    return [(await submit(api, token, aggr_id=name, **fields)).status_code for name in names]


async def end_one(api: Served) -> str:
    [lease] = (await api.store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
    await api.store.settle("me", [downloaded(lease, FAILED, None, 60)])
    return lease.id


async def test_as_many_jobs_as_allowed_until_one_has_ended(serving: Serving, raw: RawStore) -> None:
    api = await serve(serving, max_pending=2)
    assert await statuses(api, "alice", "a", "b", "c") == [201, 201, 429]
    refused = await submit(api, "alice")
    assert refused.json()["code"] == "over_quota"
    assert "max_pending" in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) > 0
    assert await statuses(api, "bob", "a", "b", "c") == [201, 201, 201]
    cancelled = await submit(api, "bob", aggr_id="d")
    assert (await api.client.delete(cancelled.headers["location"], headers=bearer("bob"))).status_code == 202
    assert await statuses(api, "alice", "a") == [429], "those of others do not count"
    job_id = await end_one(api)
    assert await statuses(api, "alice", "a", "a") == [201, 429]
    # One that runs again counts, whatever the quota.
    retried = await api.client.post(f"/retry/{job_id}?download=1", headers=bearer("bob"))
    assert retried.status_code == 201
    assert raw.command("HGET", raw.key("usage", "alice"), "jobs") == "3"
    jobs = await api.client.get("/jobs?state=pending&aggr_id=a", headers=bearer("alice"))
    for job in jobs.json()["jobs"]:
        assert (await api.client.delete(f"/jobs/{job['id']}", headers=bearer("alice"))).status_code == 202
    assert await statuses(api, "alice", "z") == [201]


async def test_a_repeated_job_does_not_count_again(serving: Serving, raw: RawStore) -> None:
    api = await serve(serving, max_pending=1)
    headers = bearer("alice") | {"Idempotency-Key": "k"}
    for _ in range(3):
        assert (await api.client.post("/download", json=JOB, headers=headers)).status_code == 201
    other = JOB | {"url": "http://other.example/"}
    assert (await api.client.post("/download", json=other, headers=headers)).status_code == 422
    assert raw.command("HGET", raw.key("usage", "alice"), "jobs") == "1"
    assert not raw.command("EXISTS", raw.key("usage", "bob"))


async def test_as_many_bytes_as_allowed(serving: Serving, raw: RawStore) -> None:
    api = await serve(serving, max_pending_bytes=10_000)
    assert await statuses(api, "alice", "a", "b", extra="x" * 6000) == [201, 429]
    assert await statuses(api, "alice", "b", extra="x" * 2000) == [201]
    await end_one(api)
    await end_one(api)
    assert not raw.command("EXISTS", raw.key("usage", "alice"))


async def test_as_many_aggregations_as_allowed(serving: Serving, raw: RawStore) -> None:
    api = await serve(serving, max_aggregations=2)
    assert await statuses(api, "bob", "theirs") == [201]
    assert await statuses(api, "alice", "a", "b", "c", "a", "theirs") == [201, 201, 429, 201, 201]
    for name in "ab":
        answer = await api.client.delete(f"/aggregations/{name}/jobs", headers=bearer("alice"))
        assert answer.status_code == 202
    assert raw.command("HMGET", raw.key("usage", "alice"), "jobs", "aggregations") == ["1", "0"]
    assert await statuses(api, "alice", "c", "d", "e") == [201, 201, 429]


async def test_as_many_groups_as_allowed_until_one_is_deleted(serving: Serving, raw: RawStore) -> None:
    api = await serve(serving, max_groups=3)
    alice = bearer("alice")
    callback = {"callback_type": "http", "callback_dst": "https://client.example/group"}

    async def begun(name: str) -> list[int]:
        job = await submit(api, "alice", group=name)
        answers = [
            await api.client.post(f"/groups/{name}", json=callback, headers=alice),
            await api.client.post(f"/groups/{name}/seal", headers=alice),
        ]
        return [answer.status_code for answer in (job, *answers)]

    assert await statuses(api, "alice", "a", "b", group="g1") == [201, 201], "one group"
    assert (await api.client.post("/groups/g2", json=callback, headers=alice)).status_code == 200
    assert (await api.client.post("/groups/g3/seal", headers=alice)).status_code == 200
    assert await begun("g4") == [429, 429, 429]
    assert "max_groups" in (await submit(api, "alice", group="g4")).json()["detail"]
    assert (await api.client.get("/groups/g4", headers=alice)).status_code == 404
    assert await begun("g2") == [201, 200, 200], "it is there already"
    assert (await submit(api, "bob", group="g4")).status_code == 201
    assert await begun("g4") == [201, 200, 200], "it belongs to the other token"
    raw.command("HSET", raw.key("job_group", "g3"), "completed", 1)
    raw.command("ZADD", raw.key("job_groups"), 1, "g3")
    await api.store.tend_groups((await api.store.reap(9, 60)).groups)
    assert raw.command("HGET", raw.key("usage", "alice"), "groups") == "2"
    assert await statuses(api, "alice", "a", "a", group="g5") == [201, 201]
    assert (await submit(api, "alice", group="g6")).status_code == 429


async def test_of_many_jobs_those_within_the_quota_are_accepted(serving: Serving) -> None:
    api = await serve(serving, max_pending=3)
    lines = "\n".join(json.dumps(JOB | {"aggr_id": f"a{number}"}) for number in range(5))
    answer = await api.client.post("/downloads", content=lines, headers=bearer("alice"))
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert ["id" in line for line in found] == [True] * 3 + [False] * 2
    assert {line["code"] for line in found[3:]} == {"over_quota"}


@pytest.mark.parametrize("quota", ["max_pending", "max_pending_bytes", "max_aggregations"])
async def test_an_operators_values_keep_no_aggregation_counted(
    serving: Serving, raw: RawStore, quota: str
) -> None:
    api = await serve(serving, **{quota: 100_000})
    assert await statuses(api, "alice", "a") == [201]
    changed = await api.client.patch("/aggregations/a", json={"limit": 3}, headers=bearer("bob"))
    assert changed.status_code == 200
    await end_one(api)
    assert not raw.command("EXISTS", raw.key("usage", "alice"))
    assert await statuses(api, "bob", "a") == [201]
    assert not raw.command("EXISTS", raw.key("usage", "alice"))
