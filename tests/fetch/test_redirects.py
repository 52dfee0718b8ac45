"""Redirects: each hop is checked like a first URL, and secrets stay with their origin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from downloader.model import ErrorCode, Outcome, Verdict
from servers.certs import server_context, write_authority
from servers.hostile_urls import HOSTILE_URLS
from servers.lab import Lab, open_lab
from servers.origin import Origin, open_origin, raw, repeat, respond

SECRETS = {
    "Authorization": "Bearer s",
    "Cookie": "a=b",
    "X-Custom": "c",
    "User-Agent": "ua",
    "Accept": "image/*",
}


def to(location: str, status: int = 302) -> object:
    return respond(status, b"moved", [("Location", location)])


@pytest.fixture
async def other() -> AsyncIterator[Origin]:
    async with open_origin() as running:
        yield running


def refused(outcome: Outcome, code: ErrorCode = ErrorCode.REDIRECTS) -> bool:
    return (outcome.verdict, outcome.error_code) == (Verdict.FAILED, code)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_followed(lab: Lab, origin: Origin, status: int) -> None:
    origin.on("/x", respond(status, b"moved", [("Location", "/bytes/10?seed=1#part")]))
    outcome = await lab.fetch(origin.url("/x"))
    assert (outcome.verdict, outcome.response_code, outcome.file.size) == (Verdict.SUCCEEDED, 200, 10)
    assert origin.asked("/bytes/10")[0].target == "/bytes/10?seed=1"
    assert origin.connections == 1


@pytest.mark.row("H5")
async def test_as_many_as_configured(lab: Lab, origin: Origin) -> None:
    assert (await lab.fetch(origin.url("/redirect/10"))).verdict is Verdict.SUCCEEDED
    for hops in (11, 21):
        outcome = await lab.fetch(origin.url(f"/redirect/{hops}"))
        assert refused(outcome)
        assert outcome.error == "more than 10 redirects"
        assert outcome.response_code == 302


@pytest.mark.row("H5")
async def test_loop(lab: Lab, origin: Origin) -> None:
    origin.on("/x", respond(302, b"", [("Location", "/x")]))
    assert refused(await lab.fetch(origin.url("/x")))
    assert len(origin.asked("/x")) == 11


@pytest.mark.parametrize(
    "location",
    [
        *(url for url in HOSTILE_URLS if url.isprintable()),
        *("//h.test:6379/", "//evil\\@127.0.0.1/", "javascript:alert(1)", "/a\tb", ""),
    ],
)
@pytest.mark.row("H5", "H7")
async def test_to_something_unusable(lab: Lab, origin: Origin, location: str) -> None:
    origin.on("/x", respond(302, b"", [("Location", location)]))
    outcome = await lab.fetch(origin.url("/x"))
    assert refused(outcome), outcome
    assert outcome.response_code == 302


@pytest.mark.row("H5")
async def test_without_location(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.on("/x", respond(302)))
    assert refused(outcome)
    assert outcome.error == "redirect without a location"


@pytest.mark.parametrize(
    "location", ["http://169.254.169.254/latest", "//10.1.2.3/", "http://[::ffff:10.0.0.1]/"]
)
@pytest.mark.row("H5")
async def test_to_a_forbidden_address(lab: Lab, origin: Origin, location: str) -> None:
    origin.on("/x", respond(302, b"", [("Location", location)]))
    outcome = await lab.fetch(origin.url("/x"))
    assert refused(outcome, ErrorCode.EGRESS)
    assert outcome.response_code == 302


@pytest.mark.row("H5")
async def test_from_https_to_http(tmp_path: Path, origin: Origin) -> None:
    async with (
        open_origin(server_context()) as secure,
        open_lab(tmp_path, ca_file=write_authority(tmp_path)) as lab,
    ):
        secure.on("/x", respond(302, b"", [("Location", origin.url("/bytes/1"))]))
        outcome = await lab.fetch(secure.url("/x"))
        assert refused(outcome)
        assert origin.requests == []
        origin.on("/up", respond(302, b"", [("Location", secure.url("/bytes/1"))]))
        assert (await lab.fetch(origin.url("/up"))).verdict is Verdict.SUCCEEDED


@pytest.mark.row("H5")
async def test_a_large_redirect_body_is_not_read(lab: Lab, origin: Origin) -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: /bytes/3\r\nContent-Length: 30000000\r\n\r\n"
    origin.on("/x", repeat(head, b"x" * 65536))
    outcome = await lab.fetch(origin.url("/x"))
    assert outcome.verdict is Verdict.SUCCEEDED
    assert origin.connections == 2
    await origin.wait_until(lambda: origin.open_connections == 1)


async def test_bad_bytes_in_location(lab: Lab, origin: Origin) -> None:
    origin.on(
        "/x", raw(b"HTTP/1.1 302 X\r\nLocation: /bytes/3?seed=\xe9\r\nContent-Length: 0\r\n\r\n", "keep")
    )
    assert (await lab.fetch(origin.url("/x"))).verdict is Verdict.SUCCEEDED
    assert origin.asked("/bytes/3")[0].target == "/bytes/3?seed=%E9"


# what goes along


@pytest.mark.row("H6")
async def test_secrets_stay_with_their_origin(lab: Lab, origin: Origin, other: Origin) -> None:
    origin.on("/x", respond(302, b"", [("Location", "/y")]))
    origin.on("/y", respond(302, b"", [("Location", other.url("/z"))]))
    other.on("/z", respond(302, b"", [("Location", origin.url("/bytes/1"))]))
    await lab.fetch(origin.url("/x"), request_headers=SECRETS)
    wanted = {name.lower(): value for name, value in SECRETS.items()}
    assert wanted.items() <= origin.asked("/y")[0].headers.items()
    abroad = other.asked("/z")[0].headers
    assert {"user-agent": "ua", "accept": "image/*", "accept-encoding": "identity"}.items() <= abroad.items()
    assert not {"authorization", "cookie", "x-custom"} & abroad.keys()
    # Not even when it leads back: what is dropped stays dropped.
    assert not {"authorization", "cookie", "x-custom"} & origin.asked("/bytes/1")[0].headers.keys()


async def test_userinfo(lab: Lab, origin: Origin, other: Origin) -> None:
    origin.on("/x", respond(302, b"", [("Location", "/y")]))
    origin.on("/y", respond(302, b"", [("Location", other.url("/z"))]))
    other.on("/z", respond(200))
    await lab.fetch(origin.url("/x", userinfo="us%40er:p%3Ass@"))
    assert origin.asked("/x")[0].headers["authorization"] == "Basic dXNAZXI6cDpzcw=="
    assert origin.asked("/y")[0].headers["authorization"] == "Basic dXNAZXI6cDpzcw=="
    assert "authorization" not in other.asked("/z")[0].headers


async def test_from_http_to_https_on_one_host_all_goes_along(tmp_path: Path, origin: Origin) -> None:
    sent = {"Cookie": "a=b", "X-Custom": "c"}
    async with (
        open_origin(server_context()) as secure,
        open_lab(tmp_path, ca_file=write_authority(tmp_path)) as lab,
    ):
        origin.on("/x", respond(302, b"", [("Location", secure.url("/bytes/1"))]))
        origin.on("/y", respond(302, b"", [("Location", secure.url("/bytes/1", host="localhost"))]))
        await lab.fetch(origin.url("/x", userinfo="us:er@"), request_headers=sent)
        await lab.fetch(origin.url("/y", userinfo="us:er@"), request_headers=sent)
    same, other = (request.headers for request in secure.requests)
    assert (same["authorization"], same["cookie"], same["x-custom"]) == ("Basic dXM6ZXI=", "a=b", "c")
    assert not {"authorization", "cookie", "x-custom"} & other.keys()


async def test_an_empty_user_agent_sends_none(lab: Lab, origin: Origin) -> None:
    for user_agent in ("", "field"):
        outcome = await lab.fetch(
            origin.url("/bytes/1"), user_agent=user_agent, request_headers={"user-agent": ""}
        )
        assert outcome.verdict is Verdict.SUCCEEDED
    assert ["user-agent" in request.headers for request in origin.requests] == [False, False]


async def test_authorization_wins_over_userinfo(lab: Lab, origin: Origin) -> None:
    await lab.fetch(origin.url("/bytes/1", userinfo="u:p@"), request_headers={"AUTHORIZATION": "mine"})
    assert origin.requests[0].headers["authorization"] == "mine"


# request headers


async def test_the_job_wins_over_user_agent_over_configuration(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(
        tmp_path, request_headers={"user-agent": "conf", "X-A": "conf", "accept": "conf"}
    ) as lab:
        await lab.fetch(origin.url("/bytes/1"))
        await lab.fetch(origin.url("/bytes/2"), user_agent="field")
        await lab.fetch(
            origin.url("/bytes/3"),
            user_agent="field",
            request_headers={"USER-AGENT": "job", "x-a": "7", "B": "é"},
        )
    one, two, three = (request.headers for request in origin.requests)
    assert (one["user-agent"], one["x-a"], one["accept"]) == ("conf", "conf", "conf")
    assert (two["user-agent"], two["x-a"]) == ("field", "conf")
    assert (three["user-agent"], three["x-a"], three["accept"]) == ("job", "7", "conf")
    assert three["b"].encode("latin-1").decode() == "é"
    assert one["accept-encoding"] == "identity"
    assert one["host"] == f"127.0.0.1:{origin.port}"
    assert all(origin.requests[2].raw.lower().count(name) == 1 for name in (b"user-agent:", b"x-a:"))


@pytest.mark.row("H8")
async def test_framing_and_routing_headers_are_ours(lab: Lab, origin: Origin) -> None:
    bad = {
        "Host": "evil",
        "Content-Length": "5",
        "Transfer-Encoding": "chunked",
        "Connection": "close",
        "Expect": "100-continue",
        "Proxy-Authorization": "x",
        "Upgrade": "h2c",
        "TE": "trailers",
    }
    outcome = await lab.fetch(origin.url("/bytes/1"), request_headers=bad)
    assert outcome.verdict is Verdict.SUCCEEDED
    sent = origin.requests[0].headers
    assert sent["host"] == f"127.0.0.1:{origin.port}"
    assert not {name.lower() for name in bad if name != "Host"} & sent.keys()


@pytest.mark.row("H8")
async def test_a_header_that_cannot_be_sent(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.url("/bytes/1"), request_headers={"X": "a\r\nInjected: b"})
    assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.PROTOCOL)
    assert origin.requests == []


@pytest.mark.parametrize("url", ["nonsense", *HOSTILE_URLS])
@pytest.mark.row("H7")
async def test_urls_that_the_api_should_have_refused(lab: Lab, origin: Origin, url: str) -> None:
    for outcome in (await lab.fetch(url), await lab.fetch(origin.url("/bytes/1"), proxy=url)):
        assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.PROTOCOL)
        assert outcome.response_code == 0
    assert origin.requests == []


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/bytes/1?a=%2f%41&b=c+d&e=ü;f", "/bytes/1?a=%2f%41&b=c+d&e=%C3%BC;f"),
        ("/a/../b/./c//d?e=../f", None),
        ("/%7E~%2F+;,!$&'()*:@=[]?a=b&d=[e]", None),
        ("/a b^|?b|c&{g}`^ h ", "/a%20b%5E%7C?b%7Cc&%7Bg%7D%60%5E%20h"),
        ("/100%?50%&%zz", None),
        ("/..", None),
        ("?a=/b", "/?a=/b"),
        ("#a", "/"),
        ('/{a}"<>`?"<>', "/%7Ba%7D%22%3C%3E%60?%22%3C%3E"),
    ],
)
async def test_the_target_is_sent_as_written(
    lab: Lab, origin: Origin, written: str, sent: str | None
) -> None:
    await lab.fetch(origin.url("") + written)
    assert origin.requests[0].target == (written if sent is None else sent)
