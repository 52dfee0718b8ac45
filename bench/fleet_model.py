"""A model of many processors on one store: lease calls and the store's CPU, by measured costs of the scripts.

`python -m bench.fleet_model` prints the table of `docs/design/fleet.md`. No server is used.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass

LEASE_S, LEASE_TASK_S, IDLE_LEASE_S = 81e-6, 27e-6, 33e-6
"""The store's time for a lease call, for each task in it, and for a call that finds nothing."""
OTHER_S = 80e-6
"""The store's time for the rest of a job: submission, finish, callback and deletion, all in batches."""
DELIVERY_S = 0.0005
"""From a message to the call that follows it, and from a call to the answer."""
LINGER_S = 0.005
"""How long a busy instance lets a call wait for company (`scheduler.loop.STEADY_LINGER_S`)."""
BATCH = 64
RECORD_BYTES, KEPT_S = 400, 3 * 3600
"""Of an ended job in the store, at the most."""
DELETED_PER_S = 266
"""Files that one notifier deletes from S3: eight at once, 30 ms each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a fleet costs its store."""

    calls_per_job: float
    store_cores: float
    memory_gb: float
    notifiers: float
    """How many must run to delete as many files from S3 as come."""


def load(processors: int, per_s: float, *, seconds: float = 2.0, seed: int = 1) -> Load:
    """Simulate wake-ups and lease calls as `lua/_wake.lua` has them, of processors that always have room."""
    rng = random.Random(seed)  # no secret
    idle = deque(range(processors))
    ready = jobs = calls = 0
    busy_s = 0.0
    linger_s = LINGER_S if per_s / processors > 1 else 0.0
    # Times at which a job comes (-1) or a processor's lease call reaches the store.
    events = [(rng.expovariate(per_s), -1)]
    while events[0][0] < seconds:
        now, who = heapq.heappop(events)
        if who < 0:
            jobs, ready = jobs + 1, ready + 1
            heapq.heappush(events, (now + rng.expovariate(per_s), -1))
            leaves_more = True
        else:
            calls += 1
            taken = min(ready, BATCH)
            ready -= taken
            busy_s += LEASE_S + taken * LEASE_TASK_S if taken else IDLE_LEASE_S
            leaves_more = ready > 0 and taken > 0
            if taken == BATCH:
                heapq.heappush(events, (now + 2 * DELIVERY_S, who))
            else:
                idle.append(who)
        if leaves_more and idle:
            heapq.heappush(events, (now + DELIVERY_S + linger_s, idle.popleft()))
    return Load(
        calls_per_job=calls / jobs,
        store_cores=busy_s / seconds + per_s * OTHER_S,
        memory_gb=per_s * KEPT_S * RECORD_BYTES / 1e9,
        notifiers=per_s / DELETED_PER_S,
    )


def main() -> None:
    """Print a row for each fleet."""
    print(
        "| processors | jobs a second | lease calls a job | store, cores | records, GB | notifiers for S3 |"
    )
    print("|---|---|---|---|---|---|")
    for processors, per_s in (
        (1, 100),
        (20, 100),
        (100, 100),
        (20, 1000),
        (100, 1000),
        (20, 10_000),
        (100, 10_000),
    ):
        row = load(processors, per_s)
        costs = f"{row.calls_per_job:.2f} | {row.store_cores:.2f} | {row.memory_gb:.1f} | {row.notifiers:.1f}"
        print(f"| {processors} | {per_s} | {costs} |")


if __name__ == "__main__":
    main()
