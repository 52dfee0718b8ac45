"""Connecting, on real sockets: a refused address gets no SYN, and every failure has a type."""

import errno
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest
import trio

from downloader.net import (
    ConnectFailed,
    EgressPolicy,
    EgressRefused,
    NameNotResolved,
    Resolver,
    TimedOut,
    Url,
)
from downloader.net.dial import Dialer, SystemResolver, is_own_address
from downloader.net.stream import StreamBroken
from servers.loopback import (
    Names,
    echo,
    listening,
    nobody_came,
    serving,
    silent_port,
)
from servers.ports import spare_port

PUBLIC_ONLY = EgressPolicy.parse(setting="egress.downloads")
LOOPBACK = EgressPolicy.parse(["127.0.0.0/8", "::1"], setting="egress.downloads")


def dialer(policy: EgressPolicy, *, resolver: Resolver | None = None, within_s: float = 5.0) -> Dialer:
    return Dialer(policy=policy, within_s=within_s, resolver=resolver or SystemResolver())


def host_of(text: str) -> str:
    return Url.parse(f"http://{text}").origin.host


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
LOCAL_SPELLINGS += [
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
]


@pytest.mark.parametrize("host", LOCAL_SPELLINGS)
@pytest.mark.row("H1")
async def test_loopback_in_every_spelling_is_refused_without_a_syn(host: str) -> None:
    with listening() as sock:
        with pytest.raises(EgressRefused, match="address not allowed"):
            await dialer(PUBLIC_ONLY).connect(host_of(host), sock.getsockname()[1])
        assert nobody_came(sock)


@pytest.mark.parametrize("host", ["[::1]", "[::]", "[0:0:0:0:0:0:0:1]"])
@pytest.mark.row("H1")
async def test_ipv6_loopback_is_refused_without_a_syn(host: str) -> None:
    with listening("::1") as sock:
        with pytest.raises(EgressRefused, match="address not allowed"):
            await dialer(PUBLIC_ONLY).connect(host_of(host), sock.getsockname()[1])
        assert nobody_came(sock)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "localhost", "0x7f.1"])
async def test_an_allowed_address_connects_in_every_spelling(host: str) -> None:
    async with serving(echo) as port:
        stream = await dialer(LOOPBACK).connect(host_of(host), port)
        await stream.send(b"ping")
        assert await stream.receive(100) == b"ping"
        assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert stream.socket.getpeername() == ("127.0.0.1", port)
        assert not stream.is_readable()
        stream.close()
        with pytest.raises(StreamBroken):
            await stream.receive(1)
        with pytest.raises(StreamBroken):
            await stream.send(b"x")


async def test_addresses_are_never_looked_up() -> None:
    names = Names()
    with listening() as sock:
        stream = await dialer(LOOPBACK, resolver=names).connect(host_of("2130706433"), sock.getsockname()[1])
        stream.close()
    assert names.asked == []


@pytest.mark.row("H4")
async def test_one_private_address_refuses_the_name() -> None:
    with listening() as sock:
        names = Names(mixed_test=[["93.184.216.34", "127.0.0.1"]])
        with pytest.raises(EgressRefused, match=r"127\.0\.0\.1 \(mixed\.test\)"):
            await dialer(PUBLIC_ONLY, resolver=names).connect("mixed.test", sock.getsockname()[1])
        assert nobody_came(sock)


@pytest.mark.row("H4")
async def test_rebinding_meets_one_look_up_and_one_verdict_per_connection() -> None:
    async with serving(echo, "127.0.0.2") as port:
        names = Names(rebind_test=[["127.0.0.2"], ["127.0.0.1"]])
        policy = EgressPolicy.parse(["127.0.0.2"], setting="egress.downloads")
        guarded = dialer(policy, resolver=names)
        stream = await guarded.connect("rebind.test", port)
        assert names.asked == ["rebind.test"]
        assert stream.socket.getpeername()[0] == "127.0.0.2"
        stream.close()
        with pytest.raises(EgressRefused):
            await guarded.connect("rebind.test", port)
        assert names.asked == ["rebind.test", "rebind.test"]


@pytest.mark.row("H1")
async def test_the_public_name_of_this_machine_is_refused() -> None:
    own = ip_address("93.184.216.34")
    names = Names(me_test=[["93.184.216.35", "93.184.216.34"]])
    guarded = Dialer(policy=PUBLIC_ONLY, within_s=5.0, resolver=names, is_own=own.__eq__)
    for attempt in (
        guarded.connect("me.test", 80),
        guarded.connect(str(own), 80),
        guarded.check_target("me.test"),
    ):
        with pytest.raises(
            EgressRefused, match=r"address not allowed: 93\.184\.216\.34.* is this machine's own"
        ):
            await attempt


@pytest.mark.row("H1")
def test_which_addresses_are_this_machine_s() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.connect(("198.51.100.1", 9))  # fails on a machine without a network
        assert is_own_address(ip_address(sock.getsockname()[0]))
    for own in ("127.0.0.1", "::1"):
        assert is_own_address(ip_address(own))
    for other in ("198.51.100.1", "93.184.216.34", "2001:db8::1"):
        assert not is_own_address(ip_address(other))


async def test_a_denied_name_is_not_even_looked_up() -> None:
    names = Names()
    policy = EgressPolicy.parse(deny=["*.bad.test"], setting="egress.downloads")
    with pytest.raises(EgressRefused):
        await dialer(policy, resolver=names).connect("a.bad.test", 80)
    assert names.asked == []


async def test_a_name_in_allow_may_lead_anywhere_but_to_metadata() -> None:
    names = Names(media_internal=[["127.0.0.1"]], evil_internal=[["169.254.169.254"]])
    policy = EgressPolicy.parse(["*.internal"], setting="egress.downloads")
    guarded = dialer(policy, resolver=names)
    with listening() as sock:
        (await guarded.connect("media.internal", sock.getsockname()[1])).close()
    with pytest.raises(EgressRefused, match="metadata"):
        await guarded.connect("evil.internal", 80)


async def test_the_next_address_is_tried_when_one_fails() -> None:
    async with serving(echo, "127.0.0.2") as port:
        names = Names(two_test=[["::1", "127.0.0.3", "127.0.0.2"]])
        stream = await dialer(LOOPBACK, resolver=names).connect("two.test", port)
        assert stream.socket.getpeername()[0] == "127.0.0.2"
        stream.close()


@pytest.mark.parametrize(("before", "found"), [(15, True), (16, False)])
async def test_not_all_of_very_many_addresses_are_tried(
    before: int,
    found: bool,  # noqa: FBT001 - a parameter
) -> None:
    async with serving(echo, "127.0.0.2") as port:
        names = Names(many_test=[[f"127.0.1.{number}" for number in range(before)] + ["127.0.0.2"]])
        guarded = dialer(LOOPBACK, resolver=names)
        try:
            (await guarded.connect("many.test", port)).close()
        except ConnectFailed:
            assert not found
        else:
            assert found


async def test_a_name_with_thousands_of_addresses_is_refused() -> None:
    async with serving(echo, "127.0.0.2") as port:
        most, more = ["127.0.0.2"] * 256, ["127.0.0.2"] * 257
        guarded = dialer(LOOPBACK, resolver=Names(many_test=[most, more, most, more]))
        (await guarded.connect("many.test", port)).close()
        with pytest.raises(EgressRefused, match="more than 256 addresses"):
            await guarded.connect("many.test", port)
        await guarded.check_target("many.test")
        with pytest.raises(EgressRefused, match="more than 256 addresses"):
            await guarded.check_target("many.test")


@pytest.mark.slow
async def test_a_silent_address_delays_the_next_by_a_moment_only() -> None:
    with silent_port() as (port, _):
        async with serving_on("127.0.0.2", port):
            names = Names(two_test=[["127.0.0.1", "127.0.0.2"]])
            began = trio.current_time()
            patient = dialer(LOOPBACK, resolver=names, within_s=60)
            with trio.fail_after(20):
                stream = await patient.connect("two.test", port)
            assert stream.socket.getpeername()[0] == "127.0.0.2"
            assert trio.current_time() - began > 0.2
            stream.close()


@asynccontextmanager
async def serving_on(host: str, port: int) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, echo, port, host=host))
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_no_answer_is_a_connect_timeout() -> None:
    with silent_port() as (port, _), pytest.raises(TimedOut, match=r"no connection within 0\.1 s"):
        await dialer(LOOPBACK, within_s=0.1).connect("127.0.0.1", port)


async def test_refused_is_a_connect_error_with_its_cause() -> None:
    with pytest.raises(ConnectFailed, match=r"^connection failed: connection refused$") as caught:
        await dialer(LOOPBACK).connect("127.0.0.1", spare_port())
    assert caught.value.errno == errno.ECONNREFUSED


async def test_all_addresses_refused_is_a_connect_error() -> None:
    names = Names(two_test=[["127.0.0.1", "127.0.0.2"]])
    with pytest.raises(ConnectFailed, match="refused"):
        await dialer(LOOPBACK, resolver=names).connect("two.test", spare_port())


async def test_a_slow_name_server_times_out_with_its_own_error() -> None:
    async def hang(host: str, port: int) -> Sequence[str]:
        await trio.sleep_forever()
        raise AssertionError

    guarded = dialer(LOOPBACK, within_s=0.02, resolver=hang)
    with pytest.raises(NameNotResolved, match=r"slow\.test") as caught:
        await guarded.connect("slow.test", 80)
    assert "in time" in str(caught.value)


@pytest.mark.row("H21")
async def test_hanging_look_ups_leave_threads_for_other_domains_and_trio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = trio.Event()
    token = trio.lowlevel.current_trio_token()
    started = 0

    def hang(host: bytes, *args: object) -> list[Any]:
        nonlocal started
        if host.endswith(b"slow.test"):
            started += 1
            trio.from_thread.run(release.wait, trio_token=token)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    resolver = SystemResolver(max_lookups=4)
    hasty = dialer(LOOPBACK, within_s=0.05, resolver=resolver)

    async def try_it(host: str) -> None:
        with pytest.raises(NameNotResolved) as caught:
            await hasty.connect(host, 80)
        assert "in time" in str(caught.value)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(try_it, f"{number}.slow.test")
    with trio.fail_after(20):
        while started < 2:  # a busy machine may start the threads after their callers have gone
            await trio.lowlevel.checkpoint()
    with pytest.raises(NameNotResolved, match="no address"):
        await dialer(LOOPBACK, within_s=20.0, resolver=resolver).connect("quick.test", 80)
    assert started == 2
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    release.set()
    with trio.fail_after(20):
        while resolver.lookups.borrowed_tokens:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".test", "y" * 300, "no-such-host.invalid"])
async def test_a_name_without_an_address(host: str) -> None:
    with pytest.raises(NameNotResolved) as caught:
        await dialer(PUBLIC_ONLY).connect(host, 80)
    assert "in time" not in str(caught.value)


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
        "10.0.0.1",
    ],
)
async def test_a_proxied_target_inside_is_refused(host: str) -> None:
    with pytest.raises(EgressRefused, match="address not allowed"):
        await dialer(PUBLIC_ONLY, resolver=Names()).check_target(host_of(host))


async def test_a_proxied_target_outside_passes() -> None:
    await dialer(PUBLIC_ONLY, resolver=Names()).check_target("origin.test")
    await dialer(PUBLIC_ONLY, resolver=Names()).check_target("93.184.216.34")
    inside = EgressPolicy.parse(["intranet", "10.0.0.0/8"], setting="egress")
    await dialer(inside, resolver=Names()).check_target("intranet")
    await dialer(inside, resolver=Names()).check_target("10.0.0.1")


async def test_a_proxied_target_denied_by_name_is_refused() -> None:
    with pytest.raises(EgressRefused):
        await dialer(EgressPolicy.parse(deny=["bad.test"], setting="egress"), resolver=Names()).check_target(
            "bad.test"
        )


async def test_a_proxied_target_is_looked_up_where_that_is_possible() -> None:
    names = Names(private_test=[["127.0.0.1"]], public_test=[["93.184.216.34"]])
    guarded = dialer(PUBLIC_ONLY, resolver=names)
    await guarded.check_target("public.test")
    await guarded.check_target("known-to-the-proxy-only.test")
    with pytest.raises(EgressRefused):
        await guarded.check_target("private.test")
    assert names.asked == ["public.test", "known-to-the-proxy-only.test", "private.test"]
