"""The allow-lists of tokens: aggregations, destinations, buckets and proxies, and the patterns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from downloader.config import ApiSettings
from downloader.globs import destination_globs, text_globs, url_globs
from downloader.model import FileFacts, Kind, Outcome, Verdict
from downloader.storage import StoredFile
from downloader.store import CallbackPlan
from servers.api import JOB, Served, Serving
from servers.jobs import downloaded
from servers.tokens import CANARY, TOKENS, bearer, settings, submit


@pytest.fixture
async def api(serving: Serving) -> Served:
    return await serving(settings=settings())


SHOP = {"aggr_id": "shop-1", "callback_dst": "https://a.shop.example/done"}
BUCKET = {"s3_region": "eu-west-2", "callback_type": None, "callback_dst": None}

LISTS: Sequence[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"aggr_id": "shared"}, ""),
    ({"aggr_id": "example.org"}, "aggr_id"),
    ({"aggr_id": "Shop-1"}, "aggr_id"),
    ({"aggr_id": "a shop-1"}, "aggr_id"),
    ({"aggr_id": "shared "}, "aggr_id"),
    ({"callback_dst": "https://elsewhere.example/done"}, "callback_dst"),
    ({"callback_dst": "https://evil.example/x.shop.example/done"}, "callback_dst"),
    ({"callback_dst": "https://evil.example/?.shop.example/done"}, "callback_dst"),
    ({"callback_dst": "https://evil.example:443/x.shop.example/"}, "callback_dst"),
    ({"callback_dst": "https://a.shop.example@evil.example/done"}, "callback_dst"),
    ({"callback_dst": "https://user:pw@a.shop.example/done"}, ""),
    ({"callback_dst": "HTTPS://A.SHOP.example:443"}, ""),
    ({"callback_dst": "https://a.shop.example:8443/done"}, "callback_dst"),
    ({"callback_dst": "http://a.shop.example/done"}, "callback_dst"),
    ({"callback_url": "https://a.shop.example/old"}, ""),
    ({"callback_url": "https://evil.example/"}, "callback_url"),
    ({"callback_url": "https://a.shop.example/", "callback_dst": "https://evil.example/"}, ""),
    ({"callback_error_type": "sqs", "callback_error_dst": "shop-1"}, ""),
    ({"callback_error_type": "sqs", "callback_error_dst": "aws.com/sqs/shop"}, ""),
    ({"callback_error_type": "sqs", "callback_error_dst": "shop-12"}, "callback_error_dst"),
    ({"callback_error_type": "http", "callback_error_dst": "https://evil.example"}, "callback_error_dst"),
    ({"aggr_proxy": "http://proxy.shop.example:3128"}, ""),
    ({"aggr_proxy": "http://user:pw@proxy.shop.example:3128/"}, ""),
    ({"aggr_proxy": "http://proxy.shop.example"}, "aggr_proxy"),
    ({"aggr_proxy": "socks5://proxy.shop.example:3128"}, "aggr_proxy"),
    ({"s3_bucket": "shop-bucket", **BUCKET}, ""),
    ({"s3_bucket": "other-bucket", **BUCKET}, "s3_bucket"),
    ({"storage_url": "s3://shop-bucket", "s3_region": "eu-west-2"}, ""),
    ({"storage_url": "s3://shop-bucket/shop", "s3_region": "eu-west-2"}, ""),
    ({"storage_url": "s3://shop-bucket/shopping", "s3_region": "eu-west-2"}, "storage_url"),
    ({"storage_url": "s3://other-bucket", "s3_region": "eu-west-2"}, "storage_url"),
    ({"storage_url": "gs://shop-bucket"}, ""),
    ({"storage_url": "az://shop-bucket"}, "storage_url"),
    ({"storage_url": "gs://shop-bucket/other", "key": "shop/a"}, "key"),
    ({"storage_url": "gs://shop-bucket/shop", "key": "a"}, ""),
    ({"key": "shop/{sha256}"}, ""),
    ({"subpath": "shop"}, ""),
    ({"subpath": "shop/2026"}, ""),
    ({"subpath": "shopping"}, "subpath"),
    ({"storage_url": "gs://shop-bucket/shop", "subpath": "2026"}, ""),
    ({"storage_url": "gs://shop-bucket/other", "subpath": "shop"}, "subpath"),
    ({"key": "{name}/a", "url": "http://h.test/shop"}, ""),
    ({"key": "{path}", "url": "http://h.test/shop/../a"}, ""),
    ({"key": "{path}", "url": "http://h.test/other/a"}, "key"),
    ({"key": "other/shop/a"}, "key"),
    ({"s3_bucket": "shop-bucket", **BUCKET, "aggr_id": "x"}, "aggr_id"),
]


@pytest.mark.parametrize(("changes", "field"), LISTS, ids=lambda value: str(value)[:70])
async def test_allow_lists_of_a_job(
    api: Served, changes: dict[str, Any], field: str, log: Callable[[], str]
) -> None:
    answer = await submit(api, "shop", **SHOP | changes)
    if not field:
        assert answer.status_code == 201
        return
    assert answer.status_code == 403
    problem = answer.json()
    assert (problem["code"], problem["field"]) == ("forbidden", field)
    printed = log()
    assert "api.refused" in printed
    assert re.search(r"token=\S*shop", printed)
    assert field in printed
    assert CANARY not in printed
    for value in changes.values():
        assert str(value) not in problem["detail"]


async def test_empty_lists_allow_nothing(api: Served) -> None:
    answer = await submit(api, "nothing")
    assert (answer.status_code, answer.json()["field"]) == (403, "aggr_id")


async def test_each_value_that_the_lists_refuse_is_named(api: Served) -> None:
    answer = await submit(api, "shop", aggr_proxy="http://proxy.example")
    fields = ["aggr_id", "aggr_proxy", "callback_dst", "callback_error_dst"]
    assert [error["field"] for error in answer.json()["errors"]] == fields
    assert {error["code"] for error in answer.json()["errors"]} == {"forbidden"}


async def test_no_list_allows_all(api: Served) -> None:
    answer = await submit(api, "worker", aggr_proxy="http://proxy.example", callback_dst="https://x.example/")
    assert answer.status_code == 201


async def test_h23_another_s_proxy_on_a_shared_aggregation(api: Served) -> None:
    theirs = {"aggr_id": "shared", "aggr_proxy": "http://proxy.evil.example:3128"}
    assert (await submit(api, "worker", **theirs)).status_code == 201
    job = SHOP | {"aggr_id": "shared"}
    for proxy in (None, "http://proxy.shop.example:3128"):
        answer = await submit(api, "shop", **job, aggr_proxy=proxy)
        assert (answer.status_code, answer.json()["code"]) == (409, "proxy_not_allowed")
        assert "evil" not in answer.text
    headers = {"Idempotency-Key": "k", **bearer("shop")}
    assert (await api.client.post("/download", json=JOB | job, headers=headers)).status_code == 409
    lines = json.dumps(JOB | job) + "\n" + json.dumps(JOB | SHOP)
    bulk = await api.client.post("/downloads", content=lines, headers=bearer("shop"))
    refused, accepted = map(json.loads, bulk.text.splitlines())
    assert (refused["code"], refused["field"]) == ("proxy_not_allowed", "aggr_id")
    leases = (await api.store.lease(Kind.DOWNLOAD, "worker", 9, 30)).leases
    assert {(lease.queue, lease.proxy) for lease in leases} == {
        ("shared", "http://proxy.evil.example:3128"),
        ("shop-1", ""),
    }
    assert accepted["id"] in {lease.id for lease in leases}


async def test_another_s_proxy_that_the_token_allows(api: Served) -> None:
    proxy = "http://user:other@proxy.shop.example:3128"
    assert (await submit(api, "worker", aggr_id="shared", aggr_proxy=proxy)).status_code == 201
    assert (await submit(api, "shop", **SHOP | {"aggr_id": "shared"})).status_code == 201
    leases = (await api.store.lease(Kind.DOWNLOAD, "worker", 9, 30)).leases
    assert [lease.proxy for lease in leases] == [proxy, proxy]


async def finish(api: Served) -> None:
    [lease] = (await api.store.lease(Kind.DOWNLOAD, "worker", 1, 30)).leases
    outcome = Outcome(verdict=Verdict.SUCCEEDED, response_code=200, file=FileFacts(size=3))
    await api.store.settle("worker", [downloaded(lease, outcome, None, 60.0)])


async def test_jobs_of_other_aggregations_are_not_there(api: Served) -> None:
    theirs = (await submit(api, "worker", aggr_id="other")).json()["id"]
    for name in ("shop", "shop-admin", "nothing"):
        answer = await api.client.get(f"/jobs/{theirs}", headers=bearer(name))
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_job")
    ours = (await submit(api, "shop", **SHOP)).json()["id"]
    for name in ("shop", "shop-admin", "reader"):
        assert (await api.client.get(f"/jobs/{ours}", headers=bearer(name))).status_code == 200
    retries = {name: await api.client.post(f"/retry/{theirs}", headers=bearer(name)) for name in TOKENS}
    assert {name: answer.status_code for name, answer in retries.items()} == {
        **dict.fromkeys(("submitter", "reader", "worker", "shop"), 403),
        "retrier": 409,
        "admin": 409,
        "shop-admin": 404,
        "nothing": 404,
    }
    assert (await api.client.post(f"/retry/{ours}", headers=bearer("shop-admin"))).status_code == 409


async def test_submitters_may_cancel_jobs_of_their_aggregations(api: Served) -> None:
    theirs = (await submit(api, "worker", aggr_id="other")).json()["id"]
    ours = (await submit(api, "shop", **SHOP)).json()["id"]
    asked = [("shop", theirs, 404), ("nothing", theirs, 404), ("reader", theirs, 403), ("shop", ours, 202)]
    for name, job_id, status in [*asked, ("submitter", theirs, 202)]:
        answer = await api.client.delete(f"/jobs/{job_id}", headers=bearer(name))
        assert answer.status_code == status, (name, job_id)


async def test_the_dashboard_shows_what_may_be_seen(api: Served) -> None:
    for aggr_id in ("other", "shop-1", "shared"):
        await submit(api, "worker", aggr_id=aggr_id)
    seen = {}
    for name in ("reader", "shop", "nothing"):
        sizes = (await api.client.get("/dashboard/aggregations", headers=bearer(name))).json()
        seen[name] = {size["name"] for size in sizes}
    assert seen == {
        "reader": {"jobs:other", "jobs:shop-1", "jobs:shared"},
        "shop": {"jobs:shop-1", "jobs:shared"},
        "nothing": set(),
    }


async def test_destinations_are_for_those_who_see_all_aggregations(api: Served) -> None:
    await submit(api, "worker", aggr_id="shop-1")
    [lease] = (await api.store.lease(Kind.DOWNLOAD, "me", 1, 10)).leases
    plan = CallbackPlan(queue="http secret.example", limit=1)
    await api.store.settle("me", [downloaded(lease, Outcome(verdict=Verdict.SUCCEEDED), plan, 60)])
    stats = (await api.client.get("/stats", headers=bearer("reader"))).json()["callbacks"]
    assert [row["destination"] for row in stats["destinations"]] == ["http secret.example"]
    assert (await api.client.get("/stats", headers=bearer("shop"))).json()["callbacks"] is None


async def test_numbers_of_the_fleet_are_for_those_who_see_all_aggregations(api: Served) -> None:
    for aggr_id in ("shop-1", "shop-1", "other"):
        await submit(api, "worker", aggr_id=aggr_id)
    for path in ("/metrics", "/stats/processor", "/stats/notifier"):
        statuses = [
            (await api.client.get(path, headers=bearer(name))).status_code for name in ("reader", "shop")
        ]
        assert statuses == [200, 403], path
    own = (await api.client.get("/stats", headers=bearer("shop"))).json()["downloads"]
    assert (own["pending"], own["aggregations"], own["in_flight"]) == (2, 1, 0)


async def test_files_of_other_aggregations_are_not_there(serving: Serving, tmp_path: Path) -> None:
    async def files(key: str) -> StoredFile | None:
        path = tmp_path / key
        return StoredFile(path=path, size=3) if path.is_file() else None

    api = await serving(settings=settings(), files=files)
    keys = {}
    for aggr_id in ("shop-1", "other"):
        job_id = (await submit(api, "worker", aggr_id=aggr_id, subpath="a")).json()["id"]
        keys[aggr_id] = f"a/{job_id[:3]}/{job_id}"
        (tmp_path / keys[aggr_id]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / keys[aggr_id]).write_bytes(b"abc")
        await finish(api)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / Path(keys["shop-1"]).name).write_bytes(b"xyz")

    async def status(name: str, key: str) -> int:
        return (await api.client.get(f"/files/{key}", headers=bearer(name))).status_code

    assert [await status("reader", key) for key in keys.values()] == [200, 200]
    assert [await status("shop", key) for key in keys.values()] == [200, 404]
    assert await status("submitter", keys["shop-1"]) == 403
    (tmp_path / "shop" / "NSb").mkdir(parents=True)
    for key in ("shop/a.png", "shop/NSb/NSb4FOAs9fVaQw"):
        (tmp_path / key).write_bytes(b"abc")
    assert [await status("shop", key) for key in ("shop/a.png", "shop/NSb/NSb4FOAs9fVaQw")] == [200, 404]
    assert await status("shop-admin", "shop/a.png") == 404, "its list of keys allows all, and names none"
    assert await status("reader", f"b/{Path(keys['shop-1']).name}") == 200
    assert await status("shop", f"b/{Path(keys['shop-1']).name}") == 404


async def test_idempotency_keys_are_each_token_s_own(api: Served, serving: Serving) -> None:
    async def post(served: Served, headers: dict[str, str]) -> str:
        answer = await served.client.post(
            "/download", json=JOB, headers={"Idempotency-Key": "one", **headers}
        )
        assert answer.status_code == 201
        job_id: str = answer.json()["id"]
        return job_id

    worker = await post(api, bearer("worker"))
    assert await post(api, bearer("worker")) == worker
    admin = await post(api, bearer("admin"))
    opened = await post(await serving(settings=ApiSettings()), {})
    assert len({worker, admin, opened}) == 3


# -- patterns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "text", "allowed"),
    [
        (["*"], "", True),
        (["a", "*"], "anything", True),
        ([], "a", False),
        ([""], "a", False),
        (["a"], "a", True),
        (["a"], "a\n", False),
        (["a"], "A", False),
        (["a*"], "a/b\nc", True),
        (["a", "b"], "b", True),
        (["a.c"], "abc", False),
        (["a[bc]?"], "acd", True),
        (["a[!b]"], "ab", False),
        (["a|b"], "a", False),
        (["*" * 50 + "x"], "y" * 100, False),
    ],
    ids=str,
)
def test_text_globs(patterns: list[str], text: str, allowed: bool) -> None:  # noqa: FBT001  a table's column
    assert text_globs(patterns)(text) is allowed


@pytest.mark.parametrize(
    ("pattern", "text", "allowed"),
    [
        ("*", "https://anything.example/../x", True),
        ("https://*", "https://h.example", True),
        ("https://*", "https://h.example/path", False),
        ("https://*/*", "https://h.example/path?q#f", True),
        ("*://h.example/*", "http://h.example/x", True),
        ("https://h.example/*", "https://h.example", True),
        ("https://h.example", "https://h.example/", True),
        ("https://h.example:443/*", "https://h.example/x", True),
        ("https://h.example:*/*", "https://h.example:8443/x", True),
        ("http://h.example/*", "http://h.example:443/x", False),
        ("https://H.Example/A*", "https://h.example/Ab", True),
        ("https://h.example/a*", "https://h.example/Ab", False),
        ("https://*.example/*", "https://evil.test/h.example/x", False),
        ("https://*.example/*", "https://evil.test?h.example/x", False),
        ("https://*.example/*", "https://evil.test#h.example/x", False),
        ("https://*.example/*", "https://evil.test\\.example/x", False),
        ("https://*.example/*", "https://a.example:x@evil.test/x", False),
        ("https://h.example/a/*", "https://h.example/a/../b", False),
        ("https://h.example/a/*", "https://h.example/a/%2e%2E/b", False),
        ("https://h.example/a/*", "https://h.example/a/..%2fb", False),
        ("https://h.example/a/*", "https://h.example/a/b?c=../d", True),
        ("https://h?.example/*", "https://h1.example/x", True),
        ("*h.example*", "https://h.example/x", False),
        ("https://h.example/hook", "https://h.example/hook?token=1", False),
        ("https://h.example/*/done", "https://h.example/other?/done", False),
        ("https://h.example/*/done", "https://h.example/other#/done", False),
        ("https://h.example/a b/*", "https://h.example/a%20b/c", True),
        ("https://h.example/a%20b/*", "https://h.example/a b/c", True),
        ("https://h.example/a/*", "https://h.example/a/group%2Fname/x", True),
        ("https://h.example/a/*", "https://h.example/a%2Fb", False),
        ("https://h.example/a/*", "https://h.example/a%252Fb", False),
        ("https://h.example/a_b", "https://h.example/a%2Fb", False),
        ("https://h.example/a/*", "https://h.example/b%2F..%2Fa/x", False),
        ("https://*.example/*", "https://evil.test\uff0f.example/x", False),
        ("https://*.example/*", "https://evil.test%2f.example/x", False),
        ("https://h.example/*", "https://h.example:6379/x", False),
        ("https://user:secret@h.example/*", "https://h.example/x", True),
    ],
)
def test_url_globs(pattern: str, text: str, allowed: bool) -> None:  # noqa: FBT001  a table's column
    assert url_globs([pattern], "callback")(text) is allowed
    assert url_globs(["nothing", pattern, "https://nothing.example/"], "callback")(text) is allowed


CLIMBING = [
    "..",
    "../b",
    "..;/b",
    "..;x=1/b",
    ".. /b",
    "%2e%2e/b",
    "%2e./b",
    "..%2fb",
    "..%5cb",
    "..\\b",
    "x%2f..%2f..%2fb",
    "%252e%252e/b",
    "%252e%252e%252fb",
    "%25252e%25252e/b",
    "..%00/b",
    "..%2500/b",
    "..%20/b",
    "..%09/b",
    "%c0%ae%c0%ae/b",
    "%" + "25" * 10 + "2e%" + "25" * 10 + "2e/b",
]


@pytest.mark.parametrize("path", CLIMBING)
def test_h27_encoded_dots_leave_no_folder_that_is_allowed(path: str) -> None:
    assert not url_globs(["https://h.example/a/*"], "callback")(f"https://h.example/a/{path}")
    assert not destination_globs(["http:https://h.example/a/*"])("http", f"https://h.example/a/{path}")
    assert not destination_globs(["other:a/*"])("other", f"a/{path}")


def test_thousands_of_dots_take_no_time() -> None:
    allows, dots = destination_globs(["other:a/*"]), "." * 20_000
    assert allows("other", f"a/{dots}x")
    assert not allows("other", f"a/{dots}/x")


@pytest.mark.parametrize(
    ("pattern", "kind", "destination", "allowed"),
    [
        ("*", "sqs", "anything", True),
        ("kafka:*", "kafka", "anything", True),
        ("kafka:*", "sqs", "anything", False),
        ("kafka:orders-*", "kafka", "orders-1", True),
        ("kafka:orders-*", "sqs", "orders-1", False),
        ("kafka:orders-*", "kafka", "https://orders-1/", False),
        ("orders-*", "kafka", "orders-1", False),
        ("http:*", "http", "https://h.example/x", True),
        ("https://h.example/*", "http", "https://h.example/x", True),
        ("http:https://h.example/*", "http", "https://h.example/x", True),
        ("https://h.example/*", "sqs", "https://h.example/x", False),
        ("*://h.example/*", "http", "http://h.example/x", True),
        ("http:h*", "http", "h.example", False),
        ("storage:a/*", "storage", "a/b/c", True),
        ("sqs:https://sqs.*.amazonaws.com/1/*", "sqs", "https://sqs.eu-west-2.amazonaws.com/1/q", True),
        ("sqs:https://sqs.*.amazonaws.com/1/*", "sqs", "https://sqs.eu-west-2.amazonaws.com/2/q", False),
        ("sqs:https://sqs.*.amazonaws.com/1/*", "http", "https://sqs.eu-west-2.amazonaws.com/1/q", False),
    ],
)
@pytest.mark.row("H27")
def test_destinations_of_each_type(
    pattern: str,
    kind: str,
    destination: str,
    allowed: bool,  # noqa: FBT001  a table's column
) -> None:
    assert destination_globs([pattern])(kind, destination) is allowed
    assert destination_globs(["other:x", pattern])(kind, destination) is allowed


async def test_h27_a_name_of_another_type_is_refused(serving: Serving) -> None:
    api = await serving(settings=settings("shop"), backends=frozenset({"http", "sqs", "kafka"}))
    for kind, status in (("sqs", 201), ("kafka", 403)):
        answer = await submit(api, "shop", aggr_id="shop-1", callback_type=kind, callback_dst="shop-1")
        assert answer.status_code == status
    # Where successes may go, failures may not go by another type.
    again = {"callback_type": "sqs", "callback_error_type": "kafka", "callback_error_dst": "shop-1"}
    answer = await submit(api, "shop", aggr_id="shop-1", callback_dst="shop-1", **again)
    assert (answer.status_code, answer.json()["field"]) == (403, "callback_error_dst")
