"""`MemoryMark`: how much of a server's memory new jobs may take.

A job takes more memory while its callback waits than before its download, and the scripts that end it go on
when the memory is full. So that the server stays below its `maxmemory`, jobs are accepted up to a lower mark.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import trio

from downloader.errors import StoreError
from downloader.observe import Event, get_logger
from downloader.store.client import StoreClient

log = get_logger()

SHARE = 0.4
"""Part of `maxmemory` up to which jobs are accepted. With a URL of 60 characters, a pending job takes 340
bytes, 770 until its callback is delivered, and more if it fails."""

ENDED_BYTES = 380
"""Memory of a job that has ended well. Ended jobs take no more memory, so they may fill the server."""

JOB_BYTES = 160
"""Memory of a pending job besides the JSON: the key, and the place in the queue."""

LOOK_S = 1.0
"""Time between two readings while jobs come."""

LOGGED_S = 60.0
"""Shortest time between two warnings: near the mark, jobs are accepted and refused by turns."""


class MemoryMark:
    """Counts the memory that is left for new jobs, by shard. Without `watch` there is no mark."""

    def __init__(self, client: StoreClient) -> None:
        self._client = client
        self._left: dict[int, float] = {}
        self._asked = trio.Event()
        self._logged_at = -math.inf

    def admits(self, shard: int, job: str) -> bool:
        """Whether a shard has memory for a new job, given as JSON; if so, the memory counts as taken."""
        self._asked.set()
        left = self._left.get(shard, math.inf)
        if left <= 0:
            if trio.current_time() >= self._logged_at + LOGGED_S:
                self._logged_at = trio.current_time()
                log.warning(Event.STORE_FULL, shard=shard)
            return False
        self._left[shard] = left - len(job) - JOB_BYTES
        return True

    def is_full(self) -> bool:
        """Whether a shard has no memory for new jobs, by the last reading."""
        self._asked.set()
        return any(left <= 0 for left in self._left.values())

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the memory of the servers every `LOOK_S` while jobs come, until cancelled."""
        await self._read()
        task_status.started()
        while True:
            await trio.sleep(LOOK_S)
            await self._asked.wait()
            self._asked = trio.Event()
            await self._read()

    async def _read(self) -> None:
        with suppress(StoreError):  # the jobs that come then are refused anyway
            servers = await self._client.ask(range(self._client.keys.shards), self._memory_of)
            ended: Counter[str] = Counter()
            for memory, count in servers.values():
                ended[memory["run_id"]] += count * ENDED_BYTES
            self._left |= {
                shard: _left_on(memory, ended[memory["run_id"]]) for shard, (memory, _) in servers.items()
            }

    async def _memory_of(self, shard: int) -> tuple[Mapping[str, Any], int]:
        """`INFO memory` of a shard's server, and the number of ended jobs in the shard."""
        memory = await self._client.command("INFO", "server", "memory", shard=shard)
        return memory, await self._client.command("HLEN", self._client.keys.key(shard, "ended"), shard=shard)


def _left_on(memory: Mapping[str, Any], ended: int) -> float:
    """Bytes that new jobs may take on a server, where the records of ended jobs take `ended` bytes."""
    if not memory["maxmemory"]:
        return math.inf
    return float((memory["maxmemory"] - ended) * SHARE - (memory["used_memory"] - ended))
