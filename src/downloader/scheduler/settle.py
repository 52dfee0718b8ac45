"""What becomes of finished work in the store, for downloads and for callbacks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from downloader.model import Delivery, Kind, Lease, Outcome, Verdict, callback_group, callback_limit
from downloader.store import CallbackPlan, CloseResult, FinishResult, JobStore, Settled

End = Outcome | Delivery
"""How a lease's work ended."""

Settler = Callable[[Sequence[tuple[Lease, End]]], Awaitable[Sequence[Settled]]]

RELEASE_DELAY_S = 0.0
"""Work handed back by a stop waits for nobody."""


def download_settler(store: JobStore, owner: str, *, per_destination: int, keep_s: float) -> Settler:
    """Settles downloads; a new destination of callbacks has the limit of `callback_limit`.

    Jobs without a callback are kept for `keep_s` seconds.
    """

    async def final(results: Sequence[tuple[Lease, End]]) -> Sequence[Settled]:
        rows: list[FinishResult] = []
        for lease, end in results:
            assert isinstance(end, Outcome)
            kind, destination = lease.spec.callback(success=end.verdict is Verdict.SUCCEEDED)
            plan = None
            if kind:
                group = callback_group(kind, destination)
                plan = CallbackPlan(group=group, limit=callback_limit(group, per_destination))
            rows.append((lease, end, plan, keep_s))
        return await store.finish(owner, rows)

    return _settler(store, owner, Kind.DOWNLOAD, final)


def callback_settler(
    store: JobStore, owner: str, *, per_destination: int, deletion_s: float, failed_s: float
) -> Settler:
    """Settles callbacks; files go `deletion_s` after a delivery, records of failed ones after `failed_s`."""

    async def final(results: Sequence[tuple[Lease, End]]) -> Sequence[Settled]:
        rows: list[CloseResult] = []
        for lease, end in results:
            assert isinstance(end, Delivery)
            keep_s = deletion_s if end.verdict is Verdict.SUCCEEDED else failed_s
            rows.append((lease, end, keep_s, callback_limit(lease.group, per_destination)))
        return await store.close_callbacks(owner, rows)

    return _settler(store, owner, Kind.CALLBACK, final)


def _settler(store: JobStore, owner: str, kind: Kind, final: Settler) -> Settler:
    async def settle(results: Sequence[tuple[Lease, End]]) -> Sequence[Settled]:
        answers: dict[str, Settled] = {}

        def note(chunk: Sequence[tuple[Lease, End]], settled: Sequence[Settled]) -> None:
            for (lease, _), answer in zip(chunk, settled, strict=True):
                answers[lease.id] = answer

        released = [result for result in results if result[1].verdict is Verdict.RELEASE]
        retried = [result for result in results if result[1].verdict is Verdict.RETRY]
        ended = [result for result in results if result[1].verdict in (Verdict.SUCCEEDED, Verdict.FAILED)]
        if ended:
            note(ended, await final(ended))
        if retried:
            delayed = [(lease, end, end.retry_after_s or 0.0) for lease, end in retried]
            note(retried, await store.retry_later(kind, owner, delayed))
        if released:
            handed = [(lease, end.error, end.retry_after_s or RELEASE_DELAY_S) for lease, end in released]
            note(released, await store.release(kind, owner, handed))
        return [answers[lease.id] for lease, _ in results]

    return settle
