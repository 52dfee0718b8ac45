"""The host that the suites give to plugins."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from downloader.net import EgressPolicy, guarded_client, open_transport, tls_context
from downloader.notify import Host
from downloader.storage import open_storage

_LOOPBACK = ("127.0.0.0/8", "::1", "localhost")


@asynccontextmanager
async def open_host() -> AsyncIterator[Host]:
    """A `Host` like the service's: its client may connect to loopback, its storage is a temporary folder."""
    policy = EgressPolicy.parse(_LOOPBACK, setting="egress.callbacks")
    with tempfile.TemporaryDirectory(prefix="downloader-contract-") as folder:
        async with (
            open_transport(policy, tls=tls_context()) as transport,
            open_storage("filesystem", {"rootdir": folder, "fsync": False}) as storage,
        ):
            yield Host(client=guarded_client(transport), transport=transport, storage=storage)
