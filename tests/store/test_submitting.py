"""Submissions: what is stored, which repetition is answered by the first job, whose limit and proxy apply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from downloader.model import Kind
from downloader.store import Accepted, JobStore, Keys, StoreClient, Submission
from servers.jobs import spec_for, submitted
from servers.raw_store import RawStore


async def test_a_job_is_stored_as_it_was_given(store: JobStore) -> None:
    spec = await submitted(store, extra='{"ü": 1}', request_headers={"X-A": "1"}, max_retries=0)
    view = await store.get(spec.id)
    assert view is not None
    assert view.spec == spec


class ManyShards(StoreClient):
    """A client of four shards that notes the jobs of each call and accepts them all."""

    def __init__(self) -> None:
        self.keys = Keys(prefix="t", shards=4)
        self.calls: list[tuple[int, list[str]]] = []

    async def run(
        self,
        name: str,  # noqa: ARG002  # the parameters of a client
        shard: int,
        call: Mapping[str, Any],  # noqa: ARG002
        items: Iterable[Mapping[str, Any]] = (),
        *,
        durable: bool = False,  # noqa: ARG002
    ) -> Any:
        ids = [row["id"] for row in items]
        self.calls.append((shard, ids))
        return [("new", job_id) for job_id in ids]


async def test_jobs_that_are_submitted_together_are_one_call_for_each_shard() -> None:
    connection = ManyShards()
    store = JobStore(connection)
    specs = [spec_for(store, f"a{number % 10}") for number in range(40)]
    answers = await store.submit([Submission(spec=spec) for spec in specs])
    assert answers == [(Accepted.NEW, spec.id) for spec in specs]
    shards = [shard for shard, _ in connection.calls]
    assert len(shards) == len(set(shards)) > 1


async def test_a_repeated_submission_enqueues_nothing(store: JobStore) -> None:
    spec = await submitted(store)
    assert await store.submit([Submission(spec=spec)]) == [(Accepted.NEW, spec.id)]
    assert list((await store.aggregation_sizes()).values()) == [1]


@pytest.mark.parametrize("key", ["", "k"])
async def test_a_call_that_is_repeated_late_starts_nothing_again(store: JobStore, key: str) -> None:
    """Its answer was lost, and it is sent again while the job is running already."""
    sent = [Submission(spec=spec_for(store, aggr_limit=9), idempotency_key=key, value_digest="v")]
    first = await store.submit(sent)
    assert len((await store.lease(Kind.DOWNLOAD, "me", 9, 30)).leases) == 1
    assert await store.submit(sent) == first == [(Accepted.NEW, sent[0].spec.id)]
    assert (await store.lease(Kind.DOWNLOAD, "me", 9, 30)).leases == []


async def test_an_idempotency_key_answers_the_first_job(raw: RawStore, store: JobStore) -> None:
    first, second, third = (spec_for(store) for _ in range(3))
    answers = await store.submit(
        [
            Submission(spec=first, idempotency_key="k", value_digest="b"),
            Submission(spec=second, idempotency_key="k", value_digest="b"),
            Submission(spec=third, idempotency_key="k", value_digest="other"),
        ]
    )
    assert answers == [
        (Accepted.NEW, first.id),
        (Accepted.REPEATED, first.id),
        (Accepted.CONFLICT, first.id),
    ]
    assert await store.get(second.id) is None
    key = raw.key("idempotency", "k")
    assert raw.command("PTTL", key) > 23 * 3600 * 1000, "the contract says 24 h"
    assert list((await store.aggregation_sizes()).values()) == [1]


async def test_an_idempotency_key_that_an_earlier_version_kept(raw: RawStore, store: JobStore) -> None:
    """It kept the digest of the job's text."""
    first, second, third = (spec_for(store) for _ in range(3))
    key = raw.key("idempotency", "k")
    raw.command("SET", key, f"{first.id} text", "PX", 60_000)
    answers = await store.submit(
        [
            Submission(spec=second, idempotency_key="k", value_digest="values", body_digest="text"),
            Submission(spec=third, idempotency_key="k", value_digest="values", body_digest="other"),
        ]
    )
    assert answers == [(Accepted.REPEATED, first.id), (Accepted.CONFLICT, first.id)]


async def test_the_newest_limit_applies_and_the_first_proxy_stays(store: JobStore) -> None:
    await submitted(store, aggr_limit=1, aggr_proxy="http://first")
    await submitted(store, aggr_limit=3, aggr_proxy="http://second")
    await submitted(store, aggr_limit=2)
    leases = (await store.lease(Kind.DOWNLOAD, "me", 9, 10)).leases
    assert len(leases) == 2
    assert {(lease.limit, lease.proxy) for lease in leases} == {(2, "http://first")}


async def test_h23_a_job_never_goes_through_a_proxy_that_it_may_not_use(store: JobStore) -> None:
    await submitted(store, aggr_proxy="http://theirs")
    spec, allowed = spec_for(store, aggr_limit=9, aggr_proxy="http://ours"), spec_for(store, aggr_limit=7)

    judged: list[str] = []

    def permits(proxy: str) -> bool:
        judged.append(proxy)
        return proxy == "http://theirs"

    answers = await store.submit(
        [
            Submission(spec=spec, permits=lambda _: False),
            Submission(spec=allowed, permits=permits),
        ]
    )
    assert answers == [(Accepted.PROXIED, "http://theirs"), (Accepted.NEW, allowed.id)]
    assert judged == ["http://theirs"]
    assert await store.get(spec.id) is None
    leases = (await store.lease(Kind.DOWNLOAD, "me", 9, 10)).leases
    assert {(lease.limit, lease.proxy) for lease in leases} == {(7, "http://theirs")}


async def test_its_own_proxy_or_none_needs_no_permission(store: JobStore) -> None:
    for proxy in ("http://ours", ""):
        for _ in range(2):
            spec = spec_for(store, f"of {proxy}", aggr_proxy=proxy)
            never = Submission(spec=spec, permits=lambda _: pytest.fail("asked"))
            assert await store.submit([never]) == [(Accepted.NEW, spec.id)]
