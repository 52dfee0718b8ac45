"""Many records to one topic: through the service's notifier, or through the producer below it alone.

`python -m bench.kafka_load notifier|producer SERVERS TOPIC COUNT CONCURRENCY` prints one JSON object:
`first_ns`, `last_ns` (CLOCK_MONOTONIC), `cpu_s`, `failed`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio
from confluent_kafka import Producer

from downloader.notify import Delivered, Payload
from downloader.testing import open_host
from downloader_plugins.kafka import open_kafka

BODY_BYTES = 450
"""What a callback usually has."""

BODY = b"{%b}" % (b" " * (BODY_BYTES - 2))


@dataclass(slots=True)
class _Clock:
    first_ns: int = 0
    last_ns: int = 0
    cpu_s: float = 0.0

    def start(self) -> None:
        self.first_ns, self.cpu_s = time.monotonic_ns(), time.process_time()

    def stop(self) -> None:
        self.last_ns, self.cpu_s = time.monotonic_ns(), time.process_time() - self.cpu_s


async def notifier(servers: str, topic: str, count: int, concurrency: int, clock: _Clock) -> int:
    """Deliver as the service does; answers how many were not."""
    failed = 0
    numbers = iter(range(count))

    async def deliver(number: int) -> None:
        nonlocal failed
        payload = Payload(job_id=f"{number:014}", aggr_id="bench", body=BODY)
        failed += await kafka.deliver(topic, payload) != Delivered()

    async def work() -> None:
        for number in numbers:
            await deliver(number)

    async with open_host() as host, open_kafka({"bootstrap_servers": servers}, host) as kafka:
        await deliver(count)
        clock.start()
        async with trio.open_nursery() as nursery:
            for _ in range(concurrency):
                nursery.start_soon(work)
        clock.stop()
    return failed


async def producer(servers: str, topic: str, count: int, concurrency: int, clock: _Clock) -> int:
    """The floor: librdkafka as its documentation has it, with so many messages in flight."""
    kafka = Producer({"bootstrap.servers": servers, "acks": "all", "max.in.flight": 1, "linger.ms": 0})
    waiting = failed = 0

    def reported(error: object, _: object) -> None:
        nonlocal waiting, failed
        waiting -= 1
        failed += error is not None

    kafka.produce(topic, BODY, b"first")
    kafka.flush()
    clock.start()
    for number in range(count):
        waiting += 1
        kafka.produce(topic, BODY, f"{number:014}".encode(), on_delivery=reported)
        while waiting >= concurrency:
            kafka.poll(1)
    kafka.flush()
    clock.stop()
    return failed


def main() -> None:
    kind, servers, topic, count, concurrency = sys.argv[1:6]
    clock = _Clock()
    load: Callable[..., Awaitable[int]] = notifier if kind == "notifier" else producer

    async def run() -> int:
        return await load(servers, topic, int(count), int(concurrency), clock)

    failed = trio.run(run)
    print(
        json.dumps(
            {
                "first_ns": clock.first_ns,
                "last_ns": clock.last_ns,
                "cpu_s": clock.cpu_s,
                "failed": failed,
            }
        )
    )


if __name__ == "__main__":
    main()
