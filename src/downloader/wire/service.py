"""The service: health, waiting work, and who is signed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from downloader.wire.base import Moment, WireModel, optional


class Status(WireModel):
    """Whether a load balancer should send requests to this instance."""

    status: str


class Ready(WireModel):
    """Whether this instance can work."""

    status: str
    """`ok`, or `not ready`."""
    store: bool
    """The store answers."""
    roles: Mapping[str, bool]
    """Whether each role of this process runs."""
    reasons: Annotated[Sequence[str], optional()] = ()
    """Why the instance is not ready."""
    backends: Annotated[Mapping[str, bool], optional()] = {}
    """Whether each backend of this process's notifier is healthy; the instance is ready even if none is."""


class Session(WireModel):
    """Who is signed in."""

    tokens: bool
    """Whether tokens are configured. Without them the API is open, and nobody needs to sign in."""
    name: str | None
    """The token's name; `null`: nobody is signed in."""
    scopes: Sequence[str]
    """The token's scopes; `admin` includes all."""
    expires_at: Moment | None
    """When the session ends; `null` without one."""


class WaitingDownloads(WireModel):
    """Downloads that wait or run."""

    pending: int
    in_flight: int
    aggregations: int
    """How many have work."""
    cooling: int
    """How many of the busiest aggregations cool down."""
    held: int = 0
    """How many of `pending` wait because their aggregation, one of the busiest, is paused or cools down."""
    oldest_due_at: Moment | None = None
    """Due time of the first download that only a lack of slots delays, in the 100 busiest aggregations."""
    next_due_at: Moment | None


class WaitingDestination(WireModel):
    """A destination of callbacks."""

    destination: str
    """Backend, and host, queue, topic or prefix."""
    pending: int
    in_flight: int
    limit: int
    """Most callbacks in flight over the fleet; 1 after a failure, until a callback is delivered."""
    due_at: Moment | None
    """When the first pending callback was or will be due."""


class FailedDestination(WireModel):
    """A destination whose callbacks have failed."""

    destination: str
    failed: int


class WaitingCallbacks(WireModel):
    """Callbacks that wait or run."""

    pending: int
    in_flight: int
    failed: int
    """Callbacks that were given up and can be sent again."""
    next_due_at: Moment | None
    destinations: Sequence[WaitingDestination]
    """The destinations with the most callbacks."""
    more_destinations: int
    failed_to: Sequence[FailedDestination]
    """The destinations with the most failed callbacks. Only the 500 that will be deleted last are counted."""


class BacklogPoint(WireModel):
    """Pending work of the fleet at a time of the last day."""

    at: Moment
    downloads: int
    """Pending downloads."""
    callbacks: int
    """Pending callbacks."""
    succeeded: int
    """Downloads that had succeeded up to then, since the store was empty."""
    failed: int
    """Downloads that had failed for good up to then."""


class AuditEntry(WireModel):
    """A change that an operator or a program has made."""

    at: Moment
    action: str
    token: str | None
    """Name of the token; `null` while the API is open."""
    client: str
    """Address of the client."""
    changed: Mapping[str, Any]
    """What was changed: ids, names, values and counts."""


class Waiting(WireModel):
    """Pending and running work of the fleet."""

    downloads: WaitingDownloads
    callbacks: WaitingCallbacks | None
    """`null` for a token that does not have all aggregations; `downloads` then counts only the token's."""
