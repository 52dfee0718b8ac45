"""Each transition: what it changes, what it refuses, and that its repetition changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import trio

from downloader.model import (
    POISON_CRASHES,
    CallbackOutcome,
    ErrorCode,
    FileFacts,
    Kind,
    Lease,
    Outcome,
    State,
    Verdict,
)
from downloader.store import (
    CallbackPlan,
    Changed,
    JobStore,
    JobView,
    Settled,
    Shares,
    Submission,
)
from downloader.store.codec import fields
from downloader.wire import Task
from servers.jobs import closed, downloaded, handed_back, leased, spec_for, submitted, tried_again
from servers.raw_store import RawStore
from servers.store_clock import StoreClock

OK = Outcome(
    verdict=Verdict.SUCCEEDED,
    response_code=200,
    file=FileFacts(size=3, sha256="ab" * 32, mime_type="image/png", image_size="1x1"),
)
FAILED = Outcome(
    verdict=Verdict.FAILED,
    error="Received Status code 404 Not Found",
    error_code=ErrorCode.HTTP_STATUS,
    response_code=404,
)
RETRY = dataclasses.replace(FAILED, verdict=Verdict.RETRY, error="Received Status code 500")
PLAN = CallbackPlan(queue="http http://c", limit=4)
DELIVERED = CallbackOutcome(verdict=Verdict.SUCCEEDED)


async def lapse(raw: RawStore, store: JobStore, lease: Lease) -> None:
    """Move the end of a lease to now."""
    raw.command("ZADD", raw.key("leases", lease.kind), 1, lease.id)


async def download(store: JobStore, job_id: str) -> Task:
    view = await store.get(job_id)
    assert view is not None
    return view.download


async def callback(store: JobStore, job_id: str) -> Task:
    view = await store.get(job_id)
    assert view is not None
    assert view.callback is not None
    return view.callback


# versions


@pytest.mark.row("F24")
async def test_fields_of_a_newer_version_survive(store: JobStore) -> None:
    spec = spec_for(store, unknown={"from_the_future": [1]})
    await store.submit([Submission(spec=spec)])
    assert (await leased(store)).spec.unknown == {"from_the_future": [1]}


@pytest.mark.row("F24")
async def test_states_and_codes_of_a_newer_version_are_passed_on(raw: RawStore, store: JobStore) -> None:
    """A record by hand: what an older version does not know never raises, least of all in a lease call."""
    spec = await submitted(store)
    await store.settle("me", [downloaded(await leased(store), FAILED, PLAN, 0)])
    for kind, written in (
        (Kind.DOWNLOAD, {"state": "quarantined", "code": "virus", "novelty": "1"}),
        (Kind.CALLBACK, {"novelty": "2"}),
    ):
        for name, value in written.items():
            raw.command("HSET", raw.key("task", kind, spec.id), name, value)

    lease = await leased(store, kind=Kind.CALLBACK)
    assert lease.result is not None
    assert (lease.result.error_code, lease.result.verdict) == ("virus", Verdict.FAILED)
    view = await store.get(spec.id)
    assert view is not None
    assert view.outcome is not None
    assert (view.download.state, view.outcome.error_code) == ("quarantined", "virus")
    assert await store.retry(spec.id, download=True, limit=4) is Changed.CONFLICT
    assert await store.renew(Kind.CALLBACK, "me", [lease], 10) == [Settled.DONE]
    assert await store.settle("me", [closed(lease, DELIVERED, 0, 4)]) == [Settled.DONE]
    novelty = raw.key("task", Kind.CALLBACK, spec.id)
    assert raw.command("HGET", novelty, "novelty") == "2"
    assert [job.spec.id for job in (await store.reap(9, 60)).jobs] == [spec.id]


@pytest.mark.row("F24")
async def test_a_task_in_a_state_of_a_newer_version_is_left_to_it(raw: RawStore, store: JobStore) -> None:
    spec = await submitted(store)
    lease = await leased(store)
    key = raw.key("task", Kind.DOWNLOAD, spec.id)
    raw.command("HSET", key, "state", "verifying")
    assert await store.settle("me", [downloaded(lease, OK, PLAN, 0)]) == [Settled.LEASE_LOST]
    assert (await download(store, spec.id)).model_dump()["state"] == "verifying"
    assert (await store.lease(Kind.DOWNLOAD, "me", 9, 10)).leases == []


# a generation never comes twice


@pytest.mark.row("F30")
@pytest.mark.parametrize("transition", ["finish", "retry_later", "release", "renew"])
async def test_a_holder_whose_lease_a_failover_lost_is_refused(
    raw: RawStore, store: JobStore, transition: str
) -> None:
    """A replica may lack the last lease, which nobody waits for; the next one has another generation."""
    spec = await submitted(store)
    task = raw.key("task", Kind.DOWNLOAD, spec.id)
    before = raw.command("DUMP", task)
    late = await leased(store)
    # What the replica has: the task as it was, waiting.
    raw.command("DEL", task)
    if before is not None:
        raw.command("RESTORE", task, 0, before)
    raw.command("ZREM", raw.key("leases", Kind.DOWNLOAD), spec.id)
    raw.command("SREM", raw.key("running", Kind.DOWNLOAD, spec.aggr_id), spec.id)
    raw.command("ZADD", raw.key("pending", Kind.DOWNLOAD, spec.aggr_id), 1, spec.id)
    raw.command("DEL", raw.key("memo", Kind.DOWNLOAD, "me"))
    await submitted(store, spec.aggr_id)  # which places the aggregation
    current = await leased(store, "me")
    assert (current.id, current.generation > late.generation) == (late.id, True)
    assert await settle(store, transition, "me", late) is Settled.LEASE_LOST
    assert (await store.settle("me", [downloaded(current, OK, PLAN, 0)])) == [Settled.DONE]
    assert await settle(store, transition, "me", late) is Settled.LEASE_LOST


async def test_who_settled_a_task_is_compared_too(store: JobStore) -> None:
    await submitted(store)
    lease = await leased(store, "me")
    assert await settle(store, "finish", "me", lease) is Settled.DONE
    assert await settle(store, "finish", "me", lease) is Settled.DONE, "a lost answer is repeated"
    assert await settle(store, "finish", "other", lease) is Settled.LEASE_LOST


# places in the queue


async def backlog(raw: RawStore, store: JobStore) -> list[str]:
    ids = raw.command("ZRANGE", raw.key("pending", Kind.DOWNLOAD, "a"), 0, -1)
    return list(ids)


async def in_flight_before_others(store: JobStore) -> tuple[Lease, list[str]]:
    """A lease of the first job of an aggregation, and the jobs that wait behind it."""
    await submitted(store, "a", aggr_limit=9)
    lease = await leased(store)
    others = [spec_for(store, "a", aggr_limit=9) for _ in range(20)]
    await trio.sleep(0.002)  # they are due in a later millisecond
    await store.submit([Submission(spec=spec) for spec in others])
    return lease, sorted(spec.id for spec in others)


@pytest.mark.row("F34")
async def test_what_is_handed_back_keeps_its_place(raw: RawStore, store: JobStore) -> None:
    lease, others = await in_flight_before_others(store)
    assert await store.settle("me", [handed_back(lease, "", 0)]) == [Settled.DONE]
    assert await backlog(raw, store) == [lease.id, *others]
    assert (await leased(store)).id == lease.id


@pytest.mark.row("F34")
async def test_what_is_handed_back_with_a_delay_waits_for_it(raw: RawStore, store: JobStore) -> None:
    lease, others = await in_flight_before_others(store)
    assert await store.settle("me", [handed_back(lease, "", 5)]) == [Settled.DONE]
    assert await backlog(raw, store) == [*others, lease.id]


@pytest.mark.row("F34")
async def test_what_a_dead_instance_had_goes_first_and_a_suspect_last(raw: RawStore, store: JobStore) -> None:
    lease, others = await in_flight_before_others(store)
    for crashes, place in ((1, 0), (2, len(others)), (3, len(others))):
        await lapse(raw, store, lease)
        assert await store.sweep(Kind.DOWNLOAD) == [lease.id]
        assert (await backlog(raw, store)).index(lease.id) == place, crashes
        raw.command("ZADD", raw.key("pending", Kind.DOWNLOAD, "a"), 1, lease.id)
        lease = await leased(store)


@pytest.mark.row("F34")
async def test_an_instance_gets_one_suspect_at_a_time(store: JobStore, raw: RawStore) -> None:
    """So that a job which makes workers die does not make poison of all that dies with it."""
    ids = {(await submitted(store, name)).id for name in ("a", "b", "c")}
    for _ in range(2):
        for lease in (await store.lease(Kind.DOWNLOAD, "dies", 9, 10)).leases:
            await lapse(raw, store, lease)
        assert set(await store.sweep(Kind.DOWNLOAD)) == ids
    harmless = await submitted(store, "d")
    batch = (await store.lease(Kind.DOWNLOAD, "me", 9, 10)).leases
    assert sorted(lease.crashes for lease in batch) == [0, 2]
    assert harmless.id in {lease.id for lease in batch}
    asked_again = await store.lease(Kind.DOWNLOAD, "me", 9, 10, shares=Shares(suspects=1))
    assert asked_again.leases == []
    assert 0 < (asked_again.next_due_s or 0) <= 1, "not at once"
    sizes = await store.aggregation_sizes()
    assert sum(sizes.values()) == 2, "they wait"
    await trio.sleep(1.1)
    assert len((await store.lease(Kind.DOWNLOAD, "other", 9, 10)).leases) == 1


@pytest.mark.row("F34")
async def test_of_twenty_jobs_beside_one_that_kills_its_worker_none_becomes_poison(
    store: JobStore, clock: StoreClock
) -> None:
    deadly, *others = [(await submitted(store, "a", aggr_limit=99)).id for _ in range(21)]
    crashes = dict.fromkeys([deadly, *others], 0)
    while crashes[deadly] < POISON_CRASHES:
        leases = (await store.lease(Kind.DOWNLOAD, "me", 99, 10)).leases
        crashes |= {lease.id: lease.crashes for lease in leases}
        if deadly not in [lease.id for lease in leases]:
            await store.settle("me", [downloaded(lease, OK, PLAN, 0) for lease in leases])
        clock.move(11)
        await store.sweep(Kind.DOWNLOAD)
    assert max(crashes[job_id] for job_id in others) <= 2


# lease


@pytest.mark.row("F4")
async def test_a_lost_reply_leases_nothing_twice(raw: RawStore, store: JobStore) -> None:
    await submitted(store, aggr_limit=5)
    await submitted(store, aggr_limit=5)
    ask = {"kind": "download", "owner": "me", "request": "request-1", "count": 1, "lease_ms": 10_000}
    ask |= {"last": [], "never": [], "unproven": 0}
    [first] = fields(raw.run("lease", ask))["leases"]
    [again] = fields(raw.run("lease", ask))["leases"]
    assert fields(again) == fields(first) | {"waited_ms": -1}
    assert len((await store.lease(Kind.DOWNLOAD, "me", 9, 10)).leases) == 1


async def test_a_lease_tells_since_when_a_task_waits(
    raw: RawStore, store: JobStore, clock: StoreClock
) -> None:
    """A callback grows old from the end of its download, and again from the moment when it is sent again."""
    await submitted(store)
    clock.move(3)
    lease = await leased(store)
    assert lease.waited_s == 3
    [[_, ends]] = raw.command("ZRANGE", raw.key("leases", Kind.DOWNLOAD), 0, -1, "WITHSCORES")
    assert int(ends) == clock.now_ms + 10_000
    await store.settle("me", [downloaded(lease, OK, PLAN, 60)])
    clock.move(20)
    lease = await leased(store, kind=Kind.CALLBACK)
    assert (lease.waited_s, lease.age_s) == (20, 20)
    failed = CallbackOutcome(verdict=Verdict.FAILED, error="no")
    await store.settle("me", [closed(lease, failed, 60, 9)])
    await store.retry(lease.id, download=False, limit=1)
    clock.move(7)
    assert (await leased(store, kind=Kind.CALLBACK)).age_s == 7


async def test_while_all_is_paused_callbacks_are_leased_and_downloads_are_not(store: JobStore) -> None:
    for name in "ab":
        await submitted(store, name)
    await store.settle("me", [downloaded(await leased(store), OK, PLAN, 60)])
    await store.pause_all(paused=True)
    batch = await store.lease(Kind.DOWNLOAD, "me", 9, 10)
    assert (batch.leases, batch.next_due_s) == ([], None)
    await leased(store, kind=Kind.CALLBACK)
    await store.pause_all(paused=False)
    await leased(store)


async def test_a_timer_without_a_share_is_not_asked_for_again_and_again(
    store: JobStore, clock: StoreClock
) -> None:
    await submitted(store)
    await store.settle("me", [downloaded(await leased(store), OK, PLAN, 60)])
    await store.settle("me", [handed_back(await leased(store, kind=Kind.CALLBACK), "", 1)])
    clock.move(1)
    batch = await store.lease(Kind.CALLBACK, "me", 9, 10, shares=Shares(unproven=0))
    assert (batch.leases, batch.next_due_s) == ([], None)


async def test_a_job_that_was_evicted_leaves_nothing(raw: RawStore, store: JobStore) -> None:
    spec = await submitted(store)
    await store.settle("me", [tried_again(await leased(store), RETRY, 0)])
    task = raw.key("task", Kind.DOWNLOAD, spec.id)
    assert raw.command("EXISTS", task) == 1
    raw.command("DEL", raw.key("job", spec.id))
    assert (await store.lease(Kind.DOWNLOAD, "me", 9, 10)).leases == []
    assert raw.command("EXISTS", task) == 0


async def test_a_lease_tells_when_something_more_is_due(store: JobStore) -> None:
    assert (await store.lease(Kind.DOWNLOAD, "me", 1, 10)).next_due_s is None
    await submitted(store)
    lease = await leased(store)
    await store.settle("me", [tried_again(lease, RETRY, 60)])
    batch = await store.lease(Kind.DOWNLOAD, "me", 1, 10)
    assert batch.leases == []
    assert batch.next_due_s == pytest.approx(60, abs=15)


async def test_a_full_batch_asks_to_come_back_at_once(store: JobStore) -> None:
    for aggregation in "abc":
        await submitted(store, aggregation)
    assert (await store.lease(Kind.DOWNLOAD, "me", 2, 10)).next_due_s == 0


async def test_within_an_aggregation_the_earlier_due_goes_first(raw: RawStore, store: JobStore) -> None:
    first = await submitted(store)
    lease = await leased(store)
    second = await submitted(store)
    await store.settle("me", [handed_back(lease, "", 0)])
    queue = raw.key("pending", Kind.DOWNLOAD, "a")
    raw.command("ZADD", queue, 1, second.id, 2, first.id)
    lease = await leased(store)
    assert lease.id == second.id
    await store.settle("me", [downloaded(lease, OK, None, 60)])
    assert (await leased(store)).id == first.id


# settling


@pytest.mark.row("F13")
async def test_a_retry_counts_and_a_release_does_not(store: JobStore) -> None:
    spec = await submitted(store)
    await store.settle("me", [tried_again(await leased(store), RETRY, 0)])
    await store.settle("me", [handed_back(await leased(store), "our disk\nis full", 0)])
    view = await download(store, spec.id)
    assert (view.state, view.attempts, view.deliveries) == (State.PENDING, 1, 2)
    assert [failure.error for failure in view.errors] == [RETRY.error, "our disk is full"]
    assert (await leased(store)).attempts == 1


async def settle(store: JobStore, transition: str, owner: str, lease: Lease) -> Settled:
    """Settle the lease of a download or callback as an instance that assumes it is the holder."""
    match transition:
        case "finish":
            answers = await store.settle(owner, [downloaded(lease, FAILED, PLAN, 0)])
        case "close_callbacks":
            answers = await store.settle(owner, [closed(lease, DELIVERED, 0, 4)])
        case "retry_later":
            answers = await store.settle(owner, [tried_again(lease, RETRY, 0)])
        case "release":
            answers = await store.settle(owner, [handed_back(lease, "", 0)])
        case _:
            answers = await store.renew(lease.kind, owner, [lease], 30)
    return answers[0]


@pytest.mark.parametrize("transition", ["finish", "close_callbacks", "retry_later", "release", "renew"])
@pytest.mark.parametrize("now_held_by", ["me", "another"])
@pytest.mark.row("F7")
async def test_a_late_holder_changes_nothing(
    raw: RawStore, store: JobStore, transition: str, now_held_by: str
) -> None:
    """Also one to which the task has been given anew: only the generation tells the two leases apart."""
    spec = await submitted(store)
    kind = Kind.DOWNLOAD
    if transition == "close_callbacks":
        kind = Kind.CALLBACK
        await store.settle("me", [downloaded(await leased(store), OK, PLAN, 0)])
    late = await leased(store, "me", kind)
    await lapse(raw, store, late)
    assert await store.sweep(kind) == [spec.id]
    current = await leased(store, now_held_by, kind)
    assert current.generation > late.generation
    assert current.crashes == 1
    await lapse(raw, store, current)

    before = await store.get(spec.id)
    assert await settle(store, transition, "me", late) is Settled.LEASE_LOST
    after = await store.get(spec.id)
    if transition == "release":  # which shows that it has not crashed
        after, before = without_crashes(after), without_crashes(before)
    assert after == before
    assert await store.sweep(kind) == [spec.id], "it was not prolonged either"


def without_crashes(view: JobView | None) -> JobView:
    assert view is not None
    return dataclasses.replace(view, download=view.download.model_copy(update={"crashes": 0}))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.row("F22")
async def test_a_holder_that_comes_back_has_not_crashed(raw: RawStore, store: JobStore, kind: Kind) -> None:
    """Its lease ended and was swept while the store, or the way to it, was away."""
    spec = await submitted(store)
    if kind is Kind.CALLBACK:
        await store.settle("me", [downloaded(await leased(store), OK, PLAN, 0)])

    async def crashes() -> int:
        return (await (download if kind is Kind.DOWNLOAD else callback)(store, spec.id)).crashes

    async def swept(owner: str) -> Lease:
        lease = await leased(store, owner, kind)
        await lapse(raw, store, lease)
        assert await store.sweep(kind) == [spec.id]
        return lease

    crashed, back = await swept("crashed"), await swept("me")
    assert await crashes() == 2
    for number in range(2):  # the second is a repetition
        assert await store.settle("me", [handed_back(back, "", 0)]) == [Settled.LEASE_LOST]
        assert await crashes() == 1, number
    # Whoever has it meanwhile keeps it; only the last holder that was swept can speak for itself.
    back = await swept("me")
    current = await leased(store, "other", kind)
    assert await store.settle("crashed", [handed_back(crashed, "", 0)]) == [Settled.LEASE_LOST]
    assert await crashes() == 2
    assert await store.settle("me", [handed_back(back, "", 0)]) == [Settled.LEASE_LOST]
    assert await crashes() == 1
    assert await store.renew(kind, "other", [current], 30) == [Settled.DONE]


async def test_a_holder_that_comes_back_after_a_retry_changes_nothing(raw: RawStore, store: JobStore) -> None:
    spec = await submitted(store)
    late = await leased(store)
    await lapse(raw, store, late)
    await store.sweep(Kind.DOWNLOAD)
    await store.settle("me", [downloaded(await leased(store), FAILED, None, 60)])
    assert await store.retry(spec.id, download=True, limit=4) is Changed.DONE
    assert await store.settle("me", [handed_back(late, "", 0)]) == [Settled.LEASE_LOST]
    assert (await download(store, spec.id)).crashes == 0


@pytest.mark.parametrize("transition", ["finish", "retry_later", "release", "renew"])
@pytest.mark.row("F7")
async def test_only_its_holder_settles_a_lease(store: JobStore, transition: str) -> None:
    spec = await submitted(store)
    lease = await leased(store, "me")
    before = await store.get(spec.id)
    assert await settle(store, transition, "another", lease) is Settled.LEASE_LOST
    assert await store.get(spec.id) == before
    assert await settle(store, transition, "me", lease) is Settled.DONE


@pytest.mark.row("F4")
async def test_settling_twice_is_answered_alike_and_done_once(store: JobStore) -> None:
    spec = await submitted(store)
    lease = await leased(store)
    for _ in range(2):
        assert await store.settle("me", [downloaded(lease, FAILED, PLAN, 0)]) == [Settled.DONE]
    assert (await download(store, spec.id)).attempts == 1
    held = await leased(store, kind=Kind.CALLBACK)
    for _ in range(2):
        assert await store.settle("me", [closed(held, DELIVERED, 60, 4)]) == [Settled.DONE]
    assert (await callback(store, spec.id)).attempts == 1
    assert (await store.lease(Kind.CALLBACK, "me", 1, 10)).leases == []


@pytest.mark.parametrize("transition", ["retry_later", "release"])
async def test_a_settled_task_can_be_taken_by_another_before_the_repetition(
    store: JobStore, transition: str
) -> None:
    spec = await submitted(store)
    lease = await leased(store)
    await settle(store, transition, "me", lease)
    await leased(store, "other")
    assert await settle(store, transition, "me", lease) is Settled.DONE
    assert (await download(store, spec.id)).state == "running"


async def test_renewed_leases_are_not_swept(raw: RawStore, store: JobStore) -> None:
    await submitted(store)
    lease = await leased(store)
    await lapse(raw, store, lease)
    assert await store.renew(Kind.DOWNLOAD, "me", [lease], 30) == [Settled.DONE]
    assert await store.sweep(Kind.DOWNLOAD) == []


async def test_a_failing_destination_is_narrowed_until_it_works(store: JobStore) -> None:
    for aggregation in "abcd":
        await submitted(store, aggregation)
        await store.settle("me", [downloaded(await leased(store), OK, PLAN, 0)])
    held = (await store.lease(Kind.CALLBACK, "me", 2, 10)).leases
    later = CallbackOutcome(verdict=Verdict.RETRY, error="refused")
    await store.settle("me", [tried_again(lease, later, 0) for lease in held])
    # Another job's callback does not widen it.
    await submitted(store, "e")
    await store.settle("me", [downloaded(await leased(store), OK, PLAN, 0)])
    [alone] = (await store.lease(Kind.CALLBACK, "me", 9, 10)).leases
    await store.settle("me", [closed(alone, DELIVERED, 60, 4)])
    assert len((await store.lease(Kind.CALLBACK, "me", 9, 10)).leases) == 4


async def test_a_destination_that_has_answered_is_proven(store: JobStore) -> None:
    for aggregation in "ab":
        await submitted(store, aggregation)
        await store.settle("me", [downloaded(await leased(store), OK, PLAN, 0)])
    assert (await store.lease(Kind.CALLBACK, "me", 1, 10, shares=Shares(unproven=0))).leases == []
    lease = await leased(store, kind=Kind.CALLBACK)
    assert not lease.proven
    await store.settle("me", [closed(lease, DELIVERED, 60, 4)])
    [lease] = (await store.lease(Kind.CALLBACK, "me", 1, 10, shares=Shares(unproven=0))).leases
    assert lease.proven


async def test_the_last_failures_of_a_job_are_kept(store: JobStore) -> None:
    spec = await submitted(store)
    for number in range(7):
        await store.settle("me", [handed_back(await leased(store), f"reason {number}", 0)])
    errors = (await download(store, spec.id)).errors
    assert [failure.error for failure in errors] == [f"reason {number}" for number in range(2, 7)]


# the end


async def test_a_failed_callback_can_be_sent_again(store: JobStore) -> None:
    spec = await submitted(store)
    await store.settle("me", [downloaded(await leased(store), OK, PLAN, 0)])
    assert await store.retry(spec.id, download=False, limit=4) is Changed.CONFLICT
    gone = CallbackOutcome(verdict=Verdict.FAILED, error="Received Status code 410 Gone")
    await store.settle("me", [closed(await leased(store, kind=Kind.CALLBACK), gone, 60, 4)])
    assert (await callback(store, spec.id)).state == "failed"

    assert await store.retry(spec.id, download=False, limit=4) is Changed.DONE
    assert await store.retry(spec.id, download=False, limit=4) is Changed.CONFLICT
    again = await leased(store, kind=Kind.CALLBACK)
    assert (again.attempts, again.result) == (0, OK)


async def test_a_retry_whose_answer_was_lost_is_answered_again(raw: RawStore, store: JobStore) -> None:
    spec = await submitted(store)
    await store.settle("me", [downloaded(await leased(store), FAILED, None, 60)])
    call, rows = {"kind": Kind.DOWNLOAD, "request": "r", "limit": "1", "limits": {}}, [{"id": spec.id}]
    assert raw.run("retry", call, rows) == ["done"]
    await store.settle("me", [downloaded(await leased(store), FAILED, None, 60)])
    assert raw.run("retry", call, rows) == ["done"]
    assert (await download(store, spec.id)).state == "failed"
    assert raw.run("retry", call | {"request": "s"}, rows) == ["done"]
    assert (await download(store, spec.id)).state == "pending"


async def test_what_no_reaper_was_given_is_not_removed(store: JobStore) -> None:
    spec = await submitted(store)
    await store.settle("me", [downloaded(await leased(store), OK, None, 60)])
    await store.remove([spec.id])
    assert await store.get(spec.id) is not None


OWN_LIMITS = {"http http://own.test": 2}


@pytest.mark.parametrize(
    ("kind", "destination", "limit"),
    [
        ("http", "http://c.test/a", 4),
        ("http", "http://OWN.test:80/a", 2),
        ("kafka", "there", 4096),
        ("sqs", "there", 4096),
    ],
)
async def test_a_destination_without_a_record_gets_its_own_limit_or_that_of_its_type(
    store: JobStore, kind: str, destination: str, limit: int
) -> None:
    spec = await submitted(store, callback_type=kind, callback_dst=destination)
    plan = CallbackPlan.of(spec, success=True, per_destination=4, own_limits=OWN_LIMITS)
    assert plan is not None
    assert plan.limit == limit
    await store.settle("me", [downloaded(await leased(store), OK, plan, 0)])
    gone = CallbackOutcome(verdict=Verdict.FAILED, error="gone")
    await store.settle("me", [closed(await leased(store, kind=Kind.CALLBACK), gone, 60, 1)])
    assert await store.retry(spec.id, download=False, limit=4, own_limits=OWN_LIMITS) is Changed.DONE
    [waits] = (await store.backlog(9)).destinations
    assert waits.limit == limit


async def test_a_failed_download_can_be_run_again(raw: RawStore, store: JobStore) -> None:
    spec = await submitted(store, aggr_limit=3, aggr_proxy="http://p")
    await lapse(raw, store, await leased(store))
    await store.sweep(Kind.DOWNLOAD)
    await store.settle("me", [downloaded(await leased(store), FAILED, PLAN, 0)])
    assert await store.retry(spec.id, download=True, limit=4) is Changed.CONFLICT
    held = await leased(store, kind=Kind.CALLBACK)
    assert await store.retry(spec.id, download=True, limit=4) is Changed.CONFLICT
    await store.settle("me", [closed(held, DELIVERED, 0, 4)])
    assert await store.retry(spec.id, download=False, limit=4) is Changed.CONFLICT
    assert await store.retry(spec.id, download=True, limit=4) is Changed.DONE
    lease = await leased(store)
    assert (lease.attempts, lease.crashes, lease.limit, lease.proxy) == (0, 0, 3, "http://p")
    view = await store.get(spec.id)
    assert view is not None
    assert view.callback is None
    assert await store.settle("me", [downloaded(lease, OK, PLAN, 0)]) == [Settled.DONE]
    assert (await store.reap(9, 60)).jobs == []


async def test_h23_a_download_runs_again_through_its_first_proxy(
    store: JobStore,
) -> None:
    first = await submitted(store, aggr_proxy="http://first")
    second = await submitted(store)
    for _ in (first, second):
        await store.settle("me", [downloaded(await leased(store), FAILED, None, 60)])
    other = await submitted(store, aggr_proxy="http://other")
    for spec in (first, second):
        assert await store.retry(spec.id, download=True, limit=4) is Changed.CONFLICT
    await store.settle("me", [downloaded(await leased(store), FAILED, None, 60)])
    for spec in (second, first):
        assert await store.retry(spec.id, download=True, limit=4) is Changed.DONE
    assert await store.retry(other.id, download=True, limit=4) is Changed.CONFLICT
    assert (await leased(store)).proxy == "http://first"


@pytest.mark.row("F7")
async def test_the_callback_of_a_second_run_is_not_its_first_holder_s(store: JobStore) -> None:
    spec = await submitted(store)
    for run in range(2):
        await store.settle("me", [downloaded(await leased(store), FAILED, PLAN, 0)])
        held = await leased(store, kind=Kind.CALLBACK)
        if run == 0:
            first = held
            await store.settle("me", [closed(first, DELIVERED, 60, 4)])
            assert await store.retry(spec.id, download=True, limit=4) is Changed.DONE
    assert await store.settle("me", [closed(first, DELIVERED, 60, 4)]) == [Settled.LEASE_LOST]
    assert (await callback(store, spec.id)).state == "running"


async def test_a_reap_forgets_a_thousand_failures_at_the_most(raw: RawStore, store: JobStore) -> None:
    """A million may have expired at once, and other calls wait for the script."""
    key = raw.key("failed")
    raw.command("ZADD", key, *(word for number in range(1500) for word in (1, f"id{number}")))
    left = []
    for _ in range(2):
        await store.reap(9, 60)
        left.append(raw.command("ZCARD", key))
    assert left == [500, 0]


@pytest.mark.parametrize("job_id", ["NSb4FOAs9fVaQw", "", "x", "ü" * 14, "../../../etc/pa"])
async def test_an_unknown_job_is_unknown(store: JobStore, job_id: str) -> None:
    assert await store.get(job_id) is None
    assert await store.retry(job_id, download=False, limit=1) is Changed.UNKNOWN


async def test_reaping_waits_for_its_time_and_holds_what_it_gives(raw: RawStore, store: JobStore) -> None:
    spec = await submitted(store)
    await store.settle("me", [downloaded(await leased(store), FAILED, None, 30)])
    batch = await store.reap(9, 60)
    assert batch.jobs == []
    assert batch.next_due_s == pytest.approx(30, abs=15)
    raw.command("ZADD", raw.key("reap"), 1, spec.id)
    for hold_s in (0, 60):  # the first reaper dies
        batch = await store.reap(9, hold_s)
        assert [(job.spec.id, job.has_file) for job in batch.jobs] == [(spec.id, False)]
    assert (await store.reap(9, 60)).jobs == []
    assert await store.retry(spec.id, download=True, limit=1) is Changed.CONFLICT
    await store.remove([spec.id])
    await store.remove([spec.id])
    assert await store.get(spec.id) is None
    for kind in Kind:
        assert not raw.command("EXISTS", raw.key("task", kind, spec.id))


@pytest.mark.parametrize(
    ("code", "attempts"), [(ErrorCode.POISON, 0), (ErrorCode.DEADLINE, 0), (ErrorCode.TIMEOUT, 1)]
)
async def test_a_job_that_ends_without_a_request_has_no_attempt_more(
    store: JobStore, code: ErrorCode, attempts: int
) -> None:
    spec = await submitted(store)
    ended = Outcome(verdict=Verdict.FAILED, error="no", error_code=code)
    await store.settle("me", [downloaded(await leased(store), ended, None, 60)])
    view = await store.get(spec.id)
    assert view is not None
    assert view.download.attempts == attempts


async def test_a_job_that_is_run_again_waits_behind_those_that_are_due(store: JobStore) -> None:
    spec = await submitted(store)
    await store.settle("me", [downloaded(await leased(store), FAILED, None, 60)])
    other = await submitted(store)
    await trio.sleep(0.01)
    assert await store.retry(spec.id, download=True, limit=4) is Changed.DONE
    assert (await leased(store)).id == other.id
