"""The guarded backend below httpcore2's pools and proxies, and the check of a proxied request's target."""

import struct
from collections.abc import Callable
from typing import Any

import httpcore2
import pytest
import trio
import trustme

from downloader.net import (
    EgressPolicy,
    EgressRefused,
    GuardedBackend,
    NameNotResolved,
    TlsFailed,
    check_target,
)
from servers.loopback import (
    Names,
    client_context,
    copy,
    listening,
    nobody_came,
    over_tls,
    server_context,
    serving,
)
from servers.ports import spare_port

PUBLIC_ONLY = EgressPolicy.parse(setting="egress.downloads")
LOOPBACK = EgressPolicy.parse(["127.0.0.0/8", "::1"], setting="egress.downloads")


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


async def test_the_pool_passes_our_exceptions_on_unchanged(ca: trustme.CA) -> None:
    names = Names(private_test=[["127.0.0.1"]], untrusted_test=[["127.0.0.2"]])
    policy = EgressPolicy.parse(["127.0.0.2"], setting="egress.downloads")
    backend = GuardedBackend(policy, resolver=names)
    untrusted = over_tls(server_context(trustme.CA(), "untrusted.test"))
    async with (
        serving(untrusted, "127.0.0.2") as port,
        httpcore2.AsyncConnectionPool(network_backend=backend, ssl_context=client_context(ca)) as pool,
    ):
        with pytest.raises(EgressRefused):
            await pool.request("GET", "http://private.test/")
        with pytest.raises(NameNotResolved):
            await pool.request("GET", "http://unknown.test/")
        with pytest.raises(TlsFailed):
            await pool.request("GET", f"https://untrusted.test:{port}/")
        with pytest.raises(httpcore2.ConnectError) as caught:
            await pool.request("GET", f"http://127.0.0.2:{spare_port()}/")
        assert isinstance(caught.value.args[0], OSError)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxys_address_is_checked(scheme: str) -> None:
    with listening() as sock:
        proxy = httpcore2.Proxy(f"{scheme}://127.0.0.1:{sock.getsockname()[1]}")
        backend = GuardedBackend(PUBLIC_ONLY, resolver=Names())
        async with httpcore2.AsyncConnectionPool(network_backend=backend, proxy=proxy) as pool:
            for url in ("http://origin.test/", "https://origin.test/"):
                with pytest.raises(EgressRefused):
                    await pool.request("GET", url)
        assert nobody_came(sock)


async def connect_proxy(stream: trio.SocketStream) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some(65536)
    port = int(head.split(b" ")[1].rpartition(b":")[2])
    await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
    async with await trio.open_tcp_stream("127.0.0.1", port) as inner, trio.open_nursery() as nursery:
        nursery.start_soon(copy, stream, inner)
        await copy(inner, stream)
        nursery.cancel_scope.cancel()


async def socks_proxy(stream: trio.SocketStream) -> None:
    await stream.receive_some(65536)
    await stream.send_all(b"\x05\x00")
    request = await stream.receive_some(65536)
    (port,) = struct.unpack("!H", request[-2:])
    await stream.send_all(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x01")
    async with await trio.open_tcp_stream("127.0.0.1", port) as inner, trio.open_nursery() as nursery:
        nursery.start_soon(copy, stream, inner)
        await copy(inner, stream)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("scheme", "handler"), [("http", connect_proxy), ("socks5", socks_proxy)])
async def test_tls_through_a_proxy(
    ca: trustme.CA, scheme: str, handler: Callable[[trio.SocketStream], Any]
) -> None:
    backend = GuardedBackend(LOOPBACK, resolver=Names())

    def secure(issuer: trustme.CA) -> Callable[[trio.SocketStream], Any]:
        async def respond(stream: trio.SocketStream) -> None:
            context = server_context(issuer, "origin.test")
            tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            try:
                await tls.receive_some(65536)
                await tls.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            except trio.BrokenResourceError:
                return

        return respond

    async with (
        serving(handler) as proxy_port,
        serving(secure(ca)) as good,
        serving(secure(trustme.CA())) as bad,
        httpcore2.AsyncConnectionPool(
            network_backend=backend,
            ssl_context=client_context(ca),
            proxy=httpcore2.Proxy(f"{scheme}://127.0.0.1:{proxy_port}"),
        ) as pool,
    ):
        response = await pool.request("GET", f"https://origin.test:{good}/")
        assert response.content == b"ok"
        with pytest.raises(TlsFailed):
            await pool.request("GET", f"https://origin.test:{bad}/")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "[::1]",
        "169.254.169.254",
        "localhost",
        "a.localhost",
        "x.local",
        "metadata.google.internal",
        "intranet",
        "0250.0.0.1",
        "10.0.0.1",
    ],
)
async def test_a_proxied_target_inside_is_refused(host: str) -> None:
    with pytest.raises(EgressRefused, match="address not allowed"):
        await check_target(PUBLIC_ONLY, host)


async def test_a_proxied_target_outside_passes_without_a_look_up() -> None:
    await check_target(PUBLIC_ONLY, "origin.test")
    await check_target(PUBLIC_ONLY, "93.184.216.34")
    await check_target(EgressPolicy.parse(["intranet", "10.0.0.0/8"], setting="egress"), "intranet")
    await check_target(EgressPolicy.parse(["intranet", "10.0.0.0/8"], setting="egress"), "10.0.0.1")


async def test_a_proxied_target_denied_by_name_is_refused() -> None:
    with pytest.raises(EgressRefused):
        await check_target(EgressPolicy.parse(deny=["bad.test"], setting="egress"), "bad.test")
    with pytest.raises(NameNotResolved):
        await check_target(PUBLIC_ONLY, "ü ü")


async def test_a_proxied_target_is_looked_up_where_that_is_possible() -> None:
    names = Names(private_test=[["127.0.0.1"]], public_test=[["93.184.216.34"]])
    backend = GuardedBackend(PUBLIC_ONLY, resolver=names)
    await backend.check_target("public.test")
    await backend.check_target("known-to-the-proxy-only.test")
    with pytest.raises(EgressRefused):
        await backend.check_target("private.test")
    assert names.asked == ["public.test", "known-to-the-proxy-only.test", "private.test"]
