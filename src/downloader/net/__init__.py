"""Which addresses this service may connect to on a client's behalf, and the one way to connect to them.

`GuardedBackend` is the `network_backend` of every httpcore2 pool in the project: it resolves a name once,
asks the `EgressPolicy` about every answer, and connects to the very address that was asked about. So
redirects, DNS rebinding and every spelling of an address are covered at one place.
"""

from __future__ import annotations

from downloader.net.dial import GuardedBackend, check_target
from downloader.net.policy import EgressPolicy, EgressRefused
from downloader.net.resolve import NameNotResolved, Resolver, SystemResolver
from downloader.net.stream import GuardedStream, TlsFailed

__all__ = [
    "EgressPolicy",
    "EgressRefused",
    "GuardedBackend",
    "GuardedStream",
    "NameNotResolved",
    "Resolver",
    "SystemResolver",
    "TlsFailed",
    "check_target",
]
