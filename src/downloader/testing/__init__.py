"""Contract suites: tests of what the service requires of a plugin, for plugins to inherit.

A plugin's test module has a subclass whose name pytest collects, and a *peer*, which tells the suite how to
open the plugin and how to control its server. `docs/write-a-plugin.md` shows both.

Each test is a plain method without fixtures. It calls `trio.run` itself, inside the asyncio loop of
trio-asyncio, as the service does. So any runner that collects `test_` methods can run it, with or without
pytest-trio. This package does not import pytest.
"""

from __future__ import annotations

from downloader.testing.contract import open_host
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
