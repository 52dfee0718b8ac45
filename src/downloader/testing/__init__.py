"""Contract suites: what the service relies on in a plugin, as tests that any plugin can inherit.

A plugin's test module has a subclass whose name pytest collects, and a *peer*: what the suite has to know of
the plugin and of the server that it talks to. `docs/plugins.md` shows both.

Each test is a plain method without fixtures that calls `trio.run` by itself, with the asyncio loop of
trio-asyncio open around it as in the service: nothing but a collector of `test_` methods is needed, and
pytest-trio does not mind.
This package does not import pytest.
"""

from __future__ import annotations

from downloader.testing.deliveries import NotifierPeer
from downloader.testing.gate import Fault, Gate, open_gate
from downloader.testing.host import open_host
from downloader.testing.notifier import NotifierContract
from downloader.testing.puts import StoragePeer
from downloader.testing.storage import StorageContract

__all__ = [
    "Fault",
    "Gate",
    "NotifierContract",
    "NotifierPeer",
    "StorageContract",
    "StoragePeer",
    "open_gate",
    "open_host",
]
