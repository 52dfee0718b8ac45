"""Sign-in for the web page: the cookie, what the cookie permits, and what the cookie does not permit."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
import trustme
from pydantic import SecretStr

from downloader.api.auth import SESSION_S, Caller, find_session, read_tokens, sign
from downloader.config import ApiSettings, TokenSettings
from downloader.server import tls_context
from servers.api import JOB, Served, Serving

SECRETS = {name: f"c4n4ry-of-{name}-0123456789" for name in ("admin", "reader", "shop")}
SCOPES = {"admin": ["admin"], "reader": ["read"], "shop": ["read", "submit"]}
COOKIE = "downloader-session"
PAGE = {"X-Downloader-Page": "1"}
UNKNOWN = "00000000000000"


def settings(*names: str, **changes: Any) -> ApiSettings:
    tokens = [
        TokenSettings.model_validate(
            {
                "name": name,
                "token": SecretStr(SECRETS[name]),
                "scopes": SCOPES[name],
                "aggregations": ["shop-*"] if name == "shop" else ["*"],
            }
        )
        for name in names or SECRETS
    ]
    return ApiSettings(tokens=tokens, **changes)


@pytest.fixture
async def api(serving: Serving) -> Served:
    return await serving(settings=settings())


async def sign_in(api: Served, name: str, **headers: str) -> httpx2.Response:
    return await api.client.post("/session", json={"token": SECRETS[name]}, headers=headers)


def cookie(name: str, ends: float) -> dict[str, str]:
    """The header of a session of this token that ends at this time."""
    [(digest, _)] = read_tokens(settings(name).tokens)
    return {"Cookie": f"other=1; {COOKIE}={sign(digest, int(ends))}"}


async def test_signing_in_and_out(api: Served, capfd: pytest.CaptureFixture[str]) -> None:
    nobody: dict[str, Any] = {"tokens": True, "name": None, "scopes": [], "expires_at": None}
    assert (await api.client.get("/session")).json() == nobody
    answer = await sign_in(api, "admin")
    who = answer.json()
    assert answer.status_code == 201
    assert who.pop("expires_at")
    assert who == {"tokens": True, "name": "admin", "scopes": ["admin", "read", "retry", "submit"]}
    value, *attributes = answer.headers["set-cookie"].split("; ")
    assert sorted(attributes) == ["HttpOnly", f"Max-Age={SESSION_S}", "Path=/", "SameSite=Strict"]
    assert value.startswith(f"{COOKIE}=")
    shown = await api.client.get("/session")
    assert shown.json() == answer.json()
    assert shown.headers["cache-control"] == answer.headers["cache-control"] == "no-store"
    assert (await api.client.get("/stats")).status_code == 200
    kept = await api.client.delete("/session")
    assert (kept.status_code, kept.json()["code"]) == (403, "page_header")
    gone = await api.client.delete("/session", headers=PAGE)
    assert (gone.status_code, dict(api.client.cookies)) == (204, {})
    assert (await api.client.get("/session")).json() == nobody
    assert (await api.client.get("/stats")).status_code == 401
    assert SECRETS["admin"] not in answer.text + str(answer.headers) + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"token": "wrong"}, 401, "unauthorized"),
        ({"token": SECRETS["admin"][:-1]}, 401, "unauthorized"),
        ({"token": "\xe9" * 16}, 401, "unauthorized"),
        ({"token": ""}, 422, "required"),
        ({"token": 1}, 422, "wrong_type"),
        ({}, 422, "required"),
        ([], 400, "not_an_object"),
    ],
)
@pytest.mark.row("H19")
async def test_invalid_tokens(api: Served, body: Any, status: int, code: str) -> None:
    answer = await api.client.post("/session", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "set-cookie" not in answer.headers


async def test_the_page_loads_without_a_token_and_data_does_not(api: Served) -> None:
    for path in ("/", "/web/page.js", "/web/style.css"):
        assert (await api.client.get(path)).status_code == 200
    for path in ("/events", "/stats", "/jobs", "/metrics", "/docs", "/openapi.json", "/web", "/session/"):
        assert (await api.client.get(path)).status_code == 401, path
    assert (await api.client.post("/", content=b"")).status_code == 401
    await sign_in(api, "reader")
    for path in ("/stats", "/aggregations", "/metrics"):
        answer = await api.client.get(path)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "private, no-cache"
    async with api.client.stream("GET", "/events") as events:
        assert events.status_code == 200


async def test_a_session_has_the_scopes_and_lists_of_its_token(api: Served) -> None:
    theirs = await api.client.post(
        "/download", json=JOB, headers={"Authorization": f"Bearer {SECRETS['admin']}"}
    )
    await sign_in(api, "shop")
    assert (await api.client.get(f"/jobs/{theirs.json()['id']}")).status_code == 404
    for body, status in ((JOB, 403), (JOB | {"aggr_id": "shop-1"}, 201)):
        assert (await api.client.post("/download", json=body, headers=PAGE)).status_code == status
    answer = await api.client.patch("/aggregations/shop-1", json={"paused": True}, headers=PAGE)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


CHANGES = [
    ("POST", "/download"),
    ("POST", "/downloads"),
    ("POST", f"/retry/{UNKNOWN}"),
    ("PATCH", "/aggregations/a"),
    ("DELETE", f"/jobs/{UNKNOWN}"),
    ("DELETE", "/session"),
]


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.row("H18")
async def test_only_the_page_changes_something(api: Served, method: str, path: str) -> None:
    await sign_in(api, "admin")
    own = f"http://127.0.0.1:{api.port}"
    for headers, code in (
        ({}, "page_header"),
        ({"X-Downloader-Page": "0"}, "page_header"),
        ({"Sec-Fetch-Site": "same-origin", "Origin": own}, "page_header"),
        (PAGE | {"Sec-Fetch-Site": "cross-site"}, "cross_site"),
        (PAGE | {"Sec-Fetch-Site": "same-site"}, "cross_site"),
        (PAGE | {"Sec-Fetch-Site": "none"}, "cross_site"),
        (PAGE | {"Origin": "https://evil.example"}, "cross_site"),
        (PAGE | {"Sec-Fetch-Site": "same-origin", "Origin": "null"}, "cross_site"),
        (PAGE | {"Origin": own + "0"}, "cross_site"),
    ):
        answer = await api.client.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, code), headers
        assert "set-cookie" not in answer.headers
    assert await api.store.aggregation_sizes() == {}
    from_the_page = PAGE | {"Sec-Fetch-Site": "same-origin", "Origin": own}
    assert (await api.client.request(method, path, headers=from_the_page)).status_code != 403


async def test_a_session_that_is_over(api: Served) -> None:
    now = time.time()
    good = cookie("admin", now + 60)
    assert (await api.client.get("/stats", headers=good)).status_code == 200
    later = {"Cookie": good["Cookie"].replace(f"={int(now + 60)}.", f"={int(now + 61)}.")}
    cut = {"Cookie": good["Cookie"][:-1]}
    named = {"Cookie": good["Cookie"].replace(COOKIE, "session")}
    for headers in (cookie("admin", now - 1), later, cut, named, {"Cookie": f"{COOKIE}={SECRETS['admin']}"}):
        assert (await api.client.get("/stats", headers=headers)).status_code == 401, headers
        assert (await api.client.get("/session", headers=headers)).json()["name"] is None
    wrong = good | {"Authorization": "Bearer wrong"}
    assert (await api.client.get("/stats", headers=wrong)).status_code == 401


async def test_of_several_sessions_the_first_that_is_valid_counts(api: Served) -> None:
    """Another service on this host, or another host of its domain, may have set more cookies."""
    now = time.time()
    theirs, mine, over = (
        cookie(*which)["Cookie"].removeprefix("other=1; ")
        for which in (("shop", now + 60), ("admin", now + 60), ("reader", now - 60))
    )
    for cookies, name in (
        (f"{over}; {mine}; {theirs}", "admin"),
        (f"{theirs}; __Host-{mine}", "admin"),
        (f"__Host-{over}; {mine}", "admin"),
    ):
        who = await api.client.get("/session", headers={"Cookie": cookies})
        assert who.json()["name"] == name, cookies


def test_a_request_s_cookies_cost_little() -> None:
    class Counted(list[tuple[bytes, Caller]]):
        passes = 0

        def __iter__(self) -> Iterator[tuple[bytes, Caller]]:
            self.passes += 1
            return super().__iter__()

    callers = Counted(read_tokens(settings().tokens))
    many = ";".join([f"{COOKIE}={int(time.time()) + 60}."] * 400)
    assert find_session(callers, {"headers": [(b"cookie", many.encode())], "scheme": "http"}) is None
    assert 0 < callers.passes <= 4


async def test_a_removed_token_ends_its_sessions_everywhere(serving: Serving, api: Served) -> None:
    await sign_in(api, "admin")
    headers = {"Cookie": f"{COOKIE}={api.client.cookies[COOKIE]}"}
    other = await serving(settings=settings("admin"))  # another instance of the fleet
    assert (await other.client.get("/session", headers=headers)).json()["name"] == "admin"
    without = await serving(settings=settings("reader"))
    assert (await without.client.get("/stats", headers=headers)).status_code == 401


@pytest.mark.slow
async def test_events_end_with_the_session(api: Served) -> None:
    for seconds in (1, 8, 30):  # on a busy machine it could be over before the request arrives
        ends = int(time.time()) + seconds
        with trio.fail_after(seconds + 20):
            async with api.client.stream("GET", "/events", headers=cookie("admin", ends)) as events:
                if events.status_code == 200:
                    await events.aread()
        if events.status_code == 200:
            break
    assert (events.status_code, time.time() >= ends) == (200, True)


async def test_without_tokens_nobody_signs_in(serving: Serving) -> None:
    api = await serving()
    open_api: dict[str, Any] = {"tokens": False, "name": None, "scopes": [], "expires_at": None}
    assert (await api.client.get("/session")).json() == open_api
    assert (await sign_in(api, "admin")).status_code == 404


async def test_get_session_names_the_token_of_the_request(api: Served) -> None:
    answer = await api.client.get("/session", headers={"Authorization": f"Bearer {SECRETS['reader']}"})
    assert answer.json() == {"tokens": True, "name": "reader", "scopes": ["read"], "expires_at": None}


@pytest.mark.row("H18")
async def test_another_site_cannot_sign_a_browser_in(api: Served) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = await api.client.post("/session", json={"token": SECRETS["admin"]}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
        assert "set-cookie" not in answer.headers


async def test_pages_of_cors_origins_get_no_credentials(serving: Serving) -> None:
    api = await serving(settings=settings(cors_origins=["https://dash.example"]))
    await sign_in(api, "reader")
    answer = await api.client.get("/session", headers={"Origin": "https://dash.example"})
    assert answer.headers["access-control-allow-origin"] == "https://dash.example"
    assert "access-control-allow-credentials" not in answer.headers


async def test_behind_a_proxy_with_tls(api: Served) -> None:
    answer = await sign_in(api, "reader", Origin=f"https://127.0.0.1:{api.port}")
    value, *attributes = answer.headers["set-cookie"].split("; ")
    assert value.startswith(f"__Host-{COOKIE}=")
    assert "Secure" in attributes
    assert (await api.client.get("/stats", headers={"Cookie": value})).status_code == 200


async def test_over_tls(serving: Serving, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    tls = tls_context(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    api = await serving(settings=settings(), tls=tls)
    url = f"https://127.0.0.1:{api.port}"
    async with httpx2.AsyncClient(verify=trusting, base_url=url, trust_env=False) as client:
        answer = await client.post("/session", json={"token": SECRETS["admin"]})
        value, *attributes = answer.headers["set-cookie"].split("; ")
        assert value.startswith(f"__Host-{COOKIE}=")
        assert {"HttpOnly", "Path=/", "SameSite=Strict", "Secure"} < set(attributes)
        assert (await client.get("/stats")).status_code == 200
        client.cookies.clear()
        planted = {"Cookie": value.removeprefix("__Host-")}
        assert (await client.get("/stats", headers=planted)).status_code == 401
