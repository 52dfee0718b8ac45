"""`Work`: the functions of a kind of leased work, which the loop calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from enum import StrEnum

from downloader.model import Kind, Lease
from downloader.store import Settlement

StillOurs = Callable[[], bool]
"""Whether the lease is valid now, so that the result may be published; thread-safe."""


class LeaseEnd(StrEnum):
    """The end of a lease in this process."""

    SETTLED = "settled"
    """The store has applied the settlement."""
    CANCELLED = "cancelled"
    """A client had cancelled the job. The settlement has freed the slot and changed nothing else."""
    LOST = "lost"
    """The store has refused the settlement, or had not answered when the lease ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A kind of leased work."""

    kind: Kind
    concurrency: int
    """Most leases that the process holds."""
    lease_s: float
    longest_s: Callable[[Lease], float]
    """How long the work of a lease may take. `HUNG_S` later the lease is no longer renewed."""
    work: Callable[[Lease, StillOurs], Awaitable[Settlement]]
    """Does the work of a lease. Expected failures are returned; an exception ends the process.

    Cancelled when the lease is lost, at a stop's deadline, and when other queues wait for the slot.
    """
    on_end: Callable[[LeaseEnd, Settlement, float], None]
    """Called once per lease with the end of the lease, the settlement, and the duration in seconds.

    The settlement of cancelled work is a `RELEASE`.
    """
    discard: Callable[[Lease], Awaitable[None]] | None = None
    """Deletes a file that was stored for a job before the job's cancel was known.

    Cancelled after `DISCARD_S`, so as not to delay a stop; the reaper deletes what remains.
    """
    may_lease: Callable[[], bool] = lambda: True
    """Called before each lease call; false while no task is to be leased, for example with a full disk."""
    on_sweep: Callable[[int], None] = lambda _: None
    """Called after a sweep with the number of tasks taken from dead instances."""
    types: Collection[str] | None = None
    """Types of callbacks that the process can deliver; `None` for downloads."""
    leases_at_stop: bool = False
    """Lease once more when a stop begins (callbacks: short)."""
