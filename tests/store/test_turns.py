"""The turns of a lease call: aggregations that give way, and destinations that have not answered lately."""

from __future__ import annotations

from downloader.model import CallbackOutcome, Kind, Outcome, Verdict
from downloader.store import CallbackPlan, JobStore, Shares
from servers.jobs import closed, downloaded, leased, submitted

OK = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
DELIVERED = CallbackOutcome(verdict=Verdict.SUCCEEDED)


async def calls_back(store: JobStore, destination: str) -> None:
    """Have a callback to this destination wait."""
    await submitted(store)
    await store.settle(
        "me", [downloaded(await leased(store), OK, CallbackPlan(group=destination, limit=9), 0)]
    )


async def groups(store: JobStore, kind: Kind, count: int, shares: Shares) -> list[str]:
    batch = await store.lease(kind, "me", count, 10, shares=shares)
    return [lease.group for lease in batch.leases]


async def test_who_has_more_than_its_share_comes_last_or_not_at_all(store: JobStore) -> None:
    for aggregation in ("large", "large", "large", "small"):
        await submitted(store, aggregation, aggr_limit=9)
    assert await groups(store, Kind.DOWNLOAD, 9, Shares(never=["large"])) == ["small"]
    await submitted(store, "small", aggr_limit=9)
    assert await groups(store, Kind.DOWNLOAD, 2, Shares(last=["large"])) == ["small", "large"]


async def test_destinations_that_have_not_answered_get_as_many_as_allowed(store: JobStore) -> None:
    for destination in "abc":
        await calls_back(store, f"http {destination}")
    assert len(await groups(store, Kind.CALLBACK, 9, Shares(unproven=2))) == 2


async def test_destinations_that_answer_and_others_take_turns(store: JobStore) -> None:
    await calls_back(store, "http proven")
    await store.settle("me", [closed(await leased(store, kind=Kind.CALLBACK), DELIVERED, 60, 9)])
    for destination in ("proven", "proven", "proven", "new"):
        await calls_back(store, f"http {destination}")
    found = await groups(store, Kind.CALLBACK, 2, Shares(unproven=9))
    assert sorted(found) == ["http new", "http proven"]
