"""Downloads through proxies: HTTP, HTTPS and SOCKS5."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from downloader.model import ErrorCode, Verdict
from servers.certs import server_context, write_authority
from servers.lab import Lab, open_lab, small
from servers.origin import Origin, body_of, open_origin
from servers.proxies import Kind, open_proxy

KINDS: list[Kind] = ["http", "https", "socks5"]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("kind", KINDS)
async def test_through(tmp_path: Path, kind: Kind, scheme: str) -> None:
    async with (
        open_origin(server_context() if scheme == "https" else None) as origin,
        open_proxy(kind, server_context() if kind == "https" else None) as proxy,
        open_lab(tmp_path, ca_file=write_authority(tmp_path)) as lab,
    ):
        url = origin.url("/bytes/100000", host="localhost")
        outcome = await lab.fetch(url, proxy=proxy.url())
        assert outcome.verdict is Verdict.SUCCEEDED, outcome
        assert lab.stored() == body_of(100000)
        authority = f"localhost:{origin.port}"
        if kind == "socks5":
            assert proxy.log == [f"socks {authority}"]
        elif scheme == "https":
            assert proxy.log == [f"CONNECT {authority}"]
        else:
            assert proxy.log == [f"GET {url}"]
        assert origin.requests[0].headers["host"] == authority


@pytest.mark.parametrize("kind", KINDS)
async def test_the_connection_through_a_proxy_is_kept(tmp_path: Path, kind: Kind) -> None:
    async with (
        open_origin(server_context()) as origin,
        open_proxy(kind, server_context() if kind == "https" else None) as proxy,
        open_lab(tmp_path, ca_file=write_authority(tmp_path)) as lab,
    ):
        for _ in range(3):
            assert (await lab.fetch(origin.url("/bytes/10"), proxy=proxy.url())).verdict is Verdict.SUCCEEDED
        assert origin.connections == 1
        assert len(proxy.log) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_kept_connection_serves_only_its_own_proxy(tmp_path: Path, kind: Kind) -> None:
    """A name of an aggregation may be used again soon after its last job, with another proxy or with none."""
    tls = server_context() if kind == "https" else None
    async with (
        open_origin() as origin,
        open_proxy(kind, tls) as first,
        open_proxy(kind, tls) as second,
        open_lab(tmp_path, ca_file=write_authority(tmp_path)) as lab,
    ):
        for proxy in (first.url(), second.url(), ""):
            assert (await lab.fetch(origin.url("/bytes/10"), proxy=proxy)).verdict is Verdict.SUCCEEDED
        assert (len(first.log), len(second.log), origin.connections) == (1, 1, 3)


async def test_http_credentials_go_to_the_proxy_only(lab: Lab, tmp_path: Path) -> None:
    wanted = f"Proxy-Authorization: Basic {base64.b64encode(b'us:er').decode()}"
    async with open_proxy("http") as proxy, open_origin() as plain, open_origin(server_context()) as secure:
        await lab.fetch(plain.url("/bytes/1"), proxy=proxy.url("us:er@"))
        assert wanted in proxy.heads[0]
        async with open_lab(tmp_path / "2", ca_file=write_authority(tmp_path)) as other:
            await other.fetch(secure.url("/bytes/1"), proxy=proxy.url("us:er@"))
        assert wanted in proxy.heads[1]
        assert "proxy-authorization" not in secure.requests[0].headers


@pytest.mark.parametrize(
    ("given", "verdict"), [("us:er@", Verdict.SUCCEEDED), ("us:wrong@", Verdict.RETRY), ("", Verdict.RETRY)]
)
async def test_socks_credentials(lab: Lab, origin: Origin, given: str, verdict: Verdict) -> None:
    async with open_proxy("socks5") as proxy:
        proxy.user = b"us:er"
        outcome = await lab.fetch(origin.url("/bytes/1"), proxy=proxy.url(given))
        assert outcome.verdict is verdict
        assert "wrong" not in outcome.error


@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_a_refusing_proxy_blocks_no_later_attempt(tmp_path: Path, kind: Kind) -> None:
    async with (
        open_origin(server_context()) as origin,
        open_proxy(kind) as proxy,
        open_lab(tmp_path, ca_file=write_authority(tmp_path)) as lab,
    ):
        proxy.refuse = 5 if kind == "socks5" else 403
        for _ in range(3):
            outcome = await lab.fetch(origin.url("/bytes/1"), proxy=proxy.url("a:secret@"), limit=1)
            assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.CONNECT)
            assert (outcome.response_code, "secret" in outcome.error) == (0, False)
        proxy.refuse = 0
        if kind == "http":
            assert (
                await lab.fetch(origin.url("/bytes/1"), proxy=proxy.url(), limit=1)
            ).verdict is Verdict.SUCCEEDED


@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_a_silent_proxy(tmp_path: Path, kind: Kind, origin: Origin) -> None:
    async with (
        open_proxy(kind) as proxy,
        open_lab(tmp_path, limits=small(connect_s=0.1), response_timeout=0.1) as lab,
    ):
        proxy.silent = True
        outcome = await lab.fetch(origin.url("/bytes/1"), proxy=proxy.url())
        assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.TIMEOUT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.row("H9")
async def test_the_proxys_address_is_checked(lab: Lab, origin: Origin, kind: Kind) -> None:
    outcome = await lab.fetch(origin.url("/bytes/1"), proxy=f"{kind}://10.0.0.1:3128")
    assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.EGRESS)


@pytest.mark.parametrize("kind", ["http", "socks5"])
@pytest.mark.parametrize("url", ["http://10.0.0.1/", "https://169.254.169.254/", "http://intranet/"])
@pytest.mark.row("H9")
async def test_the_target_behind_a_proxy_is_checked(lab: Lab, kind: Kind, url: str) -> None:
    async with open_proxy(kind) as proxy:
        outcome = await lab.fetch(url, proxy=proxy.url())
        assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.EGRESS)
        assert proxy.log == []


@pytest.mark.row("H9")
async def test_the_environments_proxies_are_ignored(
    lab: Lab, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await lab.fetch(origin.url("/bytes/1"))).verdict is Verdict.SUCCEEDED


@pytest.mark.parametrize(
    "proxy",
    ["ftp://127.0.0.1:1", "nonsense:secret", "http://", "http://127.0.0.1:secret/", "http://secret\ud800/"],
)
@pytest.mark.row("H7")
async def test_a_proxy_that_the_api_should_have_refused(lab: Lab, origin: Origin, proxy: str) -> None:
    outcome = await lab.fetch(origin.url("/bytes/1"), proxy=proxy)
    assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.PROTOCOL)
    assert "secret" not in outcome.error


async def test_something_else_behind_the_proxys_port(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.url("/bytes/1"), proxy=f"socks5://127.0.0.1:{origin.port}")
    assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.CONNECT)


@asynccontextmanager
async def scripted_proxy(*answers: bytes) -> AsyncIterator[int]:
    """Waits for some bytes before each answer, then closes; yields its port."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            for answer in answers:
                await stream.receive_some()
                await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([b""], "the proxy closed the connection"),
        (
            [b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"],
            "the proxy sent more than an answer",
        ),
        ([b"HTTP/1.1 407 <b>who</b>\r\n\r\n"], "the proxy answered 407 to CONNECT"),
        ([b"HTTP/1.1 100 X\r\n\r\nHTTP/1.1 502 X\r\n\r\n"], "the proxy answered 502 to CONNECT"),
        ([b"HTTP/1.1 200 OK\r\n"], "the proxy closed the connection"),
    ],
)
async def test_odd_answers_to_connect(lab: Lab, answers: list[bytes], error: str) -> None:
    async with scripted_proxy(*answers) as port:
        outcome = await lab.fetch("https://127.0.0.1:8443/", proxy=f"http://127.0.0.1:{port}")
        assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.CONNECT)
        assert (outcome.error, outcome.response_code) == (error, 0)


async def test_garbage_in_answer_to_connect(lab: Lab) -> None:
    async with scripted_proxy(b"garbage\r\n\r\n") as port:
        outcome = await lab.fetch("https://127.0.0.1:8443/", proxy=f"http://127.0.0.1:{port}")
        assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.PROTOCOL)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([b""], "the proxy closed the connection"),
        ([b"\x05"], "the proxy closed the connection"),
        ([b"\x05\x09"], "the proxy does not speak SOCKS5"),
        (
            [b"\x05\x00", b"\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"],
            "the proxy could not connect: general server failure",
        ),
        (
            [b"\x05\x00", b"\x05\x02\x00\x04" + bytes(18)],
            "the proxy could not connect: connection not allowed by ruleset",
        ),
        (
            [b"\x05\x00", b"\x05\x05\x00\x03\x03abc\x00\x00"],
            "the proxy could not connect: connection refused",
        ),
        ([b"\x05\x00", b"\x05\x00\x00\x09"], "the proxy does not speak SOCKS5"),
        ([b"\x05\x00", b"\x04\x00\x00\x01" + bytes(6)], "the proxy does not speak SOCKS5"),
        ([b"\x05\x00", b"\x05\x77\x00\x01" + bytes(6)], "the proxy does not speak SOCKS5"),
    ],
)
async def test_odd_answers_in_socks(lab: Lab, answers: list[bytes], error: str) -> None:
    async with scripted_proxy(*answers) as port:
        outcome = await lab.fetch("http://127.0.0.1:8080/", proxy=f"socks5://127.0.0.1:{port}")
        assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.CONNECT)
        assert (outcome.error, outcome.response_code) == (error, 0)


async def test_credentials_that_do_not_fit_into_socks(lab: Lab) -> None:
    async with scripted_proxy(b"\x05\x02") as port:
        outcome = await lab.fetch("http://127.0.0.1:8080/", proxy=f"socks5://u:{'p' * 256}@127.0.0.1:{port}")
        assert outcome.error == "user or password too long for a SOCKS5 proxy"
