"""A consumer of a topic that prints when each record came, and what, in the form of `bench.sink`.

`python -m bench.kafka_sink SERVERS TOPIC` prints 0 when it reads, then a line a record; ends with its input.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

_POLL_S = 0.05

_MOST = 1000
"""Records taken at once; fewer after `_POLL_S`."""


def run(servers: str, topic: str) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "bench",
            "allow.auto.create.topics": True,
            "fetch.wait.max.ms": 20,
        }
    )
    partitions = consumer.list_topics(topic).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    print(0, flush=True)
    while True:
        messages = consumer.consume(_MOST, _POLL_S)
        now = time.monotonic_ns()
        lines = [
            b"%d %b\n" % (now, message.value() or b"") for message in messages if message.error() is None
        ]
        if lines:
            sys.stdout.buffer.write(b"".join(lines))
            sys.stdout.buffer.flush()


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    threading.Thread(target=_end_with_input, daemon=True).start()
    run(*sys.argv[1:3])


if __name__ == "__main__":
    main()
