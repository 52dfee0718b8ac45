"""Bearer tokens: who gets in, and with which scope."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import pytest
import trio
from pydantic import SecretStr
from structlog.testing import capture_logs

from downloader.api.routes.jobs import NOTED_CHARS
from downloader.config import ApiSettings, TokenSettings
from downloader.model import CallbackOutcome, ErrorCode, Outcome, Verdict
from downloader.store import JobStore
from servers.api import JOB, Served, Serving
from servers.jobs import end_all, submitted
from servers.raw_store import RawStore
from servers.tokens import CANARY, bearer, secret, settings


@pytest.fixture
async def api(serving: Serving) -> Served:
    return await serving(settings=settings())


# -- who gets in --------------------------------------------------------------------------------------

ROUTES = [
    ("GET", "/events"),
    ("HEAD", "/events"),
    ("GET", "/jobs/00000000000000"),
    ("GET", "/dashboard/aggregations"),
    ("GET", "/stats/processor"),
    ("GET", "/files/a/000/00000000000000"),
    ("POST", "/"),
    ("GET", "/web"),
    ("GET", "/nothing"),
    ("GET", "/health/"),
    ("GET", "//hb"),
    ("GET", "/hb/"),
    ("OPTIONS", "/download"),
    ("GET", "/download"),
    ("POST", "/download"),
    ("PUT", "/download"),
    ("POST", "/retry/00000000000000"),
    ("POST", "/retry"),
    ("GET", "/jobs"),
    ("DELETE", "/jobs/00000000000000"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.row("H19")
async def test_every_route_wants_a_token(api: Served, method: str, path: str) -> None:
    url = httpx2.URL(f"http://127.0.0.1:{api.port}{path}")
    answer = await api.client.request(method, url, content=json.dumps(JOB) if method == "POST" else None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    if method != "HEAD":
        assert answer.json()["code"] == "unauthorized"
        assert answer.json()["title"] == "Unauthorized"


@pytest.mark.parametrize("path", ["/hb", "/health/live", "/health/ready"])
async def test_health_checks_need_no_token(api: Served, path: str) -> None:
    assert (await api.client.get(path)).status_code == 200
    assert (await api.client.get(path, headers={"Authorization": "Bearer wrong"})).status_code == 200


RIGHT = secret("admin").encode()

REFUSED: Sequence[list[bytes]] = [
    [],
    [b""],
    [b"Bearer"],
    [b"Bearer "],
    [b"Bearer wrong"],
    [b"Bearer " + RIGHT[:-1]],
    [b"Bearer " + RIGHT[:20]],
    [b"Bearer " + RIGHT + b"0"],
    [b"Bearer " + RIGHT.upper()],
    [b"Bearer " + RIGHT + b"," + RIGHT],
    [b"Bearer " + RIGHT + b" " + RIGHT],
    [b'Bearer "' + RIGHT + b'"'],
    [b"Bearer\t" + RIGHT],
    [b"Bearer \xff\xfe"],
    [b"Bearer admin"],
    [b"Bearer " + b"x" * 10_000],
    [RIGHT],
    [b"Token " + RIGHT],
    [b"Basic " + base64.b64encode(b"admin:" + RIGHT)],
    [b"Bearer " + RIGHT, b"Bearer " + RIGHT],
    [b"Bearer wrong", b"Bearer " + RIGHT],
]


@pytest.mark.parametrize("values", REFUSED, ids=lambda values: repr(values)[:50])
@pytest.mark.parametrize(("method", "path"), [("POST", "/download"), ("GET", "/dashboard/aggregations")])
@pytest.mark.row("H19")
async def test_invalid_tokens(
    api: Served, method: str, path: str, values: list[bytes], log: Callable[[], str]
) -> None:
    headers = b"".join(b"Authorization: %b\r\n" % value for value in values)
    answer = await api.say(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode() + headers + b"\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "unauthorized"
    assert CANARY not in answer.decode()
    printed = log()
    assert "api.refused" in printed
    assert CANARY not in printed


@pytest.mark.parametrize("query", ["access_token", "token", "Authorization"])
@pytest.mark.row("H19")
async def test_a_token_in_the_query_is_none(api: Served, query: str, log: Callable[[], str]) -> None:
    for method, path in (("POST", "/download"), ("GET", "/docs"), ("POST", "/retry/00000000000000")):
        answer = await api.client.request(method, path, params={query: secret("admin")}, json=JOB)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert CANARY not in answer.text
    assert CANARY not in log()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_the_scheme_s_case_does_not_matter(api: Served, scheme: str) -> None:
    answer = await api.client.get("/docs", headers={"Authorization": f"{scheme} {secret('reader')}"})
    assert answer.status_code == 200


async def test_a_body_is_not_waited_for(api: Served) -> None:
    head = b"POST /download HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\nExpect: 100-continue\r\n"
    with trio.fail_after(20):
        async with await api.connect() as stream:
            await stream.send_all(head + b"\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 401 ")
    too_large = head.replace(b"200000", b"9999999")
    assert (await api.say(too_large + b"\r\n")).startswith(b"HTTP/1.1 401 ")


async def test_without_tokens_the_api_is_open(serving: Serving) -> None:
    api = await serving(settings=ApiSettings())
    assert (await api.client.get("/")).status_code == 200
    answer = await api.client.post("/download", json=JOB, headers={"Authorization": "Bearer whatever"})
    assert answer.status_code == 201


# -- scopes -------------------------------------------------------------------------------------------

UNKNOWN = "00000000000000"

SCOPES = [
    ("POST", "/download", {"submitter": 201, "reader": 403, "worker": 201, "admin": 201}),
    ("GET", "/docs", {"submitter": 403, "reader": 200, "worker": 200, "admin": 200}),
    ("HEAD", "/docs", {"submitter": 403, "reader": 200, "worker": 200, "admin": 200}),
    ("GET", f"/jobs/{UNKNOWN}", {"submitter": 403, "reader": 404, "worker": 404, "admin": 404}),
    ("GET", "/dashboard/aggregations", {"submitter": 403, "reader": 200, "worker": 200, "admin": 200}),
    ("GET", "/stats/notifier", {"submitter": 403, "reader": 200, "worker": 200, "admin": 200}),
    ("GET", "/files/x", {"submitter": 403, "reader": 404, "worker": 404, "admin": 404}),
    ("GET", "/nothing", {"submitter": 403, "reader": 404, "worker": 404, "admin": 404}),
    ("POST", f"/retry/{UNKNOWN}", {"submitter": 403, "reader": 403, "retrier": 404, "admin": 404}),
    ("POST", "/retry", {"submitter": 403, "reader": 403, "worker": 403, "retrier": 200, "admin": 200}),
    ("POST", "/retry/", {"retrier": 403, "admin": 404}),
    ("POST", "/retrying", {"retrier": 403, "admin": 404}),
    ("POST", "/download", {"retrier": 403}),
    (
        "GET",
        "/jobs?callback=failed",
        {"submitter": 403, "retrier": 403, "reader": 200, "worker": 200, "admin": 200},
    ),
    (
        "DELETE",
        f"/jobs/{UNKNOWN}",
        {"submitter": 404, "retrier": 403, "reader": 403, "worker": 404, "admin": 404},
    ),
    (
        "PATCH",
        "/aggregations/x",
        {"submitter": 403, "retrier": 403, "reader": 403, "worker": 403, "admin": 400},
    ),
    ("POST", "/nothing", {"submitter": 403, "reader": 403, "worker": 403, "admin": 404}),
]


@pytest.mark.parametrize(("method", "path", "expected"), SCOPES, ids=lambda value: str(value)[:30])
async def test_scopes(
    api: Served, method: str, path: str, expected: dict[str, int], log: Callable[[], str]
) -> None:
    for name, status in expected.items():
        content = json.dumps(JOB) if method == "POST" else None
        answer = await api.client.request(method, path, content=content, headers=bearer(name))
        assert answer.status_code == status, name
        printed = log()
        assert CANARY not in answer.text + printed
        assert ("api.refused" in printed) is (status == 403)
        if status == 403:
            assert re.search(rf"token=\S*{name}", printed)
            if method != "HEAD":
                assert answer.json()["code"] == "forbidden"
                assert "field" not in answer.json()


async def test_changes_are_logged_with_the_name_of_the_token(serving: Serving, store: JobStore) -> None:
    token = "operator-" * 4
    api = await serving(
        settings=ApiSettings(tokens=[TokenSettings(name="anna", token=SecretStr(token), scopes=["admin"])])
    )
    tags = f"red,{'x' * 9000}"
    failed = await submitted(store, "c", tags=("red",))
    no = Outcome(verdict=Verdict.FAILED, error="no", error_code=ErrorCode.DNS)
    await end_all(store, no, callback=CallbackOutcome(verdict=Verdict.FAILED, error="410"))
    job, waiting = await submitted(store, "a"), await submitted(store, "b")
    with capture_logs() as lines:
        for method, path, body in (
            ("DELETE", f"/jobs/{job.id}", None),
            ("POST", f"/retry/{waiting.id}", None),  # a conflict, so nothing changes
            ("DELETE", "/aggregations/b/jobs", None),
            ("PATCH", "/aggregations/b", {"limit": 2, "paused": True}),
            ("PATCH", "/aggregations", {"paused": True}),
            ("POST", f"/retry?download=1&aggr_id=c&tags={tags}", None),
            ("POST", f"/retry/{failed.id}", None),
        ):
            headers = {"Authorization": f"Bearer {token}"}
            await api.client.request(method, path, json=body, headers=headers)
    assert token not in str(lines)
    query = {"download": "1", "aggr_id": "c", "tags": tags[:NOTED_CHARS]}
    common = {"event": "audit", "log_level": "info", "token": "anna", "client": "127.0.0.1"}
    assert [line for line in lines if line["event"] == "audit"] == [
        common | {"action": "cancel", "job_id": job.id, "aggr_id": "a"},
        common | {"action": "cancel_jobs", "aggr_id": "b", "count": 1},
        common | {"action": "adjust", "aggr_id": "b", "changes": {"limit": 2, "paused": True}},
        common | {"action": "pause_all", "paused": True},
        common | {"action": "retry_jobs", "count": 1, "query": query},
    ]
    entries = (await api.client.get("/audit", headers={"Authorization": f"Bearer {token}"})).json()
    assert {(entry["token"], entry["client"]) for entry in entries} == {("anna", "127.0.0.1")}
    actions = [entry["action"] for entry in entries]
    assert actions == ["retry_jobs", "pause_all", "adjust", "cancel_jobs", "cancel"]
    assert entries[2]["changed"] == {"aggr_id": "b", "changes": {"limit": 2, "paused": True}}


async def test_a_limited_token_sees_the_changes_of_its_own(serving: Serving) -> None:
    tokens = {"all": ["*"], "shop": ["shop-*"], "zoo": ["zoo-*"]}
    secrets = {name: f"{name}-secret-of-a-token" for name in tokens}
    api = await serving(
        settings=ApiSettings(
            tokens=[
                TokenSettings(
                    name=name, token=SecretStr(secrets[name]), scopes=["admin"], aggregations=allowed
                )
                for name, allowed in tokens.items()
            ]
        )
    )

    async def send(method: str, path: str, name: str, body: object = None) -> Any:
        headers = {"Authorization": f"Bearer {secrets[name]}"}
        return (await api.client.request(method, path, json=body, headers=headers)).json()

    for name, aggregation in (("shop", "shop-1"), ("all", "shop-1"), ("zoo", "zoo-1")):
        await send("PATCH", f"/aggregations/{aggregation}", name, {"paused": True})
    seen = {name: [entry["token"] for entry in await send("GET", "/audit", name)] for name in tokens}
    assert seen == {"all": ["zoo", "all", "shop"], "shop": ["shop"], "zoo": ["zoo"]}
    assert [entry["token"] for entry in await send("GET", "/audit?count=1", "shop")] == ["shop"]
    for count in ("0", "2001", "x"):
        assert (await send("GET", f"/audit?count={count}", "all"))["code"] == "query"


@pytest.mark.row("F37")
async def test_a_damaged_key_of_the_changes_is_named_in_the_log(serving: Serving, raw: RawStore) -> None:
    api = await serving()
    raw.command("SET", raw.key("audit", "fleet"), "x")
    with capture_logs() as lines:
        assert (await api.client.patch("/aggregations", json={"paused": True})).status_code == 200
        assert (await api.client.get("/audit")).status_code == 503
    [line] = [line for line in lines if line["event"] == "api.failed"]
    assert line["path"] == "/audit"
    assert "WRONGTYPE" in line["reason"]
    assert [line["action"] for line in lines if line["event"] == "audit"] == ["pause_all"]
