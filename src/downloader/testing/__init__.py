"""Contract suites: what the service relies on in a plugin, as tests that any plugin can inherit.

A plugin's test module has a subclass whose name pytest collects, and a *peer*: what the suite has to know of
the plugin and of the server that it talks to. `docs/plugins.md` shows both.

Each test is a plain method without fixtures that calls `trio.run` by itself, with the asyncio loop of
trio-asyncio open around it as in the service: nothing but a collector of `test_` methods is needed, and
pytest-trio does not mind.
This package does not import pytest.
"""

from __future__ import annotations

from downloader.testing.host import open_host
from downloader.testing.notifier import NotifierContract
from downloader.testing.notifier_peer import NotifierPeer
from downloader.testing.storage import StorageContract
from downloader.testing.storage_peer import StoragePeer
from downloader.testing.tcp_proxy import Fault, TcpProxy, open_tcp_proxy

__all__ = [
    "Fault",
    "NotifierContract",
    "NotifierPeer",
    "StorageContract",
    "StoragePeer",
    "TcpProxy",
    "open_host",
    "open_tcp_proxy",
]
