"""The guarded backend against real sockets: what is refused sends no SYN, and every failure has its type."""

import errno
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpcore2
import pytest
import trio

from downloader.net import (
    EgressPolicy,
    EgressRefused,
    GuardedBackend,
    NameNotResolved,
    SystemResolver,
)
from servers.loopback import (
    Names,
    echo,
    listening,
    nobody_came,
    serving,
    silence,
    silent_port,
)
from servers.ports import spare_port

PUBLIC_ONLY = EgressPolicy.parse(setting="egress.downloads")
LOOPBACK = EgressPolicy.parse(["127.0.0.0/8", "::1"], setting="egress.downloads")

LOCAL_SPELLINGS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0",
    "0",
    "localhost",
    "LOCALHOST.",
]
LOCAL_SPELLINGS += ["::ffff:127.0.0.1", "[::ffff:7f00:1]", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]


@pytest.mark.parametrize("host", LOCAL_SPELLINGS)
@pytest.mark.row("H1")
async def test_loopback_in_every_spelling_is_refused_without_a_syn(host: str) -> None:
    with listening() as sock:
        with pytest.raises(EgressRefused, match="address not allowed"):
            await GuardedBackend(PUBLIC_ONLY).connect_tcp(host, sock.getsockname()[1], timeout=5)
        assert nobody_came(sock)


@pytest.mark.parametrize("host", ["::1", "[::1]", "::", "::1%lo"])
@pytest.mark.row("H1")
async def test_ipv6_loopback_is_refused_without_a_syn(host: str) -> None:
    with listening("::1") as sock:
        with pytest.raises(EgressRefused, match="address not allowed"):
            await GuardedBackend(PUBLIC_ONLY).connect_tcp(host, sock.getsockname()[1], timeout=5)
        assert nobody_came(sock)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "localhost", "0x7f.1"])
async def test_what_is_allowed_connects_in_every_spelling(host: str) -> None:
    async with serving(echo) as port:
        stream = await GuardedBackend(LOOPBACK).connect_tcp(host, port, timeout=5)
        await stream.write(b"ping", timeout=5)
        assert await stream.read(100, timeout=5) == b"ping"
        assert stream.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", port)
        assert stream.get_extra_info("client_addr")[0] == "127.0.0.1"
        assert stream.get_extra_info("ssl_object") is None
        assert stream.get_extra_info("is_readable") is False
        assert stream.get_extra_info("weather") is None
        await stream.aclose()
        with pytest.raises(httpcore2.ReadError):
            await stream.read(1)
        with pytest.raises(httpcore2.WriteError):
            await stream.write(b"x")


async def test_addresses_are_never_looked_up() -> None:
    names = Names()
    with listening() as sock:
        stream = await GuardedBackend(LOOPBACK, resolver=names).connect_tcp(
            "2130706433", sock.getsockname()[1]
        )
        await stream.aclose()
    assert names.asked == []


@pytest.mark.row("H4")
async def test_one_private_answer_poisons_the_name() -> None:
    with listening() as sock:
        names = Names(mixed_test=[["93.184.216.34", "127.0.0.1"]])
        with pytest.raises(EgressRefused, match=r"127\.0\.0\.1 \(mixed\.test\)"):
            await GuardedBackend(PUBLIC_ONLY, resolver=names).connect_tcp("mixed.test", sock.getsockname()[1])
        assert nobody_came(sock)


@pytest.mark.row("H4")
async def test_rebinding_meets_one_look_up_and_one_verdict_per_connection() -> None:
    async with serving(echo, "127.0.0.2") as port:
        names = Names(rebind_test=[["127.0.0.2"], ["127.0.0.1"]])
        policy = EgressPolicy.parse(["127.0.0.2"], setting="egress.downloads")
        backend = GuardedBackend(policy, resolver=names)
        stream = await backend.connect_tcp("rebind.test", port, timeout=5)
        assert names.asked == ["rebind.test"]
        assert stream.get_extra_info("server_addr")[0] == "127.0.0.2"
        await stream.aclose()
        with pytest.raises(EgressRefused):
            await backend.connect_tcp("rebind.test", port, timeout=5)
        assert names.asked == ["rebind.test", "rebind.test"]


async def test_a_read_takes_no_more_than_it_was_told_to() -> None:
    async with serving(echo) as port:
        stream = await GuardedBackend(LOOPBACK, max_read_bytes=3).connect_tcp("127.0.0.1", port)
        await stream.write(b"12345")
        assert await stream.read(100) == b"123"
        assert await stream.read(1) == b"4"
        await stream.aclose()


async def test_a_denied_name_is_not_even_looked_up() -> None:
    names = Names()
    policy = EgressPolicy.parse(deny=["*.bad.test"], setting="egress.downloads")
    with pytest.raises(EgressRefused):
        await GuardedBackend(policy, resolver=names).connect_tcp("a.bad.test", 80)
    assert names.asked == []


async def test_a_name_in_allow_may_lead_anywhere_but_to_metadata() -> None:
    names = Names(media_internal=[["127.0.0.1"]], evil_internal=[["169.254.169.254"]])
    policy = EgressPolicy.parse(["*.internal"], setting="egress.downloads")
    backend = GuardedBackend(policy, resolver=names)
    with listening() as sock:
        await (await backend.connect_tcp("media.internal", sock.getsockname()[1])).aclose()
    with pytest.raises(EgressRefused, match="metadata"):
        await backend.connect_tcp("evil.internal", 80)


async def test_the_next_address_is_tried_when_one_fails() -> None:
    async with serving(echo, "127.0.0.2") as port:
        names = Names(two_test=[["::1", "127.0.0.3", "127.0.0.2"]])
        stream = await GuardedBackend(LOOPBACK, resolver=names).connect_tcp("two.test", port, timeout=5)
        assert stream.get_extra_info("server_addr")[0] == "127.0.0.2"
        await stream.aclose()


@pytest.mark.parametrize(("before", "found"), [(15, True), (16, False)])
async def test_a_name_with_very_many_addresses_is_not_called_at_all_of_them(
    before: int,
    found: bool,  # noqa: FBT001 - a parameter
) -> None:
    async with serving(echo, "127.0.0.2") as port:
        names = Names(many_test=[[f"127.0.1.{number}" for number in range(before)] + ["127.0.0.2"]])
        backend = GuardedBackend(LOOPBACK, resolver=names)
        try:
            await (await backend.connect_tcp("many.test", port, timeout=5)).aclose()
        except httpcore2.ConnectError:
            assert not found
        else:
            assert found


@pytest.mark.slow
async def test_a_silent_address_holds_up_the_next_for_a_moment_only() -> None:
    with silent_port() as (port, _):
        async with serving_on("127.0.0.2", port):
            names = Names(two_test=[["127.0.0.1", "127.0.0.2"]])
            began = trio.current_time()
            stream = await GuardedBackend(LOOPBACK, resolver=names).connect_tcp("two.test", port, timeout=5)
            assert stream.get_extra_info("server_addr")[0] == "127.0.0.2"
            assert 0.2 < trio.current_time() - began < 2
            await stream.aclose()


@asynccontextmanager
async def serving_on(host: str, port: int) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, echo, port, host=host))
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_no_answer_is_a_connect_timeout() -> None:
    with silent_port() as (port, _), pytest.raises(httpcore2.ConnectTimeout):
        await GuardedBackend(LOOPBACK).connect_tcp("127.0.0.1", port, timeout=0.1)


async def test_refused_is_a_connect_error_with_its_cause() -> None:
    with pytest.raises(httpcore2.ConnectError) as caught:
        await GuardedBackend(LOOPBACK).connect_tcp("127.0.0.1", spare_port(), timeout=5)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ECONNREFUSED
    assert caught.value.args == (caught.value.__cause__,)


async def test_all_addresses_refused_is_a_connect_error() -> None:
    names = Names(two_test=[["127.0.0.1", "127.0.0.2"]])
    with pytest.raises(httpcore2.ConnectError, match="refused"):
        await GuardedBackend(LOOPBACK, resolver=names).connect_tcp("two.test", spare_port(), timeout=5)


async def test_a_slow_name_server_is_bounded_and_told_apart() -> None:
    async def hang(host: str, port: int) -> Sequence[str]:
        await trio.sleep_forever()
        raise AssertionError

    backend = GuardedBackend(LOOPBACK, resolve_timeout_s=0.02, resolver=hang)
    with pytest.raises(NameNotResolved, match=r"slow\.test") as caught:
        await backend.connect_tcp("slow.test", 80, timeout=5)
    assert caught.value.timed_out
    backend = GuardedBackend(LOOPBACK, resolve_timeout_s=30, resolver=hang)
    with pytest.raises(NameNotResolved):
        await backend.connect_tcp("slow.test", 80, timeout=0.02)


async def test_hanging_look_ups_leave_trios_own_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    release = trio.Event()
    token = trio.lowlevel.current_trio_token()
    started = 0

    def hang(*args: object) -> list[Any]:
        nonlocal started
        started += 1
        trio.from_thread.run(release.wait, trio_token=token)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    backend = GuardedBackend(LOOPBACK, resolve_timeout_s=0.05, resolver=SystemResolver(max_lookups=4))

    async def try_it() -> None:
        with pytest.raises(NameNotResolved) as caught:
            await backend.connect_tcp("slow.test", 80)
        assert caught.value.timed_out

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(try_it)
    assert started == 4
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    release.set()
    with trio.fail_after(5):
        while backend._resolver._limiter.borrowed_tokens:  # type: ignore[attr-defined] # the resolver is ours
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "host", ["a..b", "x" * 64 + ".test", "y" * 300, "nul\0.test", "no-such-host.invalid", ""]
)
async def test_what_no_name_server_knows(host: str) -> None:
    with pytest.raises(NameNotResolved) as caught:
        await GuardedBackend(PUBLIC_ONLY).connect_tcp(host, 80, timeout=5)
    assert not caught.value.timed_out


@pytest.mark.parametrize("port", [0, 65536, -1])
async def test_ports_that_do_not_exist(port: int) -> None:
    with pytest.raises(EgressRefused):
        await GuardedBackend(LOOPBACK).connect_tcp("127.0.0.1", port)


async def test_no_unix_sockets() -> None:
    with pytest.raises(NotImplementedError):
        await GuardedBackend(LOOPBACK).connect_unix_socket("/var/run/docker.sock")


async def test_socket_options_and_local_address() -> None:
    with listening() as sock:
        stream = await GuardedBackend(LOOPBACK).connect_tcp(
            "127.0.0.1",
            sock.getsockname()[1],
            local_address="127.0.0.9",
            socket_options=[(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
        )
        assert stream.get_extra_info("client_addr")[0] == "127.0.0.9"
        assert stream.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await stream.aclose()
        with pytest.raises(httpcore2.ConnectError):
            await GuardedBackend(LOOPBACK).connect_tcp(
                "127.0.0.1", sock.getsockname()[1], socket_options=[(socket.SOL_SOCKET, 9999, 1)]
            )


async def test_reads_and_writes_time_out() -> None:
    async with serving(silence) as port:
        stream = await GuardedBackend(LOOPBACK).connect_tcp("127.0.0.1", port)
        with pytest.raises(httpcore2.ReadTimeout):
            await stream.read(1, timeout=0.01)
        with pytest.raises(httpcore2.WriteTimeout):
            await stream.write(bytes(64 * 1024 * 1024), timeout=0.05)
        await stream.aclose()
