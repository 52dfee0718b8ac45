"""Groups of jobs: what is counted, and when a group is complete."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import pytest
import trio

from downloader.config import RedisSettings
from downloader.model import CallbackOutcome, JobSpec, Kind, Outcome, State, Verdict
from downloader.store import (
    CLUSTER_SHARDS,
    Accepted,
    CallbackPlan,
    Changed,
    JobStore,
    Keys,
    Listed,
    StoreUnavailable,
    Submission,
    open_client,
)
from downloader.store.client import StoreClient
from downloader.store.groups import GroupStore
from downloader.wire import Group
from servers.jobs import closed, downloaded, leased, spec_for, submitted, tried_again
from servers.raw_store import RawStore

OK = Outcome(verdict=Verdict.SUCCEEDED)
NO = Outcome(verdict=Verdict.FAILED, error="no")
TAKEN = CallbackOutcome(verdict=Verdict.SUCCEEDED)
REFUSED = CallbackOutcome(verdict=Verdict.FAILED, error="gone")
NO_CALLBACK = {"callback_type": "", "callback_dst": ""}
PLAN = CallbackPlan(queue="http job", limit=4)


async def with_callback(store: JobStore, name: str = "g", extra: str = "x") -> JobSpec:
    """A group with a callback."""
    spec = spec_for(store, name, url="", extra=extra)
    await store.set_group_callback(spec, CallbackPlan(queue="http group", limit=4, token="t"))
    return spec


async def group_of(store: JobStore, name: str = "g") -> Group:
    group = await store.group(name)
    assert group is not None
    return group


def counts(group: Group) -> dict[str, int]:
    names = ("jobs", "succeeded", "failed", "cancelled", "unfinished")
    return {name: number for name in names if (number := getattr(group, name))}


async def ended(store: JobStore, outcome: Outcome = OK) -> None:
    """The next download ends; its job has no callback."""
    await store.settle("me", [downloaded(await leased(store), outcome, None, 60)])


async def no_callback_is_due(store: JobStore) -> bool:
    return not (await store.lease(Kind.CALLBACK, "me", 9, 10)).leases


async def test_a_sealed_group_whose_jobs_have_ended_has_one_callback(store: JobStore) -> None:
    callback = await with_callback(store)
    for _ in range(3):
        await submitted(store, group="g", **NO_CALLBACK)
    await ended(store)
    await ended(store, NO)
    group = await store.seal_group("g")
    assert group == await group_of(store)
    assert counts(group) == {"jobs": 3, "succeeded": 1, "failed": 1, "unfinished": 1}
    assert group.state == "sealed"
    assert await no_callback_is_due(store)
    await ended(store)
    group = await group_of(store)
    assert (group.state, group.callback_id, group.callback_state) == ("complete", callback.id, "pending")
    lease = await leased(store, kind=Kind.CALLBACK)
    assert (await group_of(store)).callback_state == "running"
    assert (lease.id, lease.queue, lease.token, lease.spec.extra) == (callback.id, "http group", "t", "x")
    assert group.first_at is not None
    assert group.last_at is not None
    assert json.loads(lease.spec.completes) == {
        "jobs": 3,
        "succeeded": 2,
        "failed": 1,
        "cancelled": 0,
        "first_at": round(group.first_at.timestamp() * 1000),
        "last_at": round(group.last_at.timestamp() * 1000),
    }
    await store.settle("me", [closed(lease, TAKEN, 60, 4)])
    await store.seal_group("g")
    assert (await group_of(store)).callback_state == "succeeded"
    assert await no_callback_is_due(store)
    assert (await store.jobs(Listed.FINISHED, "", "", 9, lambda job: job.id == callback.id)).jobs == []


async def test_a_group_waits_for_the_callbacks_of_its_jobs(store: JobStore) -> None:
    await with_callback(store)
    for end in (TAKEN, REFUSED):
        await submitted(store, group="g")
        await store.settle("me", [downloaded(await leased(store), OK, PLAN, 60)])
        if end is REFUSED:
            await store.seal_group("g")
        lease = await leased(store, kind=Kind.CALLBACK)
        assert (await group_of(store)).state != "complete"
        assert await no_callback_is_due(store)
        settlement = closed(lease, end, 60, 4)
        await store.settle("me", [settlement])
        await store.settle("me", [settlement])  # a repetition
    assert (await leased(store, kind=Kind.CALLBACK)).queue == "http group"
    assert counts(await group_of(store)) == {"jobs": 2, "succeeded": 2}


async def test_a_group_without_jobs_is_complete_when_sealed(store: JobStore) -> None:
    await with_callback(store)
    assert (await group_of(store)).state == "open"
    await store.seal_group("g")
    assert (await group_of(store)).state == "complete"
    counted = json.loads((await leased(store, kind=Kind.CALLBACK)).spec.completes)
    assert (counted["jobs"], counted["first_at"]) == (0, 0)


async def test_a_group_needs_no_callback(store: JobStore) -> None:
    assert await store.group("g") is None
    await submitted(store, group="g", **NO_CALLBACK)
    await store.seal_group("g")
    await ended(store)
    group = await group_of(store)
    assert (group.state, group.callback_id) == ("complete", "")
    assert await no_callback_is_due(store)
    await with_callback(store)
    assert (await group_of(store)).callback_id == ""
    assert await no_callback_is_due(store)


async def test_the_callback_may_come_after_the_jobs_and_change(store: JobStore) -> None:
    await submitted(store, group="g", **NO_CALLBACK)
    first = await with_callback(store)
    await store.seal_group("g")
    await with_callback(store, extra="new")
    await ended(store)
    lease = await leased(store, kind=Kind.CALLBACK)
    assert (lease.id, lease.spec.extra) == (first.id, "new")


async def test_a_sealed_group_takes_no_more_jobs(store: JobStore) -> None:
    spec = spec_for(store, group="g")
    submission = Submission(spec=spec, idempotency_key="k", value_digest="v")
    assert await store.submit([submission, submission]) == [(Accepted.NEW, spec.id)] * 2
    again = replace(submission, spec=spec_for(store, group="g"))
    assert await store.submit([again]) == [(Accepted.REPEATED, spec.id)]
    await store.seal_group("g")
    assert await store.submit([again]) == [(Accepted.REPEATED, spec.id)]
    late = spec_for(store, group="g")
    assert await store.submit([Submission(spec=late)]) == [(Accepted.SEALED, late.id)]
    assert await store.get(late.id) is None
    assert counts(await group_of(store)) == {"jobs": 1, "unfinished": 1}


@pytest.mark.parametrize("plan", [None, PLAN])
async def test_a_cancelled_job_has_ended(store: JobStore, plan: CallbackPlan | None) -> None:
    await with_callback(store)
    specs = [await submitted(store, group="g") for _ in range(2)]
    lease = await leased(store)
    await store.seal_group("g")
    for _ in range(2):  # a repetition
        assert await store.cancel_all([(spec, plan) for spec in specs], 60) == [Changed.DONE] * 2
    await store.settle("me", [downloaded(lease, OK, PLAN, 60)])
    leases = (await store.lease(Kind.CALLBACK, "me", 9, 10)).leases
    if plan is not None:
        assert (await group_of(store)).state == "sealed"
        await store.settle("me", [closed(lease, TAKEN, 60, 4) for lease in leases])
        leases = (await store.lease(Kind.CALLBACK, "me", 9, 10)).leases
    assert [lease.queue for lease in leases] == ["http group"]
    assert counts(await group_of(store)) == {"jobs": 2, "cancelled": 2}


async def test_a_retried_job_counts_as_unfinished_until_the_group_is_complete(store: JobStore) -> None:
    for _ in range(2):
        await submitted(store, group="g", **NO_CALLBACK)
    first = await leased(store)
    await store.settle("me", [downloaded(first, NO, None, 60)])
    await store.seal_group("g")
    assert await store.retry(first.id, download=True, limit=4) is Changed.DONE
    assert counts(await group_of(store)) == {"jobs": 2, "unfinished": 2}
    for _ in range(2):
        await ended(store, NO)
    assert counts(await group_of(store)) == {"jobs": 2, "failed": 2}
    assert (await group_of(store)).state == "complete"
    assert await store.retry(first.id, download=True, limit=4) is Changed.DONE
    await ended(store)
    assert counts(await group_of(store)) == {"jobs": 2, "failed": 2}


async def test_a_reopened_group_has_a_second_callback(store: JobStore) -> None:
    first = await with_callback(store)
    spec = await submitted(store, group="g", **NO_CALLBACK)
    assert await store.reopen_group("g", "new") == await group_of(store), "it is open"
    await store.seal_group("g")
    assert await store.reopen_group("g", "new") == await group_of(store), "it is not complete"
    await ended(store, NO)
    assert (await group_of(store)).callback_id == first.id
    ids = [store.new_id("g") for _ in range(2)]
    for callback_id in ids:  # a repetition
        group = await store.reopen_group("g", callback_id)
        assert group is not None
        assert (group.state, group.callback_id, counts(group)) == ("open", "", {"jobs": 1, "failed": 1})
    await submitted(store, group="g", **NO_CALLBACK)
    assert await store.retry(spec.id, download=True, limit=4) is Changed.DONE
    assert counts(await group_of(store)) == {"jobs": 2, "unfinished": 2}
    await store.seal_group("g")
    await ended(store)
    assert (await leased(store, kind=Kind.CALLBACK)).id == first.id
    assert await no_callback_is_due(store)
    await ended(store)
    assert counts(await group_of(store)) == {"jobs": 2, "succeeded": 2}
    lease = await leased(store, kind=Kind.CALLBACK)
    assert (lease.id, (await group_of(store)).callback_id) == (ids[0], ids[0])
    assert json.loads(lease.spec.completes)["succeeded"] == 2
    assert await no_callback_is_due(store)
    assert await store.reopen_group("other", "new") is None


async def test_a_job_that_was_retried_in_a_complete_group_is_counted_once_after_a_reopen(
    store: JobStore,
) -> None:
    async def run(outcome: Outcome, end: CallbackOutcome) -> None:
        await store.settle("me", [downloaded(await leased(store), outcome, PLAN, 60)])
        await store.settle("me", [closed(await leased(store, kind=Kind.CALLBACK), end, 60, 4)])

    spec = await submitted(store, group="g")
    await run(NO, TAKEN)
    await store.seal_group("g")
    assert await store.retry(spec.id, download=True, limit=4) is Changed.DONE
    await run(OK, REFUSED)
    assert counts(await group_of(store)) == {"jobs": 1, "failed": 1}
    await store.reopen_group("g", store.new_id("g"))
    assert await store.retry(spec.id, download=False, limit=4) is Changed.DONE
    assert counts(await group_of(store)) == {"jobs": 1, "unfinished": 1}
    await store.settle("me", [closed(await leased(store, kind=Kind.CALLBACK), TAKEN, 60, 4)])
    assert counts(await group_of(store)) == {"jobs": 1, "succeeded": 1}


@pytest.mark.row("F38")
async def test_a_late_call_about_an_earlier_seal_changes_nothing(
    raw: RawStore, store: JobStore, redis_settings: RedisSettings
) -> None:
    await with_callback(store)
    await store.seal_group("g")
    mark = raw.command("HGET", raw.key("job_group", "g"), "sealed")
    await store.reopen_group("g", store.new_id("g"))
    await submitted(store, group="g", **NO_CALLBACK)
    before = await group_of(store)
    async with open_client(redis_settings) as client:
        for late in ({"seal": True}, {"completed": True}, {"reopen": True, "id": "x"}):
            await client.run("group", 0, {}, [{"name": "g", "mark": mark, **late}])
        await client.run("complete", 0, {"name": "g", "counts": {}, "mark": mark})
    assert await group_of(store) == before
    await store.seal_group("g")
    await ended(store)
    async with open_client(redis_settings) as client:
        await client.run("group", 0, {}, [{"name": "g", "mark": mark, "reopen": True, "id": "x"}])
    assert (await group_of(store)).state == "complete"
    assert len((await store.lease(Kind.CALLBACK, "me", 9, 10)).leases) == 2


async def test_a_group_is_sealed_although_the_clock_was_set_back(raw: RawStore, store: JobStore) -> None:
    await submitted(store, group="g", **NO_CALLBACK)
    raw.command("HSET", raw.key("job_group", "g"), "reopened", f"{10 * time.time() * 1000:.0f}")
    await store.seal_group("g")
    assert (await group_of(store)).state == "sealed"


async def test_when_a_group_is_looked_at_next(
    raw: RawStore, store: JobStore, redis_settings: RedisSettings
) -> None:
    def days(name: str = "g") -> int:
        return round((float(raw.command("ZSCORE", raw.key("job_groups"), name)) / 1000 - time.time()) / 86400)

    assert await store.group("unknown") is None
    assert raw.command("EXISTS", raw.key("job_groups")) == 0
    await with_callback(store)
    assert days() == 30
    await store.seal_group("g")
    assert days() == 7
    await store.reopen_group("g", store.new_id("g"))
    assert days() == 30
    await submitted(store, group="of another shard", **NO_CALLBACK)
    async with open_client(redis_settings) as client:
        await client.run("group", 0, {}, [{"name": "of another shard", "completed": True}])
    group = await group_of(store, "of another shard")
    assert (group.state, group.unfinished, days("of another shard")) == ("complete", 0, 7)


async def test_the_job_of_the_callback_is_not_in_the_answer(
    store: JobStore, redis_settings: RedisSettings
) -> None:
    await with_callback(store, extra="large")
    async with open_client(redis_settings) as client:
        [answer] = await client.run("group", 0, {}, [{"name": "g"}])
    fields = dict(zip(answer[::2], answer[1::2], strict=True))
    assert (fields["spec"], fields["callback"], fields["token"]) == ("", "http group", "t")


async def test_sealed_groups_are_counted(raw: RawStore, store: JobStore) -> None:
    async def counted() -> tuple[int, int]:
        backlog = await store.backlog(9)
        return backlog.job_groups, backlog.sealed_groups

    await submitted(store, group="open", **NO_CALLBACK)
    await store.seal_group("complete")
    await submitted(store, group="g", **NO_CALLBACK)
    assert await counted() == (3, 0)
    await store.seal_group("g")
    await with_callback(store)
    assert await counted() == (3, 1)
    await due(raw, store)
    assert await counted() == (3, 1)
    for _ in range(2):
        await ended(store)
    assert await counted() == (3, 0)


async def test_a_callback_that_is_sent_again(store: JobStore) -> None:
    spec = await submitted(store, group="g")
    await store.settle("me", [downloaded(await leased(store), OK, PLAN, 60)])
    await store.settle("me", [closed(await leased(store, kind=Kind.CALLBACK), REFUSED, 60, 4)])
    assert counts(await group_of(store)) == {"jobs": 1, "succeeded": 1}
    await store.retry(spec.id, download=False, limit=4)
    await store.seal_group("g")
    assert counts(await group_of(store)) == {"jobs": 1, "unfinished": 1}
    await store.settle("me", [closed(await leased(store, kind=Kind.CALLBACK), TAKEN, 60, 4)])
    assert counts(await group_of(store)) == {"jobs": 1, "succeeded": 1}


async def test_the_callback_of_a_group_that_has_failed_is_sent_again(store: JobStore) -> None:
    spec = await with_callback(store)
    await store.seal_group("g")
    lease = await leased(store, kind=Kind.CALLBACK)
    await store.settle("me", [tried_again(lease, replace(REFUSED, verdict=Verdict.RETRY), 0)])
    await store.settle("me", [closed(await leased(store, kind=Kind.CALLBACK), REFUSED, 60, 4)])
    [job] = (await store.jobs(Listed.FAILED_CALLBACKS, "", "", 9)).jobs
    assert (job.id, (await group_of(store)).callback_state) == (spec.id, "failed")
    await store.retry(spec.id, download=False, limit=4)
    assert (await leased(store, kind=Kind.CALLBACK)).spec.aggr_id == "g"


async def due(raw: RawStore, store: JobStore, name: str = "g") -> None:
    """Let a group be looked at."""
    raw.command("ZADD", raw.key("job_groups"), 1, name)
    batch = await store.reap(9, 60)
    assert name in batch.groups[0]
    await store.tend_groups(batch.groups)
    assert not (await store.reap(9, 60)).groups


async def as_an_earlier_version(store: JobStore, end: str) -> None:
    """The job of the group ends, with a version that does not know groups."""
    lease = await leased(store)
    lease = replace(lease, spec=replace(lease.spec, group=""))
    if end == "cancelled":
        await store.cancel(lease.spec, None, 60)
    else:
        await store.settle("me", [downloaded(lease, OK if end == "succeeded" else NO, None, 60)])


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
async def test_what_an_earlier_version_ended_is_counted_later(
    raw: RawStore, store: JobStore, end: str
) -> None:
    await with_callback(store)
    await submitted(store, group="g", **NO_CALLBACK)
    await store.seal_group("g")
    await due(raw, store)
    await as_an_earlier_version(store, end)
    assert (await group_of(store)).state == "sealed"
    await due(raw, store)
    assert counts(await group_of(store)) == {"jobs": 1, end: 1}
    assert (await leased(store, kind=Kind.CALLBACK)).queue == "http group"
    await due(raw, store)
    assert (await group_of(store)).state == "complete"


async def test_a_job_whose_record_is_lost_counts_as_failed(raw: RawStore, store: JobStore) -> None:
    spec = await submitted(store, group="g", **NO_CALLBACK)
    await store.seal_group("g")
    raw.command("DEL", raw.key("job", spec.id))
    await due(raw, store)
    assert counts(await group_of(store)) == {"jobs": 1, "failed": 1}


async def test_a_group_goes_long_after_its_completion(raw: RawStore, store: JobStore) -> None:
    await store.seal_group("g")
    await submitted(store, group="g2")
    raw.command("HSET", raw.key("job_group", "g"), "completed", 1)
    await due(raw, store)
    assert await store.group("g") is None
    await due(raw, store, "g2")
    assert await store.group("g2") is not None, "it has a job"
    await store.settle("me", [downloaded(await leased(store), OK, None, 60)])
    await due(raw, store, "g2")
    assert await store.group("g2") is not None, "its job has ended just now"
    raw.command("HSET", raw.key("job_group", "g2"), "last_at", 1)
    await due(raw, store, "g2")
    assert await store.group("g2") is None, "nobody has sealed it for 30 days"
    assert (await store.groups("", 9)).groups == []


async def test_groups_are_listed(store: JobStore) -> None:
    for name in ("b", "a"):
        await submitted(store, group=name)
    await with_callback(store, "c")
    page = await store.groups("", 100)
    assert ([group.name for group in page.groups], page.cursor) == (["a", "b", "c"], "")
    for cursor in ("x", "1.0", "0.99999999999999999999"):
        with pytest.raises(ValueError, match="no such cursor"):
            await store.groups(cursor, 9)


async def test_unfinished_jobs_of_a_group_are_listed(store: JobStore) -> None:
    specs = [await submitted(store, aggr_id, group="g") for aggr_id in ("a", "b", "a")]
    await submitted(store, "b")
    await store.cancel(specs[2], PLAN, 60)
    page = await store.jobs(Listed.GROUP, "g", "", 2)
    jobs = [*page.jobs, *(await store.jobs(Listed.GROUP, "g", page.cursor, 2)).jobs]
    assert {(job.id, job.aggr_id, job.state, job.group) for job in jobs} == {
        (specs[0].id, "a", State.PENDING, "g"),
        (specs[1].id, "b", State.PENDING, "g"),
        (specs[2].id, "a", State.CANCELLED, "g"),
    }


def test_the_field_is_not_stored_without_a_group() -> None:
    spec: dict[str, Any] = {"id": "x", "aggr_id": "a", "aggr_limit": 1, "url": "http://x/"}
    assert "group" not in JobSpec(**spec).to_json()
    assert "completes" not in JobSpec(**spec).to_json()


@pytest.mark.row("F37")
@pytest.mark.parametrize("name", ["job_group", "members"])
@pytest.mark.parametrize("moment", ["open", "sealed", "failed"])
async def test_a_damaged_record_of_a_group_stops_no_job(
    raw: RawStore, store: JobStore, name: str, moment: str
) -> None:
    spec = await submitted(store, group="g", **NO_CALLBACK)
    if moment == "failed":
        await store.settle("me", [downloaded(await leased(store), NO, None, 60)])
    if moment == "sealed":
        await store.seal_group("g")
    raw.command("DEL", raw.key(name, "g"))
    raw.command("RPUSH", raw.key(name, "g"), "x")
    if moment == "sealed":
        assert (await store.group("g") is None) is (name == "job_group")
    if moment == "open":
        other = spec_for(store, group="g", **NO_CALLBACK)
        [(accepted, _)] = await store.submit([Submission(spec=other)])
        assert accepted is (Accepted.SEALED if name == "job_group" else Accepted.NEW)
        await store.cancel(other, None, 60)
    if moment == "failed":
        assert await store.retry(spec.id, download=True, limit=4) is Changed.DONE
    await due(raw, store)
    await ended(store)
    view = await store.get(spec.id)
    assert view is not None
    assert (view.download.state, view.kept_until is not None) == (State.SUCCEEDED, True)
    assert await store.aggregation_sizes() == {}
    assert (await store.groups("", 9)).cursor == ""
    if (name, moment) == ("members", "sealed"):
        assert (await group_of(store)).state == "complete", "nobody knows of an unfinished job"


@pytest.mark.row("F37")
async def test_damaged_numbers_of_a_group_stop_no_job(raw: RawStore, store: JobStore) -> None:
    await with_callback(store)
    await submitted(store, group="g", **NO_CALLBACK)
    for name in ("jobs", "succeeded", "first_at", "last_at"):
        raw.command("HSET", raw.key("job_group", "g"), name, "x")
    await submitted(store, group="g", **NO_CALLBACK)
    await due(raw, store)
    await store.seal_group("g")
    for _ in range(2):
        await ended(store)
    assert (await group_of(store)).state == "complete"
    assert (await leased(store, kind=Kind.CALLBACK)).queue == "http group"
    raw.command("HSET", raw.key("job_group", "g"), "completed", "x")
    await due(raw, store)
    assert await store.group("g") is None


class Shards:
    """A Cluster in which shards have one sealed group with unfinished jobs; counts the calls."""

    def __init__(self, *, silent: bool) -> None:
        self.keys, self.silent = Keys(prefix="p", shards=CLUSTER_SHARDS), silent
        self.calls: Counter[str] = Counter()

    async def run(self, name: str, shard: int, *_: object, **__: object) -> Sequence[object]:
        await trio.lowlevel.checkpoint()
        self.calls[name] += 1
        if self.silent and name == "group" and shard == 0:
            raise StoreUnavailable("the shard does not answer")
        return ["g"] if name == "tend" else [["unfinished", 1, "sealed", "1"]]

    async def ask(
        self, shards: Sequence[int], ask: Callable[[int], Awaitable[object]], **_: object
    ) -> Mapping[int, object]:
        answers = {}
        for shard in shards:
            with suppress(StoreUnavailable):
                answers[shard] = await ask(shard)
        return answers


@pytest.mark.parametrize("silent", [False, True])
async def test_a_group_that_is_due_in_all_shards_is_looked_at_once(
    silent: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    shards = Shards(silent=silent)
    store = GroupStore(cast("StoreClient", shards))
    await store.tend_groups({shard: ["g"] for shard in range(CLUSTER_SHARDS)})
    assert shards.calls == {"tend": CLUSTER_SHARDS, "group": CLUSTER_SHARDS + 1}


async def test_a_group_that_waits_for_a_shard_costs_two_calls_a_look() -> None:
    """The shard of its name, which may have reopened it, and one that has unfinished jobs."""
    shards = Shards(silent=False)
    store = GroupStore(cast("StoreClient", shards))
    for _ in range(3):
        await store.tend_groups({0: ["g"]})
    assert shards.calls["group"] == CLUSTER_SHARDS + 1 + 2 * 2
