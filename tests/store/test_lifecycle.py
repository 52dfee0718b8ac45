from __future__ import annotations

from dataclasses import replace

import pytest

from downloader.model import CallbackOutcome, FileFacts, Kind, Outcome, ResponseMetadata, Verdict
from downloader.store import Accepted, CallbackPlan, Changed, JobStore, Settled, Submission
from servers.jobs import closed, downloaded, spec_for

OK = Outcome(
    verdict=Verdict.SUCCEEDED,
    response_code=200,
    file=FileFacts(size=3, sha256="ab", mime_type="image/png", image_size="1x1"),
)
PLAN = CallbackPlan(queue="http http://c", limit=4)


async def submit(store: JobStore, aggr_id: str = "a", count: int = 1, limit: int = 1) -> list[str]:
    specs = [spec_for(store, aggr_id, aggr_limit=limit) for _ in range(count)]
    answers = await store.submit([Submission(spec=spec) for spec in specs])
    assert [why for why, _ in answers] == [Accepted.NEW] * count
    return [job_id for _, job_id in answers]


async def test_a_job_goes_from_submission_to_removal(store: JobStore) -> None:
    [job_id] = await submit(store)
    view = await store.get(job_id)
    assert view is not None
    assert view.download.state == "pending"
    assert view.outcome is None
    assert view.callback is None

    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 5, 10)).leases
    assert (lease.id, lease.attempts, lease.limit) == (job_id, 0, 1)
    assert await store.settle("me", [downloaded(lease, OK, PLAN, 0)]) == [Settled.DONE]

    [callback] = (await store.lease(Kind.CALLBACK, "me", 5, 10)).leases
    assert callback.result == OK
    assert callback.result_attempts == 1
    done = CallbackOutcome(verdict=Verdict.SUCCEEDED)
    assert await store.settle("me", [closed(callback, done, 0, 4)]) == [Settled.DONE]

    batch = await store.reap(10, 60)
    assert [(job.spec.id, job.has_file) for job in batch.jobs] == [(job_id, True)]
    assert await store.retry(job_id, download=False, limit=1) is Changed.CONFLICT
    await store.remove([job_id])
    assert await store.get(job_id) is None


async def test_the_name_that_an_origin_gives_to_a_file_is_kept(store: JobStore) -> None:
    [job_id] = await submit(store)
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 5, 10)).leases
    named = replace(OK, file=replace(OK.file, filename="ä b.png"))
    assert await store.settle("me", [downloaded(lease, named, PLAN, 0)]) == [Settled.DONE]
    view = await store.get(job_id)
    assert view is not None
    assert view.outcome == named


@pytest.mark.parametrize("final_url", ["", "http://example.org/end?x=1"])
async def test_the_metadata_of_a_response_reaches_client_and_callback(
    store: JobStore, final_url: str
) -> None:
    [job_id] = await submit(store)
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 5, 10)).leases
    response = ResponseMetadata(
        etag='"33a"', last_modified="Fri", content_type="image/x", final_url=final_url, not_modified=True
    )
    outcome = replace(OK, response=response)
    assert await store.settle("me", [downloaded(lease, outcome, PLAN, 0)]) == [Settled.DONE]
    view = await store.get(job_id)
    assert view is not None
    assert view.outcome == outcome
    [callback] = (await store.lease(Kind.CALLBACK, "me", 5, 10)).leases
    assert callback.result == outcome


async def test_the_limit_holds_and_a_finished_download_frees_its_slot(store: JobStore) -> None:
    ids = await submit(store, count=3, limit=2)
    batch = await store.lease(Kind.DOWNLOAD, "me", 5, 10)
    assert {lease.id for lease in batch.leases} <= set(ids)
    assert len(batch.leases) == 2
    assert batch.next_due_s is None
    await store.settle("me", [downloaded(batch.leases[0], OK, None, 60)])
    assert len((await store.lease(Kind.DOWNLOAD, "me", 5, 10)).leases) == 1


@pytest.mark.row("F21")
async def test_aggregations_take_turns(store: JobStore) -> None:
    await submit(store, "big", count=50, limit=50)
    [late] = await submit(store, "late")
    first_two = (await store.lease(Kind.DOWNLOAD, "me", 2, 10)).leases
    assert late in [lease.id for lease in first_two]


@pytest.mark.row("F21")
async def test_turns_go_round(store: JobStore) -> None:
    for aggregation in "abc":
        await submit(store, aggregation, count=3, limit=3)
    turns = [(await store.lease(Kind.DOWNLOAD, "me", 1, 10)).leases[0].queue for _ in range(9)]
    assert "".join(turns) == "abcabcabc"
