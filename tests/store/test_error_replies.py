"""Which error replies of a server are temporary, and which are permanent."""

from __future__ import annotations

import pytest
from redis._parsers.base import BaseParser

from downloader.errors import StoreRefused, StoreUnavailable
from downloader.store.servers import as_store_error


def parsed(reply: str) -> Exception:
    """The exception that redis-py raises for this reply."""
    error: Exception = BaseParser.parse_error(reply)  # type: ignore[no-untyped-call]
    return error


@pytest.mark.row("F11", "F12", "F22")
@pytest.mark.parametrize(
    "reply",
    [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "READONLY You can't write against a read only replica.",
        "LOADING Valkey is loading the dataset in memory",
        "MISCONF Errors writing to the AOF file",
        "NOREPLICAS Not enough good replicas to write.",
        "MASTERDOWN Link with MASTER is down",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "ASK 3999 127.0.0.1:6381",
        "BUSY Valkey is busy running a script.",
    ],
)
def test_temporary_errors_are_unavailability(reply: str) -> None:
    assert isinstance(as_store_error(parsed(reply)), StoreUnavailable)


@pytest.mark.row("F12")
@pytest.mark.parametrize(
    "reply",
    [
        "WRONGPASS invalid username-password pair",
        "NOAUTH Authentication required.",
        "NOPERM No permissions to run the 'fcall' command",
        "ERR unknown command 'FCALL'",
    ],
)
def test_permanent_errors_are_refusals(reply: str) -> None:
    assert isinstance(as_store_error(parsed(reply)), StoreRefused)
