"""Aggregations: limits and present work, and what an operator may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from downloader.wire.base import NEWER, Cursor, Integer, Moment, WireModel

MAX_INT = 2**31 - 1
"""Largest limit or timeout: the largest 32-bit integer, which some clients send for "no limit"."""

MAX_RATE = 1e6
"""Starts per second: more than any fleet reaches."""

MAX_DELAY_S = 86400
"""A day, which is also the longest time between two starts that a rate can demand."""

AggregationState = Annotated[
    Literal[
        "",
        "paused",
        "cooling",
        "at_limit",
        "at_rate",
        "running",
        "scheduled",
        "disk_full",
        "no_processor",
        "ready",
        "idle",
    ],
    NEWER,
]

Limit = Annotated[Integer, Field(ge=1, le=MAX_INT)]
Rate = Annotated[float, Field(gt=0, le=MAX_RATE)]
Delay = Annotated[float, Field(ge=0, le=MAX_DELAY_S)]


@with_config(
    ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)
)
class AggregationChanges(TypedDict, total=False):
    """The fields of an aggregation that an operator may change; `null` undoes an earlier change."""

    limit: Limit | None
    """Downloads at once."""
    rate: Rate | None
    """Starts per second."""
    delay: Delay | None
    """Seconds between two starts."""
    paused: bool | None
    cooling: None
    """`null` ends a cooldown and the pace after it; there is no other value."""


class AllAggregations(WireModel):
    """A pause of all aggregations."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    paused: bool
    """No download starts, of aggregations that come later either."""


class AggregationLoad(WireModel):
    """An aggregation's present work."""

    aggr_id: str
    limit: int
    """At most this many downloads at once, over the fleet; 1 until a job or an operator names a limit."""
    paused: bool = False
    in_flight: int = 0
    """Downloads that run now, over the fleet."""
    pending: int = 0
    cooling_until: Moment | None = None
    """No download starts until then; `null` outside a cooldown."""
    pace: float | None = None
    """After a cooldown, at most this many downloads start in a second, over the fleet; `null` if that is not
    less than `rate`."""


class Aggregation(AggregationLoad):
    """An aggregation that has unfinished downloads, or for which an operator has set something."""

    state: AggregationState = ""
    """`paused`, `cooling`, `at_limit`, `at_rate` (the next start waits for `rate`, `delay` or `pace`),
    `running`, `scheduled` (the next job waits for its time), `disk_full` or `no_processor` (no download can
    start), `ready` (the next job starts with a free slot) or `idle`."""
    rate: float | None = None
    """At most this many downloads start in a second, over the fleet."""
    delay: float | None = None
    """At least this many seconds between two starts."""
    overridden: Mapping[str, float | None] = {}
    """The values that the jobs ask for, of the fields that an operator has set."""
    proxy: str = ""
    """Empty without a proxy. Its password is hidden."""
    cooling_reason: str = ""
    """The error that caused the cooldown; empty outside a cooldown."""
    next_due_at: Moment | None = None
    """When the first pending job may start; `null` without a pending job, and during a pause."""


class AggregationPage(WireModel):
    """A page of aggregations; within a page the busiest come first."""

    aggregations: Sequence[Aggregation]
    cursor: Cursor
    paused: bool = False
    """An operator has paused all aggregations."""
    total: Annotated[int | None, Field(exclude_if=lambda total: total is None)] = None
    """With `q` or `sort`: how many match, on all pages."""


class CancelledJobs(WireModel):
    """Jobs of an aggregation that were cancelled."""

    cancelled: int
    """How many, by this request."""
    complete: bool
    """The aggregation has no further job to cancel; if not, repeat the request."""


class AggregationSize(WireModel):
    """An aggregation that has work."""

    name: str
    """`jobs:` followed by the aggregation's name."""
    size: int
    """Pending jobs."""
