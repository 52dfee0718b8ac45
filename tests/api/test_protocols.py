"""Versions of HTTP and TLS: the same API, asked by curl and httpx2."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import httpx2
import pytest
import trio
import trustme

from downloader.config import Settings
from downloader.errors import ConfigError
from downloader.server import Limits, tls_context
from downloader.service.doctor import try_api
from servers.api import JOB, Served, Serving

pytestmark = pytest.mark.slow


async def curl(*options: str) -> tuple[str, str, str]:
    """`curl`'s answer as protocol, status and body."""
    out = "\n%{http_version} %{http_code}"
    done = await trio.run_process(
        ["curl", "-sS", "--max-time", "10", "--noproxy", "*", "-w", out, *options], capture_stdout=True
    )
    text, _, last = done.stdout.decode().rpartition("\n")
    version, _, status = last.partition(" ")
    return version, status, text


WITH_EXPECT = ("--http1.1", "-H", "Expect: 100-continue", "--expect100-timeout", "60")
"""As older versions of curl, and the libraries on it, send bodies of more than 1 KiB: without an answer to it
this one sends no body in time."""


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--http1.0",),
        WITH_EXPECT,
        ("--http2",),  # an upgrade that is ignored
    ],
)
async def test_curl(api: Served, options: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{api.port}"
    job = json.dumps(JOB | {"extra": "x" * 2000})
    version, status, body = await curl(*options, "-d", job, f"{url}/download")
    assert (version, status) == ("1.1", "201")
    job_id = json.loads(body)["id"]
    version, status, body = await curl(*options, f"{url}/jobs/{job_id}")
    assert (version, status) == ("1.1", "200")
    assert json.loads(body)["id"] == job_id


async def test_an_upgrade_as_java_sends_it_is_ignored(api: Served) -> None:
    """`java.net.http.HttpClient` (17) with its defaults asks for h2c with each request, bodies or not."""
    body = json.dumps(JOB).encode()
    head = (
        b"POST /download HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: %d\r\n"
        b"Host: 127.0.0.1:%d\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\n"
        b"Upgrade: h2c\r\nUser-Agent: Java-http-client/17.0.21\r\nContent-Type: application/json\r\n\r\n"
        % (len(body), api.port)
    )
    async with await api.connect() as stream:
        for _ in range(2):
            await stream.send_all(head + body)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 201 ")
        await stream.send_all(
            head.replace(b"POST /download", b"GET /hb").replace(b"Content-Length: %d\r\n" % len(body), b"")
        )
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str, ssl.SSLContext]:
    """Files of a certificate for 127.0.0.1 and of the key, and a context of a client that trusts the
    certificate."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"), client


async def test_tls(serving: Serving, certificate: tuple[str, str, ssl.SSLContext]) -> None:
    cert, key, trusting = certificate
    api = await serving(tls=tls_context(cert, key))
    url = f"https://127.0.0.1:{api.port}"
    for alpn in (["h2", "http/1.1"], ["http/1.1"], []):
        trusting.set_alpn_protocols(alpn)
        async with httpx2.AsyncClient(verify=trusting, base_url=url, trust_env=False) as client:
            answer = await client.post("/download", json=JOB)
            assert (answer.status_code, answer.http_version) == (201, "HTTP/1.1")
            large = await client.post("/download", content=b"x" * 1_000_000)
            assert large.status_code == 413
            assert (await client.get("/hb")).status_code == 200


@pytest.mark.row("H17")
@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)], ids=str
)
async def test_alpn_offers_http_1_1_only(
    serving: Serving,
    certificate: tuple[str, str, ssl.SSLContext],
    offered: list[str],
    chosen: str | None,
) -> None:
    cert, key, trusting = certificate
    api = await serving(tls=tls_context(cert, key))
    trusting.set_alpn_protocols(offered)
    stream = trio.SSLStream(await api.connect(), trusting, server_hostname="127.0.0.1")
    await stream.do_handshake()
    assert stream.selected_alpn_protocol() == chosen
    await trio.aclose_forcefully(stream)


async def test_the_doctor_knows_an_api_with_tls(
    serving: Serving, certificate: tuple[str, str, ssl.SSLContext]
) -> None:
    cert, key, _ = certificate
    api = await serving(tls=tls_context(cert, key))
    given = Settings.model_validate({"api": {"port": api.port, "certfile": cert, "keyfile": key}})
    assert (await try_api(given.api)).endswith("is served by a downloader that runs")


@pytest.mark.slow
@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
async def test_tls_ends_with_close_notify(
    serving: Serving, certificate: tuple[str, str, ssl.SSLContext], connection: bytes
) -> None:
    """So that a client can tell the end of a response from a cut, also on an idle connection."""
    cert, key, trusting = certificate
    api = await serving(tls=tls_context(cert, key), limits=Limits(idle_s=1.0))
    stream = trio.SSLStream(await api.connect(), trusting, server_hostname="127.0.0.1")
    await stream.send_all(b"GET /hb HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: %b\r\n\r\n" % connection)
    with trio.fail_after(20):
        answer = b""
        while data := await stream.receive_some():  # raises if the connection ends without close_notify
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 ")
    await trio.aclose_forcefully(stream)


async def test_tls_does_not_wait_for_a_client_that_never_closes(
    serving: Serving, certificate: tuple[str, str, ssl.SSLContext]
) -> None:
    cert, key, trusting = certificate
    api = await serving(tls=tls_context(cert, key), limits=Limits(linger_s=0.1), grace_s=60)
    raw = await api.connect()
    stream = trio.SSLStream(raw, trusting, server_hostname="127.0.0.1")
    await stream.send_all(b"GET /hb HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    with trio.fail_after(20):
        while await raw.receive_some():
            pass
    await trio.aclose_forcefully(raw)


def test_files_that_are_no_certificate(tmp_path: Path, certificate: tuple[str, str, ssl.SSLContext]) -> None:
    cert, key, _ = certificate
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(str(other))
    for files, words in (
        ((str(tmp_path / "none"), key), "api.certfile: cannot read"),
        ((cert, str(tmp_path)), "api.keyfile: cannot read"),
        ((key, cert), "are no certificate and its key"),
        ((cert, str(other)), "are no certificate and its key"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            tls_context(*files)
        assert "\n" not in str(caught.value)
