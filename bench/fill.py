"""Jobs straight into a store, without the API, by the store's own transitions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from bench.check import FILE_BYTES
from bench.client import URL_LENGTH
from bench.origin import content
from downloader.model import FileFacts, JobSpec, Lease, Outcome, Verdict
from downloader.store import CallbackPlan, JobStore, Settlement, Submission

BATCH = 256
"""Jobs in one call."""

LEASE_S = 600.0
"""Longer than any scenario."""

STORED = Outcome(
    verdict=Verdict.SUCCEEDED,
    response_code=200,
    file=FileFacts(
        size=FILE_BYTES, sha256=hashlib.sha256(content(FILE_BYTES)).hexdigest(), mime_type="image/png"
    ),
)
"""The outcome of a download of the bench's file."""


def stored(lease: Lease, callback: CallbackPlan | None, keep_s: float) -> Settlement:
    """The end of a download that has succeeded."""
    return Settlement.of(lease, STORED, callback=callback, keep_s=keep_s)


def specs(
    store: JobStore, *, count: int, aggregations: int, limit: int, kind: str, to: str
) -> Iterator[JobSpec]:
    """Jobs that take turns among the aggregations, with callbacks of this backend to this destination.

    A `{}` in the destination stands for the number of the aggregation, from 1 on.
    """
    for number in range(count):
        aggr_id = f"bench-{number % aggregations}"
        destination = to.format(1 + number % aggregations)
        yield JobSpec(
            id=store.new_id(aggr_id),
            aggr_id=aggr_id,
            aggr_limit=limit,
            url=f"http://127.0.0.1:8000/file/{number:08}.png?".ljust(URL_LENGTH, "x"),
            callback_type=kind,
            callback_dst=destination,
            callback_error_type=kind,
            callback_error_dst=destination,
        )


async def submit(store: JobStore, jobs: Iterator[JobSpec]) -> list[str]:
    """Submit all; their ids."""
    ids: list[str] = []
    while batch := [Submission(spec=spec) for _, spec in zip(range(BATCH), jobs, strict=False)]:
        ids += [job_id for _, job_id in await store.submit(batch)]
    return ids
