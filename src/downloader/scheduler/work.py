"""`Work`: one kind of leased work, as the functions that the loop calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from downloader.model import Kind, Lease
from downloader.store import Settlement

StillOurs = Callable[[], bool]
"""Whether the lease is valid now, so that the result may be published; thread-safe."""


class LeaseEnd(StrEnum):
    """How a lease ended in this process."""

    SETTLED = "settled"
    """The store has applied the settlement."""
    CANCELLED = "cancelled"
    """A client had cancelled the job. The settlement has freed the slot and changed nothing else."""
    LOST = "lost"
    """The lease ended before the store had answered the settlement, or the store has refused it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One kind of leased work."""

    kind: Kind
    concurrency: int
    """How many leases the process holds at most."""
    lease_s: float
    longest_s: Callable[[Lease], float]
    """How long the work of a lease may take. A while later its lease is no longer renewed: the work hangs."""
    work: Callable[[Lease, StillOurs], Awaitable[Settlement]]
    """Does the work of a lease. Expected failures are returned; an exception ends the process.

    It is cancelled when the lease is lost, at a stop's deadline, and when other groups wait for the slot.
    """
    on_end: Callable[[LeaseEnd, Settlement, float], None]
    """Called once for each lease: how it ended, how its work ended, and the seconds that it took.

    Work that was cut off has ended with `RELEASE`.
    """
    discard: Callable[[Lease], Awaitable[None]] | None = None
    """Deletes what was stored for a job that was cancelled meanwhile.

    It has `DISCARD_S`, so that it holds up no stop; the reaper deletes what is left with the job.
    """
    may_lease: Callable[[], bool] = lambda: True
    """Asked before each lease call; false while nothing should be leased (a full disk)."""
    on_sweep: Callable[[int], None] = lambda _: None
    """Called after a sweep with the number of tasks that it has taken from dead instances."""
    leases_at_stop: bool = False
    """Lease once more when a stop begins (callbacks: they are short)."""
