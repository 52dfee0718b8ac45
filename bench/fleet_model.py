"""A model of many processors on one store: lease calls and the store's CPU, by measured costs of the scripts.

`python -m bench.fleet_model` prints the table of `docs/design/fleet.md`. No server is used.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass

LEASE_S, LEASE_TASK_S, IDLE_LEASE_S = 81e-6, 27e-6, 33e-6
"""The store's time for a lease call, for each task in it, and for a call that finds nothing."""
OTHER_S = 80e-6
"""The store's time for the rest of a job: submission, finish, callback and deletion, all in batches."""
DELIVERY_S = 0.0005
"""From a message to the call that follows it, and from a call to the answer."""
LINGER_S = 0.005
"""How long a busy instance lets a call wait for company (`scheduler.loop.STEADY_LINGER_S`)."""
LOOK_S, RARE_LOOK_S, BACKUP_S = 5.0, (22.0, 30.0), 1.5
"""When the waiter looks, when an instance without a duty does (at least and at most), and how long after
another the watcher does."""
BATCH = 64
RECORD_BYTES, KEPT_S = 400, 3 * 3600
"""Of an ended job in the store, at the most."""
DELETED_PER_S = 266
"""Files that one notifier deletes from S3: eight at once, 30 ms each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a fleet costs its store."""

    calls_per_s: float
    store_cores: float
    memory_gb: float
    notifiers: float
    """How many must run to delete as many files from S3 as come."""


class _Shard:
    """Processors that always have room, and the wake-ups and looks of one shard as `lua/_wake.lua` has them.

    All processors are idle at the beginning.
    """

    def __init__(self, processors: int, per_s: float, seed: int) -> None:
        self._rng = random.Random(seed)  # no secret
        self._per_s = per_s
        self._linger_s = LINGER_S if per_s / processors > 1 else 0.0
        self._rare_s = [self._rng.uniform(*RARE_LOOK_S) for _ in range(processors)]
        self._idle: dict[int, None] = {}
        """In the order of their last calls."""
        self._call_at = [0.0] * processors
        self._waiter = self._watcher = (-1, -math.inf)
        """Who has the duty, and when it looks."""
        self._events: list[tuple[float, int]] = []
        """Times at which a job comes (-1) or a processor's lease call reaches the store."""
        self._ready = self.calls = 0
        self.busy_s = 0.0
        for processor in range(processors):
            self._note_idle(self._rng.uniform(-RARE_LOOK_S[0], 0.0), processor)
        self._next_job(0.0)

    def run(self, seconds: float) -> None:
        """Simulate so much time more."""
        while self._events and self._events[0][0] < seconds:
            now, processor = heapq.heappop(self._events)
            if processor < 0:
                self._ready += 1
                self._next_job(now)
                self._wake_one(now)
            elif now == self._call_at[processor]:
                self._lease(now, processor)

    def _next_job(self, now: float) -> None:
        if self._per_s:
            heapq.heappush(self._events, (now + self._rng.expovariate(self._per_s), -1))

    def _call(self, processor: int, at: float) -> None:
        """Let the next call of a processor be at that time, and not when it was to be."""
        self._call_at[processor] = at
        heapq.heappush(self._events, (at, processor))

    def _lease(self, now: float, processor: int) -> None:
        self.calls += 1
        taken = min(self._ready, BATCH)
        self._ready -= taken
        self.busy_s += LEASE_S + taken * LEASE_TASK_S if taken else IDLE_LEASE_S
        if taken == BATCH:
            self._call(processor, now + 2 * DELIVERY_S)
        else:
            self._note_idle(now, processor)
        if self._ready and taken:
            self._wake_one(now)

    def _note_idle(self, now: float, processor: int) -> None:
        self._idle.pop(processor, None)
        self._idle[processor] = None
        waiter, waiter_at = self._waiter
        watcher, watcher_at = self._watcher
        if waiter == processor or waiter_at + BACKUP_S <= now:
            self._waiter = processor, now + LOOK_S
            self._call(*self._waiter)
            self._watch(now, processor, now + LOOK_S)
        elif watcher == processor or watcher_at <= now:
            self._watcher = processor, waiter_at + BACKUP_S
            self._call(*self._watcher)
        else:
            self._call(processor, now + self._rare_s[processor])

    def _wake_one(self, now: float) -> None:
        if self._idle:
            processor = next(iter(self._idle))
            del self._idle[processor]
            self._call(processor, now + DELIVERY_S + self._linger_s)
            self._watch(now, processor, now)

    def _watch(self, now: float, looks: int, at: float) -> None:
        """Let another processor look a moment after `looks`, which is to look at `at`."""
        at += BACKUP_S
        watcher, watcher_at = self._watcher
        if watcher == looks or watcher_at <= now:
            watcher = next((processor for processor in reversed(self._idle) if processor != looks), -1)
        elif watcher_at <= at:
            return
        if watcher >= 0:
            self._watcher = watcher, at
            self._call(watcher, at)


def load(processors: int, per_s: float, *, shards: int = 1, seconds: float = 60.0, seed: int = 1) -> Load:
    """Simulate one of the shards over which the jobs of a second are spread."""
    shard = _Shard(processors, per_s / shards, seed)
    shard.run(seconds)
    return Load(
        calls_per_s=shards * shard.calls / seconds,
        store_cores=shards * shard.busy_s / seconds + per_s * OTHER_S,
        memory_gb=per_s * KEPT_S * RECORD_BYTES / 1e9,
        notifiers=per_s / DELETED_PER_S,
    )


def main() -> None:
    """Print a row for each fleet."""
    print(
        "| processors | jobs a second | shards | lease calls a second | a job | store, cores | records, GB "
        "| notifiers for S3 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for processors, per_s, shards in (
        (20, 0, 1),
        (20, 0, 16),
        (100, 0, 16),
        (20, 20, 1),
        (20, 20, 16),
        (100, 20, 16),
        (1, 100, 1),
        (20, 100, 1),
        (100, 100, 1),
        (20, 1000, 1),
        (100, 1000, 1),
        (20, 10_000, 1),
        (100, 10_000, 1),
    ):
        row = load(processors, per_s, shards=shards)
        a_job = f"{row.calls_per_s / per_s:.2f}" if per_s else ""
        print(
            f"| {processors} | {per_s} | {shards} | {row.calls_per_s:.1f} | {a_job} "
            f"| {row.store_cores:.2f} | {row.memory_gb:.1f} | {row.notifiers:.1f} |"
        )


if __name__ == "__main__":
    main()
