"""Reports to the store how tasks ended, by the transition that each end calls for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from downloader.model import Delivery, Kind, Lease, Outcome, Verdict
from downloader.store import JobStore, Settled

End = Outcome | Delivery
"""How a lease's work ended."""

Ended = tuple[Lease, End]
"""A lease and how its work ended."""


async def settle(
    store: JobStore,
    kind: Kind,
    owner: str,
    results: Sequence[Ended],
    close: Callable[[Sequence[Ended]], Awaitable[Sequence[Settled]]],
) -> Sequence[Settled]:
    """Settle tasks of one kind, with one call for each transition; returns the results in order.

    `close` settles those that have succeeded or failed for good.
    """
    answers: dict[int, Settled] = {}

    def those(*verdicts: Verdict) -> list[Ended]:
        return [result for result in results if result[1].verdict in verdicts]

    def note(ended: Sequence[Ended], settled: Sequence[Settled]) -> None:
        answers.update(zip((id(lease) for lease, _ in ended), settled, strict=True))

    if ended := those(Verdict.SUCCEEDED, Verdict.FAILED):
        note(ended, await close(ended))
    if ended := those(Verdict.RETRY, Verdict.THROTTLED):
        rows = [(lease, end, end.retry_after_s or 0.0) for lease, end in ended]
        note(ended, await store.retry_later(kind, owner, rows))
    if ended := those(Verdict.RELEASE):
        handed = [(lease, end.error, end.retry_after_s or 0.0) for lease, end in ended]
        note(ended, await store.release(kind, owner, handed))
    return [answers[id(lease)] for lease, _ in results]
