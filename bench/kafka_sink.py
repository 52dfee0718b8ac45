"""A consumer of a topic that prints when each record came, and what, in the form of `bench.sink`.

`python -m bench.kafka_sink SERVERS TOPIC` prints 0 when it reads, then a line a record; ends with its input.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time

from aiokafka import AIOKafkaConsumer, TopicPartition

_POLL_MS = 200


async def run(servers: str, topic: str) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    async with consumer:
        await consumer._client._wait_on_metadata(topic)  # noqa: SLF001 - makes the topic, which assigning does not
        partitions = consumer.partitions_for_topic(topic)
        assert partitions is not None
        consumer.assign([TopicPartition(topic, number) for number in partitions])
        print(0, flush=True)
        while True:
            found = await consumer.getmany(timeout_ms=_POLL_MS)
            now = time.monotonic_ns()
            lines = [b"%d %b\n" % (now, record.value) for records in found.values() for record in records]
            if lines:
                sys.stdout.buffer.write(b"".join(lines))
                sys.stdout.buffer.flush()


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    threading.Thread(target=_end_with_input, daemon=True).start()
    asyncio.run(run(*sys.argv[1:3]))


if __name__ == "__main__":
    main()
