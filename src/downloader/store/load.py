"""What `busiest` answers, shard by shard, becomes a `Load`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from downloader.store.job_store import AggregationLoad, Load


def counts(score: str | float) -> tuple[int, int]:
    """Pending and running tasks of a group, from its score in `groups`."""
    tasks, _, running = f"{float(score):.6f}".partition(".")
    return int(tasks) - int(running), int(running)


def merged(answers: Iterable[Sequence[Any]], count: int) -> Load:
    """The answers of all shards as one, at most `count` aggregations."""
    loads: list[AggregationLoad] = []
    total = downloads = callbacks = 0
    for answer in answers:
        total, downloads, callbacks = total + answer[0], downloads + answer[1], callbacks + answer[2]
        loads += (_aggregation(*row) for row in answer[3])
    loads.sort(key=lambda load: (-load.pending - load.in_flight, load.aggr_id))
    return Load(aggregations=loads[:count], total=total, downloads=downloads, callbacks=callbacks)


def _aggregation(name: str, score: str, limit: str, paused: int) -> AggregationLoad:
    pending, running = counts(score)
    return AggregationLoad(
        aggr_id=name, pending=pending, in_flight=running, limit=int(limit), paused=paused == 1
    )
