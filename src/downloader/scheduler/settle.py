"""Reports the ends of downloads and callbacks to the store, by the transition that each calls for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from downloader.model import Delivery, Kind, Lease, Outcome, Verdict, callback_limit
from downloader.store import CallbackPlan, CloseResult, FinishResult, JobStore, Settled

End = Outcome | Delivery
"""How a lease's work ended."""

Ended = tuple[Lease, End]
"""A lease and how its work ended."""


async def settle_downloads(
    store: JobStore, owner: str, results: Sequence[Ended], *, per_destination: int, keep_s: float
) -> Sequence[Settled]:
    """Settle downloads; returns the results in order.

    `per_destination` is the limit of a new destination of callbacks, see `callback_limit`. Jobs without a
    callback are kept for `keep_s` seconds.
    """

    def row(lease: Lease, end: End) -> FinishResult:
        assert isinstance(end, Outcome)
        success = end.verdict is Verdict.SUCCEEDED
        plan = CallbackPlan.of(lease.spec, success=success, per_destination=per_destination)
        return lease, end, plan, keep_s

    async def finish(ended: Sequence[Ended]) -> Sequence[Settled]:
        return await store.finish(owner, [row(*each) for each in ended])

    return await _settle(store, owner, Kind.DOWNLOAD, results, finish)


async def settle_callbacks(
    store: JobStore,
    owner: str,
    results: Sequence[Ended],
    *,
    per_destination: int,
    deletion_s: float,
    failed_s: float,
) -> Sequence[Settled]:
    """Settle callbacks; returns the results in order.

    `per_destination` is the limit of a destination that works, see `callback_limit`. Jobs are kept for
    `deletion_s` seconds after a delivery, and for `failed_s` after a failure.
    """

    def row(lease: Lease, end: End) -> CloseResult:
        assert isinstance(end, Delivery)
        keep_s = deletion_s if end.verdict is Verdict.SUCCEEDED else failed_s
        return lease, end, keep_s, callback_limit(lease.group, per_destination)

    async def close(ended: Sequence[Ended]) -> Sequence[Settled]:
        return await store.close_callbacks(owner, [row(lease, end) for lease, end in ended])

    return await _settle(store, owner, Kind.CALLBACK, results, close)


async def _settle(
    store: JobStore,
    owner: str,
    kind: Kind,
    results: Sequence[Ended],
    finish: Callable[[Sequence[Ended]], Awaitable[Sequence[Settled]]],
) -> Sequence[Settled]:
    """Group the results by transition, and run one call for each."""
    answers: dict[int, Settled] = {}

    def those(*verdicts: Verdict) -> list[Ended]:
        return [result for result in results if result[1].verdict in verdicts]

    def note(ended: Sequence[Ended], settled: Sequence[Settled]) -> None:
        answers.update(zip((id(lease) for lease, _ in ended), settled, strict=True))

    if ended := those(Verdict.SUCCEEDED, Verdict.FAILED):
        note(ended, await finish(ended))
    if ended := those(Verdict.RETRY, Verdict.THROTTLED):
        rows = [(lease, end, end.retry_after_s or 0.0) for lease, end in ended]
        note(ended, await store.retry_later(kind, owner, rows))
    if ended := those(Verdict.RELEASE):
        handed = [(lease, end.error, end.retry_after_s or 0.0) for lease, end in ended]
        note(ended, await store.release(kind, owner, handed))
    return [answers[id(lease)] for lease, _ in results]
