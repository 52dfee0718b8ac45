"""TCP ports for servers that must know the port before the start, or keep the port over a restart."""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""What the kernel gives to who asks for port 0, and to outgoing connections."""

LOWEST = 10_000
"""Ports below belong to services of the machine."""

_numbers = itertools.count(os.getpid() * 14_071)
"""Ports are given in this order and only once, so that nobody gets the port of a server that will be started
again. From one process id to the next, the step is the golden section of the usual number of ports, so test
runs that begin together take ports that are far apart."""


def spare_port() -> int:
    """A port of loopback without a listener, which the kernel gives only to a process that names the port.

    So it stays free until its server is started, and again; one that is never used refuses connections.
    """
    return spare_ports(1)[0]


def spare_ports(count: int) -> list[int]:
    """Several such ports, no two the same."""
    highest = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else 32_768
    found: list[int] = []
    while len(found) < count:
        port = LOWEST + next(_numbers) % (highest - LOWEST)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
    return found
