"""Many records to one topic: through the service's notifier, or through the producer below it alone.

`python -m bench.kafka_load notifier|producer SERVERS TOPIC COUNT CONCURRENCY` prints one JSON object:
`first_ns`, `last_ns` (CLOCK_MONOTONIC), `cpu_s`, `failed`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio
from aiokafka import AIOKafkaProducer

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
    """The floor: aiokafka as its documentation has it, on asyncio's own loop."""
    numbers = iter(range(count))
    async with AIOKafkaProducer(bootstrap_servers=servers, acks="all", max_batch_size=2**17) as kafka:
        await kafka.send_and_wait(topic, BODY, key=b"first")

        async def work() -> None:
            for number in numbers:
                await kafka.send_and_wait(topic, BODY, key=f"{number:014}".encode())

        clock.start()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        clock.stop()
    return 0


def main() -> None:
    kind, servers, topic, count, concurrency = sys.argv[1:6]
    clock = _Clock()
    load: Callable[..., Awaitable[int]] = notifier if kind == "notifier" else producer

    async def run() -> int:
        return await load(servers, topic, int(count), int(concurrency), clock)

    failed = trio.run(run) if kind == "notifier" else asyncio.run(run())
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
