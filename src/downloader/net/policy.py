"""The egress policy: which addresses the service may connect to. Pure decisions, no I/O.

The decision uses the tables of this module, because `ipaddress.is_global` accepts NAT64, multicast,
`fec0::/10` and `::127.0.0.1`, and differs between Python 3.11 and 3.13. The tables follow the IANA
special-purpose registries (RFC 6890 and updates).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

from downloader.net.errors import EgressRefused
from downloader.net.url import UrlError, normal_host

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # "this network"; 0.0.0.0 reaches the own machine
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, with most metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated by RFC 7526
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, with the broadcast address
    )
)

_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
"""All addresses that IANA has ever assigned; all other addresses are special or unassigned."""

_NOT_PUBLIC_V6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: leads to whatever IPv4 address is embedded
        "3fff::/20",  # documentation
    )
)

_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
"""The well-known prefix (RFC 6052), which DNS64 uses for public IPv4 hosts on IPv6-only networks."""
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_COMPATIBLE = IPv6Network("::/96")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_ISATAP_IDS = frozenset({0x00005EFE, 0x02005EFE})
"""The middle 32 bits of an address that carries an IPv4 address for ISATAP (RFC 5214)."""

METADATA = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # most clouds
        "fd00:ec2::254",  # AWS
        "169.254.170.2",  # AWS ECS task credentials
        "169.254.170.23",  # AWS EKS pod identity
        "fd00:ec2::23",  # AWS EKS pod identity
        "fd20:ce::254",  # Google Cloud
        "168.63.129.16",  # Azure's wire server; a public address by number
        "100.100.100.200",  # Alibaba Cloud
        "192.0.0.192",  # Oracle Cloud
        "fd00:c1::a9fe:a9fe",  # Oracle Cloud
        "169.254.42.42",  # Scaleway
        "fd00:42::42",  # Scaleway
        "169.254.0.23",  # Tencent Cloud
        "100.96.0.96",  # Volcano Engine
        "fe80::a9fe:a9fe",  # OpenStack
    )
)
"""Services that give credentials to any client; only permitted by an entry with exactly this address."""

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".localdomain", ".home.arpa")
"""Names that never belong to a public host (RFC 6761, 6762, 8375, and ICANN's reservation of `internal`)."""


def parse_address(host: str) -> Address | None:
    """The address in a text; `None` for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_local_name(host: str) -> bool:
    """Whether a name only exists inside private networks, for example a single label."""
    return "." not in host or f".{host}".endswith(_LOCAL_SUFFIXES)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """The addresses and hosts that the operator permits; by default globally routable unicast addresses."""

    setting: str
    """The configuration table that refusals name, such as `egress.downloads`."""
    allow_networks: tuple[Network, ...] = ()
    deny_networks: tuple[Network, ...] = ()
    allow_hosts: frozenset[str] = frozenset()
    """Normalised names; `*.example.org` stands for all names below `example.org`, without `example.org`."""
    deny_hosts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, allow: Iterable[str] = (), deny: Iterable[str] = (), *, setting: str) -> Self:
        """Read two lists, with CIDR ranges, addresses, host names and domains with `*.`.

        Raises:
            ValueError: an entry is malformed; the text names the entry and the list.
        """
        allow_networks, allow_hosts = _parse_entries(allow, f"{setting}.allow")
        deny_networks, deny_hosts = _parse_entries(deny, f"{setting}.deny")
        return cls(setting, allow_networks, deny_networks, allow_hosts, deny_hosts)

    def check(
        self, host: str, address: str | Address, *, is_own: Callable[[Address], bool] = lambda _: False
    ) -> None:
        """Accept or refuse an address of `host`. `deny` wins over `allow`.

        `host` is the host of a URL, without the final dot. `address` may have a zone id. `is_own` says
        whether a public address belongs to this machine, which is treated like loopback.

        Raises:
            EgressRefused: the policy forbids the address; the text names the setting that would permit it.
        """
        parsed = ip_address(address) if isinstance(address, str) else address
        shown = str(parsed)
        if host not in ("", shown):
            shown = f"{shown} ({host})"
        self.check_name(host)
        zoned = isinstance(parsed, IPv6Address) and parsed.scope_id is not None
        plain = _effective(parsed)
        inner = _embedded(plain)
        addresses = (plain, *inner)
        if _any_in(addresses, self.deny_networks):
            raise EgressRefused(f"address not allowed: {shown}; it is listed in {self.setting}.deny")
        if not METADATA.isdisjoint(addresses):
            if not any(_names_exactly(network, addresses) for network in self.allow_networks):
                raise EgressRefused(
                    f"address not allowed: {shown} is a metadata service; to permit it add"
                    f" that very address to {self.setting}.allow"
                )
            return
        # A translator (NAT64) connects to the inner address, so the inner address decides.
        final = inner[0] if plain in _NAT64 else plain
        if _any_in((plain, final), self.allow_networks) or host_matches(host, self.allow_hosts):
            return
        if zoned or not _is_public(final):
            raise EgressRefused(f"address not allowed: {shown}; to permit it add it to {self.setting}.allow")
        if is_own(final):
            raise EgressRefused(
                f"address not allowed: {shown} is this machine's own;"
                f" to permit it add it to {self.setting}.allow"
            )

    def check_host(self, host: str) -> None:
        """Refuse a URL's host without a look-up: an address, `localhost`, a name listed in `deny`.

        The addresses of other names are checked when a connection is made.

        Raises:
            EgressRefused: the policy forbids the host.
        """
        host = host.removesuffix(".")
        self.check_name(host)
        if address := parse_address(host):
            self.check(host, address)
        elif host == "localhost" or host.endswith(".localhost"):  # always loopback (RFC 6761, 6.3)
            with suppress(EgressRefused):
                return self.check(host, "::1")
            self.check(host, "127.0.0.1")
        return None

    def check_name(self, host: str) -> None:
        """Refuse a host that is denied by name, before a look-up; `host` as for `check`.

        Raises:
            EgressRefused: the name is listed in `deny`.
        """
        if self.deny_hosts and host_matches(host, self.deny_hosts):
            raise EgressRefused(f"address not allowed: {host}; it is listed in {self.setting}.deny")

    def allows_name(self, host: str) -> bool:
        """Whether `allow` lists a host by name."""
        return host_matches(host, self.allow_hosts)


def _parse_entries(entries: Iterable[str], where: str) -> tuple[tuple[Network, ...], frozenset[str]]:
    networks: list[Network] = []
    hosts: set[str] = set()
    for entry in entries:
        parsed = _parse_entry(entry, where)
        if isinstance(parsed, str):
            hosts.add(parsed)
        else:
            networks.append(parsed)
    return tuple(networks), frozenset(hosts)


def _parse_entry(entry: str, where: str) -> Network | str:
    text = entry.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        return _parse_network(text)
    except ValueError as exc:
        if "/" in text or ":" in text:
            raise ValueError(
                f"{where}: {entry!r} is not a CIDR range, an address or a host name: {exc}"
            ) from exc
    try:
        name = normal_host(text.removeprefix("*.")).removesuffix(".")
    except UrlError:
        name = ""
    if not name or parse_address(name):  # an address in an unusual spelling is probably a mistake
        raise ValueError(f"{where}: {entry!r} is not a CIDR range, an address or a host name")
    return f"*.{name}" if text.startswith("*.") else name


def _parse_network(text: str) -> Network:
    if "%" in text:
        raise ValueError("a zone id has no meaning here")
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        # A connection to a mapped address goes to the IPv4 address, so the IPv4 range decides.
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _effective(address: Address) -> Address:
    """The address without zone id; for an IPv4-mapped address the IPv4 address."""
    if isinstance(address, IPv4Address):
        return address
    plain = IPv6Address(int(address))
    return IPv4Address(int(plain) & 0xFFFFFFFF) if plain in _MAPPED else plain


def _embedded(address: Address) -> tuple[IPv4Address, ...]:
    """The embedded IPv4 addresses to which a translator or tunnel might forward packets for `address`."""
    if isinstance(address, IPv4Address):
        return ()
    number = int(address)
    low = IPv4Address(number & 0xFFFFFFFF)
    if address in _SIX_TO_FOUR:
        return (IPv4Address(number >> 80 & 0xFFFFFFFF),)
    if address in _TEREDO:
        return IPv4Address(~number & 0xFFFFFFFF), IPv4Address(number >> 64 & 0xFFFFFFFF)
    if address in _NAT64_LOCAL:
        # RFC 6052, 2.2: after a prefix of 48 bits, eight zero bits separate the halves of the IPv4 address.
        split = (number >> 64 & 0xFFFF) << 16 | number >> 40 & 0xFFFF
        return low, IPv4Address(split)
    carried = any(address in network for network in (_NAT64, _COMPATIBLE, _TRANSLATED))
    return (low,) if carried or number >> 32 & 0xFFFFFFFF in _ISATAP_IDS else ()


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not _any_in((address,), _NOT_PUBLIC_V4)
    if address not in _GLOBAL_UNICAST_V6 or _any_in((address,), _NOT_PUBLIC_V6):
        return False
    return all(_is_public(inner) for inner in _embedded(address))


def _any_in(addresses: Iterable[Address], networks: Sequence[Network]) -> bool:
    return any(
        address.version == network.version and address in network
        for address in addresses
        for network in networks
    )


def _names_exactly(network: Network, addresses: Iterable[Address]) -> bool:
    return network.num_addresses == 1 and network.network_address in addresses


def host_matches(host: str, names: frozenset[str]) -> bool:
    """Whether `names` contains the host; `*.example.org` stands for all names below `example.org`."""
    if host in names:
        return True
    labels = host.split(".")
    return any("*." + ".".join(labels[start:]) in names for start in range(1, len(labels)))
