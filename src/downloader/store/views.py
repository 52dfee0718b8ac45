"""What the store shows of jobs, aggregations and destinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from downloader.model import JobSpec, Outcome, State

COUNTED_FAILURES = 500
"""Failed callbacks whose destinations a `Backlog` counts: less than a millisecond of the store's time."""

SUMMED_GROUPS = 1000
"""Groups whose tasks a `Backlog` sums: a few tenths of a millisecond of the store's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A task as `GET /jobs/<id>` shows it."""

    state: State | str
    """A plain string if a newer version has stored a state that this version does not know."""
    attempts: int
    deliveries: int
    """How often it was leased."""
    crashes: int
    due_ms: int | None
    started_ms: int | None
    finished_ms: int | None
    log: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """Failed attempts, the newest last, at most five: `{"at_ms", "error"}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """What the API shows of one job."""

    spec: JobSpec
    download: TaskView
    outcome: Outcome | None
    """The last attempt's outcome; `None` before the first has ended."""
    callback: TaskView | None
    """`None` if the download has not finished, or the job has no callback."""
    kept_until_ms: int | None
    """When file and record are deleted; `None` while download or callback goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationLoad:
    """What an aggregation is doing."""

    aggr_id: str
    pending: int
    in_flight: int
    """Downloads leased now, over the fleet."""
    limit: int
    paused: bool
    cooling_until_ms: int | None = None
    """Unix time until which nothing of it starts, because its origin asked for a pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """An aggregation that has work, and how it runs."""

    aggr_id: str
    pending: int
    in_flight: int
    """Downloads leased now, over the fleet."""
    limit: int
    rate: float | None
    """Starts per second at the most."""
    delay: float | None
    """Seconds between two starts at the least."""
    asked: Mapping[str, float | None]
    """What its jobs ask for, for each field that an operator has set."""
    proxy: str
    paused: bool
    cooling_until_ms: int | None
    """Unix time until which nothing of it starts, because its origin asked for a pause."""
    cooling_reason: str
    """The error that caused the cooldown; empty while it does not cool down."""
    next_due_ms: int | None
    """Unix time from which its first pending job may start; `None` if none is pending or it is paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationPage:
    """Answer to one call for aggregations."""

    aggregations: Sequence[Aggregation]
    cursor: str
    """Argument of the call that continues behind this page; empty at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the fleet is doing: the busiest aggregations, and totals over all of them."""

    aggregations: Sequence[AggregationLoad]
    """By number of pending and running downloads, the most first."""
    total: int
    """Number of aggregations with work, including those that are not listed."""
    downloads: int
    """In flight, of all aggregations."""
    callbacks: int
    """In flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How much of one kind waits."""

    pending: int
    """Tasks; those of the `SUMMED_GROUPS` largest groups, if there are more."""
    groups: int
    """Aggregations or destinations with tasks that are pending or running."""
    next_ms: int | None
    """Unix time at which the next waiting task is due; `None`: none waits for a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationLoad:
    """What waits for a destination of callbacks."""

    destination: str
    """Its group: the backend's name, and a host, queue, topic or prefix."""
    pending: int
    in_flight: int
    limit: int
    """How many may be in flight, over the fleet; 1 after a failure, until one is delivered."""
    due_ms: int | None
    """Unix time at which its first pending callback was or will be due; `None`: none is pending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits, over all shards."""

    now_ms: int = field(compare=False)
    """The store's time."""
    downloads: Waiting
    callbacks: Waiting
    failed_callbacks: int
    """Kept, and can be sent again."""
    destinations: Sequence[DestinationLoad]
    """The destinations with the most callbacks that are pending or in flight, the largest first."""
    failed_to: Sequence[tuple[str, int]]
    """Destinations and how many of their callbacks have failed, the most first; of `COUNTED_FAILURES` in each
    shard."""


class Listed(StrEnum):
    """The lists of jobs that the store can read page by page."""

    FINISHED = "finished"
    """Download and callback are over, or there is no callback; by the time at which they are deleted."""
    RUNNING = "running"
    """The download runs; by the end of the lease. A job whose lease is renewed may come again."""
    PENDING = "pending"
    """The download waits; by the time at which it is due. Of one aggregation only."""
    FAILURES = "failures"
    """Download or callback failed lately, the newest first; a bounded list, of one page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedJob:
    """A job in a list."""

    job_id: str
    aggr_id: str
    state: str
    """The state of its download."""
    callback: str
    """The state of its callback; empty without one."""
    finished_ms: int | None
    """When the download ended."""
    failed_ms: int | None
    """When the callback failed; `None` if it did not."""
    error: str
    """The callback's error if it failed, otherwise the download's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """Answer to one call for a list of jobs."""

    jobs: Sequence[ListedJob]
    cursor: str
    """Argument of the call that continues behind this page; empty at the end."""
