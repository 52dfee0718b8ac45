"""The operator's egress policy for callbacks, on its way to the plugins.

A factory gets nothing but its section, so the policy travels in a context variable: the service sets it
around opening the backends, and a plugin asks for its backend while it is being opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import httpcore2

from downloader.net import EgressPolicy, GuardedBackend

_policy: ContextVar[EgressPolicy | None] = ContextVar("downloader.notify.egress", default=None)


@contextmanager
def use_egress(policy: EgressPolicy) -> Iterator[None]:
    """For whoever opens plugins: within, `network_backend` answers backends under this policy."""
    token = _policy.set(policy)
    try:
        yield
    finally:
        _policy.reset(token)


def network_backend(
    *, tls_timeout_s: float | None = None, max_read_bytes: int | None = None
) -> httpcore2.AsyncNetworkBackend:
    """The way out for a plugin that connects to destinations of clients' choice.

    Call it while the plugin is being opened and keep the answer: it carries the operator's
    `egress.callbacks` (public addresses only, where nobody has set any). Give it to httpcore2's pools
    as `network_backend`, or call its `connect_tcp`. Besides httpcore2's exceptions it raises
    `EgressRefused`, `NameNotResolved` and `TlsFailed`, which httpcore2 passes on unchanged.

    Args:
        tls_timeout_s: for the TLS handshake alone; `None`: the timeout of the connect.
        max_read_bytes: what a single read takes at most.
    """
    policy = _policy.get()
    if policy is None:
        policy = EgressPolicy.parse(setting="egress.callbacks")
    return GuardedBackend(policy, tls_timeout_s=tls_timeout_s, max_read_bytes=max_read_bytes)
