"""The address policy: the tables of hostile addresses, and what the operator's lists change."""

import ipaddress
from contextlib import nullcontext
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.net import EgressPolicy, EgressRefused
from downloader.net.policy import METADATA, is_local_name, parse_address
from downloader.net.url import normal_host

PUBLIC_ONLY = EgressPolicy.parse(setting="egress.downloads")

EVERYTHING = EgressPolicy.parse(["0.0.0.0/0", "::/0"], setting="egress.downloads")

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.0.1",
    "172.32.0.1",
    "192.0.1.1",
    "192.31.196.1",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:81b::200e",
    "2620:fe::fe",
    "2001:4860:4860::8888",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.7",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "169.254.1.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "233.252.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:127.0.0.1",
    "::ffff:0:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:7",
    "64:ff9b:1::",
    "64:ff9b:1::808:808",
    "100::1",
    "100:0:0:1::1",
    "2001::1",
    "2001:0:808:808:0:0:f7f7:f7f7",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "2a00:1450:4001:81b:0:5efe:10.0.0.1",
    "2a00:1450:4001:81b:200:5efe:127.0.0.1",
    "fe80::1%eth0",
    "::1%lo",
    "2606:4700:4700::1111%1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    PUBLIC_ONLY.check("origin.test", address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
@pytest.mark.row("H2")
def test_everything_else_is_refused(address: str) -> None:
    with pytest.raises(EgressRefused, match="address not allowed"):
        PUBLIC_ONLY.check("origin.test", address)


@pytest.mark.parametrize("address", sorted(map(str, METADATA)))
@pytest.mark.row("H3")
def test_metadata_is_refused_even_under_wide_ranges(address: str) -> None:
    wide = EgressPolicy.parse(
        ["0.0.0.0/0", "::/0", "169.254.0.0/16", "fd00::/8", "evil.test", "*.evil.test"],
        setting="egress.downloads",
    )
    for policy in (PUBLIC_ONLY, wide, EVERYTHING):
        for host in (address, "evil.test", "a.evil.test"):
            with pytest.raises(EgressRefused, match=r"that very address to egress\.downloads\.allow"):
                policy.check(host, address)


def test_an_address_of_this_machine_passes_when_allowed_only() -> None:
    own = ipaddress.ip_address("93.184.216.34")
    for address in ("93.184.216.34", "::ffff:93.184.216.34", "64:ff9b::93.184.216.34"):
        with pytest.raises(
            EgressRefused, match=r"this machine's own; to permit it .*egress\.downloads\.allow"
        ):
            PUBLIC_ONLY.check("me.test", address, is_own=own.__eq__)
        for entry in ("93.184.216.34", "93.184.0.0/16", "me.test"):
            policy = EgressPolicy.parse([entry], setting="egress.downloads")
            policy.check("me.test", address, is_own=own.__eq__)
    PUBLIC_ONLY.check("me.test", "93.184.216.35", is_own=own.__eq__)


@pytest.mark.parametrize(
    "address",
    [
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "64:ff9b:1:a9fe:a9:fe00::",
        "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::1",
        "2001:0:808:808::5601:5601",
        "::169.254.169.254",
        "::ffff:0:169.254.169.254",
        "2a00:1450:4001:81b:0:5efe:169.254.169.254",
        "fd00:ec2::254%eth0",
    ],
)
@pytest.mark.row("H3")
def test_metadata_is_refused_in_disguise_too(address: str) -> None:
    with pytest.raises(EgressRefused, match="metadata"):
        EVERYTHING.check("evil.test", address)


@pytest.mark.parametrize("entry", ["169.254.169.254", "169.254.169.254/32", "::ffff:169.254.169.254"])
def test_metadata_passes_when_named_itself(entry: str) -> None:
    policy = EgressPolicy.parse([entry], setting="egress.downloads")
    policy.check("169.254.169.254", "169.254.169.254")
    policy.check("metadata.google.internal", "::ffff:169.254.169.254")
    with pytest.raises(EgressRefused):
        policy.check("x.test", "169.254.169.253")


def test_metadata_over_ipv6_passes_when_named_itself() -> None:
    EgressPolicy.parse(["fd00:ec2::254/128"], setting="egress").check("x.test", "fd00:ec2::254")


def test_refusal_names_address_host_and_setting() -> None:
    with pytest.raises(EgressRefused) as caught:
        PUBLIC_ONLY.check("media.internal", "10.0.0.7")
    assert str(caught.value) == (
        "address not allowed: 10.0.0.7 (media.internal); to permit it add it to egress.downloads.allow"
    )
    with pytest.raises(EgressRefused, match=r"^address not allowed: 10.0.0.7; to permit"):
        PUBLIC_ONLY.check("10.0.0.7", "10.0.0.7")


@pytest.mark.parametrize(
    ("allow", "host", "address"),
    [
        ("10.0.0.0/8", "x.test", "10.1.2.3"),
        ("10.0.0.0/8", "x.test", "::ffff:10.1.2.3"),
        ("10.0.0.0/8", "x.test", "64:ff9b::a01:203"),
        ("::ffff:10.0.0.0/104", "x.test", "10.1.2.3"),
        ("10.1.2.3", "x.test", "10.1.2.3"),
        ("fd00::/8", "x.test", "fd12::1"),
        ("[::1]", "localhost", "::1"),
        ("fe80::/10", "x.test", "fe80::1%eth0"),
        ("2002::/16", "x.test", "2002:a00:1::"),
        ("media.internal", "media.internal", "10.1.2.3"),
        ("Media.Internal.", "media.internal", "fd12::1"),
        ("*.internal", "a.b.internal", "127.0.0.1"),
        ("bücher.example", "xn--bcher-kva.example", "10.1.2.3"),
        ("my_host", "my_host", "10.1.2.3"),
    ],
)
def test_allow_permits(allow: str, host: str, address: str) -> None:
    with pytest.raises(EgressRefused):
        PUBLIC_ONLY.check(host, address)
    EgressPolicy.parse([allow], setting="egress").check(host, address)


@pytest.mark.parametrize(
    ("allow", "host", "address"),
    [
        ("10.0.0.0/8", "x.test", "11.0.0.1".replace("11", "127")),
        ("media.internal", "evil.test", "10.1.2.3"),
        ("media.internal", "a.media.internal", "10.1.2.3"),
        ("*.internal", "internal", "10.1.2.3"),
        ("*.internal", "evilinternal", "10.1.2.3"),
        ("10.0.0.0/8", "x.test", "2002:a00:1::"),
        ("::/0", "x.test", "10.1.2.3"),
        ("::/0", "x.test", "::ffff:10.1.2.3"),
    ],
)
def test_allow_permits_nothing_else(allow: str, host: str, address: str) -> None:
    with pytest.raises(EgressRefused):
        EgressPolicy.parse([allow], setting="egress").check(host, address)


@pytest.mark.parametrize(
    ("deny", "host", "address"),
    [
        ("8.8.8.0/24", "x.test", "8.8.8.8"),
        ("8.8.8.8", "x.test", "::ffff:8.8.8.8"),
        ("8.8.8.8", "x.test", "64:ff9b::808:808"),
        ("10.9.0.0/16", "x.test", "10.9.0.1"),
        ("bad.test", "bad.test", "1.1.1.1"),
        ("*.bad.test", "a.bad.test", "1.1.1.1"),
        ("2606::/16", "x.test", "2606:4700::1"),
    ],
)
def test_deny_wins_over_allow_and_over_being_public(deny: str, host: str, address: str) -> None:
    policy = EgressPolicy.parse(["0.0.0.0/0", "::/0", host], [deny], setting="egress.callbacks")
    with pytest.raises(EgressRefused, match=r"listed in egress\.callbacks\.deny"):
        policy.check(host, address)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "10.0.0.0/33",
        "10.0.0.7/8",
        "999.1.1.1",
        "http://x.test/",
        "x.test:80",
        "a..b",
        "*",
        "*.",
        "a*b.test",
        "fe80::1%eth0",
        "1.2.3",
        "0x7f000001",
        "-a.test",
        "x" * 64,
        "a b",
        "::ffff:10.0.0.0/90/3",
        "a.*.test",
    ],
)
@pytest.mark.parametrize("where", ["allow", "deny"])
def test_a_bad_entry_is_named(entry: str, where: str) -> None:
    lists = {"allow": ["10.0.0.0/8"], "deny": ["x.test"]}
    lists[where].append(entry)
    with pytest.raises(ValueError, match=rf"^egress\.downloads\.{where}: ") as caught:
        EgressPolicy.parse(**lists, setting="egress.downloads")
    assert repr(entry) in str(caught.value)


def test_everything_allows_private_addresses() -> None:
    for address in ("127.0.0.1", "::1", "10.0.0.1", "fd12::1", "fe80::1%eth0", "8.8.8.8"):
        EVERYTHING.check("x.test", address)


def test_a_denied_name_is_refused_before_any_look_up() -> None:
    policy = EgressPolicy.parse(deny=["bad.test"], setting="egress.downloads")
    with pytest.raises(EgressRefused):
        policy.check_name("bad.test")
    policy.check_name("good.test")


@pytest.mark.parametrize(
    ("host", "allow", "allowed"),
    [
        ("10.0.0.1", [], False),
        ("10.0.0.1", ["10.0.0.0/8"], True),
        ("8.8.8.8", [], True),
        ("::ffff:127.0.0.1", [], False),
        ("localhost", [], False),
        ("localhost.", [], False),
        ("a.localhost", [], False),
        ("localhost", ["localhost"], True),
        ("localhost", ["127.0.0.1"], True),
        ("localhost", ["::1"], True),
        ("localhost", ["10.0.0.0/8"], False),
        ("bad.test", [], False),
        ("bad.test", ["bad.test"], False),
        ("intranet", [], True),  # whatever it resolves to is judged then
        ("good.test", [], True),
    ],
)
def test_hosts_judged_without_a_look_up(host: str, allow: list[str], *, allowed: bool) -> None:
    policy = EgressPolicy.parse(allow, ["bad.test"], setting="egress.callbacks")
    with nullcontext() if allowed else pytest.raises(EgressRefused):
        policy.check_host(host)


@pytest.mark.parametrize("name", ["localhost", "a.localhost", "printer.local", "media.internal", "intranet"])
def test_names_of_private_networks(name: str) -> None:
    assert is_local_name(name)


def test_public_names_are_not_local() -> None:
    assert not is_local_name("local.example.org")
    assert not is_local_name("notlocal.test")


_BAD_V4 = st.sampled_from(
    [ipaddress.ip_network(a) for a in ("10.0.0.0/8", "127.0.0.0/8", "192.168.0.0/16")]
).flatmap(lambda net: st.integers(0, net.num_addresses - 1).map(lambda i: int(net[i]))) | st.sampled_from(
    [int(IPv4Address(a)) for a in NOT_PUBLIC if ":" not in a]
)


def _spellings(v4: int) -> list[str]:
    a, b, c, d = v4.to_bytes(4, "big")
    return [
        f"{a}.{b}.{c}.{d}",
        str(v4),
        hex(v4),
        f"0{v4:o}",
        f"{a}.{v4 & 0xFFFFFF}",
        f"{a}.{b}.{v4 & 0xFFFF}",
        f"0x{a:x}.0{b:o}.{c}.{d}",
        f"::ffff:{a}.{b}.{c}.{d}",
        f"::ffff:{v4 >> 16:x}:{v4 & 0xFFFF:x}",
        f"::{a}.{b}.{c}.{d}",
        f"::ffff:0:{a}.{b}.{c}.{d}",
        f"64:ff9b::{a}.{b}.{c}.{d}",
        f"64:ff9b:1::{a}.{b}.{c}.{d}",
        str(IPv6Address((0x0064FF9B0001 << 80) | (v4 >> 16) << 64 | (v4 & 0xFFFF) << 40)),
        str(IPv6Address((0x2002 << 112) | v4 << 80 | 1)),
        str(IPv6Address((0x20010000 << 96) | v4 << 64 | 1)),
        str(IPv6Address((0x20010000 << 96) | (v4 ^ 0xFFFFFFFF))),
        f"2a00:1450::5efe:{a}.{b}.{c}.{d}",
        f"2a00:1450::200:5efe:{a}.{b}.{c}.{d}",
    ]


@given(_BAD_V4)
@pytest.mark.row("H1")
def test_no_spelling_of_a_private_ipv4_address_passes(v4: int) -> None:
    for text in _spellings(v4):
        literal = parse_address(text if ":" in text else normal_host(text))
        assert literal is not None, text
        with pytest.raises(EgressRefused):
            PUBLIC_ONLY.check(text, literal)


@given(st.integers(0, 2**128 - 1) | st.integers(0x2000 << 112, (0x4000 << 112) - 1))
def test_accepted_addresses_are_global_for_the_standard_library(number: int) -> None:
    address = IPv6Address(number)
    try:
        PUBLIC_ONLY.check("x.test", address)
    except EgressRefused:
        return
    assert address.is_global or address in ipaddress.ip_network("64:ff9b::/96")


@given(st.integers(0, 2**32 - 1))
def test_public_ipv4_agrees_with_the_standard_library(number: int) -> None:
    address = IPv4Address(number)
    try:
        PUBLIC_ONLY.check("x.test", address)
    except EgressRefused:
        assert not address.is_global or address.is_multicast or address in METADATA
    else:
        assert address.is_global
        assert not address.is_multicast
