"""Jobs for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from downloader.model import CallbackOutcome, JobSpec, Kind, Lease, Outcome, Verdict
from downloader.store import Accepted, CallbackPlan, JobStore, Settlement, Submission


def spec_for(store: JobStore, aggr_id: str = "a", **fields: Any) -> JobSpec:
    """A job that could have come through the API."""
    values: dict[str, Any] = {
        "id": store.new_id(aggr_id),
        "aggr_id": aggr_id,
        "aggr_limit": 1,
        "url": "http://127.0.0.1:1/file",
        "callback_type": "http",
        "callback_dst": "http://127.0.0.1:2/done",
    }
    values |= fields
    values.setdefault("callback_error_type", values["callback_type"])
    values.setdefault("callback_error_dst", values["callback_dst"])
    return JobSpec(**values)


async def submitted(store: JobStore, aggr_id: str = "a", **fields: object) -> JobSpec:
    """A new job, accepted by the store."""
    spec = spec_for(store, aggr_id, **fields)
    assert await store.submit([Submission(spec=spec)]) == [(Accepted.NEW, spec.id)]
    return spec


async def leased(store: JobStore, owner: str = "me", kind: Kind = Kind.DOWNLOAD) -> Lease:
    """A lease of one task, which has to be there."""
    [lease] = (await store.lease(kind, owner, 1, 10)).leases
    return lease


def downloaded(lease: Lease, outcome: Outcome, callback: CallbackPlan | None, keep_s: float) -> Settlement:
    """A download that has ended."""
    return Settlement.of(lease, outcome, callback=callback, keep_s=keep_s)


def closed(lease: Lease, delivery: CallbackOutcome, keep_s: float, limit: int) -> Settlement:
    """A callback that has ended."""
    callback = CallbackPlan(queue=lease.queue, limit=limit)
    return Settlement.of(lease, delivery, callback=callback, keep_s=keep_s)


def tried_again(lease: Lease, end: Outcome | CallbackOutcome, delay_s: float) -> Settlement:
    """A task that is due again after an attempt."""
    return Settlement.of(lease, replace(end, retry_after_s=delay_s))


def handed_back(lease: Lease, reason: str, delay_s: float) -> Settlement:
    """A task whose attempt does not count."""
    return Settlement(lease=lease, verdict=Verdict.RELEASE, error=reason, delay_s=delay_s)


async def end_all(
    store: JobStore, outcome: Outcome, *, callback: CallbackOutcome | None = None, keep_s: float = 60
) -> None:
    """End every pending download, then the callback if one is given; at most 100."""
    downloads = (await store.lease(Kind.DOWNLOAD, "me", 100, 30)).leases
    plan = CallbackPlan(queue="http c", limit=100)
    await store.settle("me", [downloaded(lease, outcome, plan, 0) for lease in downloads])
    if callback is not None:
        callbacks = (await store.lease(Kind.CALLBACK, "me", 100, 30)).leases
        await store.settle("me", [closed(lease, callback, keep_s, 100) for lease in callbacks])
