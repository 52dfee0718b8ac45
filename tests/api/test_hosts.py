"""Which `Host` a request must have, and which pages may read answers."""

from __future__ import annotations

import json
from contextlib import nullcontext

import httpx2
import pytest
from pydantic import SecretStr, ValidationError

from downloader.api.origin import host_check
from downloader.api.problems import Refused
from downloader.config import ApiSettings, TokenSettings
from servers.api import JOB, Served, Serving

PORT = ":8000"


async def ask(api: Served, host: str, method: str = "GET", path: str = "/hb") -> httpx2.Response:
    return await api.client.request(method, path, headers={"Host": host})


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(
            (host + port, 200)
            for host in ("localhost", "127.0.0.1", "[::1]", "api.localhost")
            for port in ("", PORT)
        ),
        *((host, 200) for host in ("LOCALHOST.", "127.8.9.1", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1")),
        *(
            (host + port, 421)
            for host in ("evil.example", "192.0.2.1", "[2001:db8::1]")
            for port in ("", PORT)
        ),
        *(
            (host, 421)
            for host in ("localhost.evil.example", "evil-localhost", "127.0.0.1.nip.io", "0.0.0.0")
        ),
        *((host, 421) for host in ("[::]", "localhost/x", "localhost:http", "a b", "\xe4")),
    ],
)
@pytest.mark.row("H24")
async def test_on_loopback_only_its_own_names_are_answered(api: Served, host: str, status: int) -> None:
    answer = await api.client.get("/hb", headers=[(b"Host", host.encode("latin-1"))])
    assert answer.status_code == status
    if status == 421:
        assert answer.json()["code"] == "misdirected_request"
        assert "api.allowed_hosts" in answer.json()["detail"]
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("here", "host", "passes"),
    [
        ("127.0.0.1", "localhost", True),
        ("192.0.2.7", "localhost", False),
        ("192.0.2.7", "127.0.0.1", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
    ],
)
@pytest.mark.row("H24")
def test_only_a_connection_over_loopback_is_to_localhost(here: str, host: str, passes: bool) -> None:  # noqa: FBT001
    check = host_check(["api.example.org"], loopback=False)
    with nullcontext() if passes else pytest.raises(Refused):
        check([(b"host", host.encode())], (here, 8000))


@pytest.mark.parametrize("name", ["evil.example", "evil.example:8000"])
@pytest.mark.row("H24")
async def test_a_page_of_a_name_rebound_to_loopback_is_refused(api: Served, name: str) -> None:
    """Requests of a browser for the page, to the host of the page in the browser's view."""
    headers = {"Host": name, "Origin": f"http://{name}", "Sec-Fetch-Site": "same-origin"}
    for path in ("/download", "/downloads", "/retry/00000000000000"):
        answer = await api.client.post(path, json=JOB, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (421, "misdirected_request")
    for path in ("/", "/events", "/jobs/00000000000000", "/files/a", "/nothing", "/health/ready"):
        assert (await api.client.get(path, headers=headers)).status_code == 421
    assert await api.store.aggregation_sizes() == {}


@pytest.mark.row("H24")
async def test_every_way_to_name_a_host(api: Served) -> None:
    """The host of the absolute form wins over `Host`, for the check as for the routes."""
    end = b"\r\nConnection: close\r\n\r\n"
    for request, status in (
        (b"GET http://localhost/hb HTTP/1.1\r\nHost: evil.example", b"200"),
        (b"GET http://evil.example/hb HTTP/1.1\r\nHost: localhost", b"421"),
        (b"GET /hb HTTP/1.0", b"200"),  # a load balancer; browsers name one always
        (b"GET /hb HTTP/1.0\r\nHost: evil.example", b"421"),
    ):
        assert (await api.say(request + end)).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("loopback", [True, False])
async def test_allowed_hosts(serving: Serving, loopback: bool) -> None:  # noqa: FBT001  a parameter of the test
    names = ["api.example.org", "*.shop.example", "192.0.2.7", "2001:db8::1"]
    api = await serving(settings=ApiSettings(allowed_hosts=names), loopback=loopback)
    for host in (
        *("api.example.org", "API.example.org:8000", "a.shop.example", "a.b.shop.example"),
        "192.0.2.7",
    ):
        assert (await ask(api, host)).status_code == 200
    for host in ("localhost", "127.0.0.1", "[2001:db8::1]:8000"):
        assert (await ask(api, host)).status_code == 200
    for host in (
        "evil.example",
        "shop.example",
        "ashop.example",
        "b.api.example.org",
        "example.org",
        "192.0.2.8",
    ):
        assert (await ask(api, host)).status_code == 421


async def test_any_host_is_answered_where_it_listens_on_more_than_loopback(serving: Serving) -> None:
    api = await serving(loopback=False)
    assert (await ask(api, "api.example.org")).status_code == 200
    api = await serving(settings=ApiSettings(allowed_hosts=["*"]))
    assert (await ask(api, "api.example.org")).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["", "a b", "http://a.example", "a.example/", "a.example:80", "u@a.example", "a.*.example", "*.", "**"],
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValidationError, match=r"allowed_hosts[\s\S]*must be host names"):
        ApiSettings(allowed_hosts=[name])


# -- whose pages may read ------------------------------------------------------------------------------

PAGE = "https://dash.example"
SECRET = "0123456789abcdef"


@pytest.fixture
async def shared(serving: Serving) -> Served:
    token = TokenSettings(name="page", token=SecretStr(SECRET), scopes=["read"])
    return await serving(settings=ApiSettings(cors_origins=[PAGE, "http://localhost:3000"], tokens=[token]))


async def test_no_other_origin_may_read_by_default(api: Served) -> None:
    for method in ("GET", "OPTIONS"):
        answer = await api.client.request(
            method, "/stats/processor", headers={"Origin": PAGE, "Access-Control-Request-Method": "GET"}
        )
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert "vary" not in answer.headers


async def test_pages_that_may_read(shared: Served) -> None:
    headers = {"Origin": PAGE, "Authorization": f"Bearer {SECRET}"}
    for path in ("/stats/processor", "/jobs/00000000000000", "/dashboard/aggregations", "/nothing", "/"):
        answer = await shared.client.get(path, headers=headers)
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"] == "origin"
        assert "access-control-allow-credentials" not in answer.headers
    refused = await shared.client.get("/stats/processor", headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
    other = await shared.client.get("/stats/processor", headers=headers | {"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    assert other.headers["vary"] == "origin"  # or a cache could give the one's answer to the other


@pytest.mark.parametrize(
    ("origin", "method", "allowed"),
    [
        (PAGE, "GET", True),
        ("http://localhost:3000", "HEAD", True),
        (PAGE, "POST", False),
        (PAGE, "DELETE", False),
        (PAGE, "", False),
        ("http://dash.example", "GET", False),
        ("https://dash.example:8443", "GET", False),
        ("https://dash.example.evil.example", "GET", False),
        ("null", "GET", False),
        ("*", "GET", False),
        ("", "GET", False),
    ],
)
async def test_preflight(shared: Served, origin: str, method: str, allowed: bool) -> None:  # noqa: FBT001  a column
    """A browser asks without the token whether the page may send it."""
    headers = {"Origin": origin, "Access-Control-Request-Headers": "authorization"}
    if method:
        headers["Access-Control-Request-Method"] = method
    answer = await shared.client.options("/jobs/00000000000000", headers=headers)
    if not allowed:
        assert answer.status_code == 401
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        return
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD"
    assert "authorization" in answer.headers["access-control-allow-headers"]


@pytest.mark.row("H18")
async def test_pages_that_may_read_may_not_write(serving: Serving) -> None:
    api = await serving(settings=ApiSettings(cors_origins=[PAGE]))
    headers = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
    for path in ("/download", "/downloads", "/retry/00000000000000"):
        answer = await api.client.post(path, content=json.dumps(JOB), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
        assert "access-control-allow-origin" not in answer.headers
    async with api.client.stream("GET", "/events", headers=headers) as answer:
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    refused = await api.client.get("/events", headers=headers | {"Origin": "https://evil.example"})
    assert refused.status_code == 403


async def test_any_page(serving: Serving) -> None:
    api = await serving(settings=ApiSettings(cors_origins=["*"]))
    answer = await api.client.get("/stats/processor", headers={"Origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-origin" not in (await api.client.get("/stats/processor")).headers


@pytest.mark.parametrize(
    "origin",
    ["", "null", "dash.example", "https://", "https://a.example/", "ftp://a.example", "https://u@a.example"],
)
def test_invalid_origins(origin: str) -> None:
    with pytest.raises(ValidationError, match=r"cors_origins[\s\S]*must be (http or https )?origins"):
        ApiSettings(cors_origins=[origin])


def test_origins_are_kept_as_browsers_write_them() -> None:
    settings = ApiSettings(cors_origins=["HTTPS://Dash.example:443", "http://[2001:DB8::1]:3000"])
    assert settings.cors_origins == ["https://dash.example", "http://[2001:db8::1]:3000"]
