"""TCP ports for servers that must be told theirs before they start, or keep it over a restart."""

from __future__ import annotations

import random
import socket
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""What the kernel gives to who asks for port 0, and to outgoing connections."""

LOWEST = 10_000
"""Below it are the ports that services of the machine have by custom."""


def spare_port() -> int:
    """A port of loopback that nobody listens on, and that the kernel gives to nobody who has not named it.

    So it stays free until its server is started, and again; one that is never used refuses connections.
    """
    return spare_ports(1)[0]


def spare_ports(count: int) -> list[int]:
    """Several such ports, no two the same."""
    highest = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else 32_768
    found: list[int] = []
    # By chance, as several test runs may choose at once.
    for port in random.sample(range(LOWEST, highest), highest - LOWEST):
        if len(found) == count:
            break
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
    return found
