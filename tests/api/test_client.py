"""`downloader.client` against the API on a real store, and against services that fail in a known way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

import httpx2
import pytest
import trio
import trio.testing
from pydantic import SecretStr

from downloader.client import (
    ApiProblem,
    AsyncClient,
    Client,
    ClientError,
    JobFields,
    Submitted,
    Unreachable,
    WaitTimeout,
)
from downloader.client.calls import LEAST_S, LONGEST_PAUSE_S, POLLED
from downloader.client.messages import BATCH_BYTES, BATCH_JOBS
from downloader.config import ApiSettings, TokenSettings
from downloader.errors import ConfigError
from downloader.model import CallbackOutcome, ErrorCode, FileFacts, Kind, Outcome, Verdict
from downloader.store import Submission
from servers.api import JOB, Served, Serving
from servers.jobs import closed, downloaded, end_all, spec_for

STORED = Outcome(
    verdict=Verdict.SUCCEEDED, response_code=200, file=FileFacts(size=3, sha256="ab", mime_type="text/plain")
)
GONE = Outcome(verdict=Verdict.FAILED, error="gone", error_code=ErrorCode.HTTP_STATUS, response_code=410)

JOB_FIELDS = cast("JobFields", JOB)

Answer = httpx2.Response | type[httpx2.TransportError]


@pytest.fixture
async def client(api: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"http://127.0.0.1:{api.port}") as opened:
        yield opened


class Script(httpx2.MockTransport):
    """Answers requests with the given answers, in order, and keeps the requests."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__(self._answer)
        self.requests: list[httpx2.Request] = []
        self._answers = list(answers)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, httpx2.Response):
            return answer
        raise answer("broken off")


def problem(status: int, code: str, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, json={"code": code, "detail": "No."}, headers=headers)


def accepted(job_id: str = "x") -> httpx2.Response:
    return httpx2.Response(201, json={"id": job_id})


def unavailable(after: str) -> httpx2.Response:
    return problem(503, "store_unavailable", **{"retry-after": after})


async def test_from_submission_to_the_callback(api: Served, client: AsyncClient) -> None:
    job_id = await client.submit(**JOB)
    job = await client.job(job_id)
    assert (job.id, job.state, job.ended, job.file, job.callback) == (job_id, "pending", False, None, None)
    assert job.created_at is not None
    assert abs(datetime.now(UTC) - job.created_at) < timedelta(minutes=5)
    await end_all(api.store, STORED)
    job = await client.wait(job_id)
    assert job.file is not None
    assert (job.succeeded, job.file.size, job.file.sha256, job.response_code) == (True, 3, "ab", 200)
    assert job.callback is not None
    assert not job.callback.ended
    with pytest.raises(WaitTimeout, match=r"1 of the jobs have not ended within 0.05 s"):
        await client.wait(job_id, callback=True, timeout_s=0.05)
    [lease] = (await api.store.lease(Kind.CALLBACK, "me", 1, 30)).leases
    end = CallbackOutcome(verdict=Verdict.FAILED, error="answered 500")
    await api.store.settle("me", [closed(lease, end, 60, 1)])
    job = await client.wait(job_id, callback=True)
    assert job.callback is not None
    assert (job.callback.state, job.callback.destination) == ("failed", JOB["callback_dst"])
    assert [failure.error for failure in job.callback.errors] == ["answered 500"]
    await client.retry(job_id)
    job = await client.job(job_id)
    assert job.callback is not None
    assert job.callback.state == "pending"


async def test_a_failed_download_and_its_repetition(api: Served, client: AsyncClient) -> None:
    job_id = await client.submit(**JOB)
    await end_all(api.store, GONE, callback=CallbackOutcome(verdict=Verdict.SUCCEEDED))
    job = await client.wait(job_id)
    assert (job.ended, job.succeeded, job.error, job.error_code) == (True, False, "gone", "http_status")
    with pytest.raises(ApiProblem) as caught:
        await client.retry(job_id)
    assert (caught.value.status, caught.value.code) == (409, "not_to_be_retried")
    await client.retry(job_id, download=True)
    assert (await client.job(job_id)).state == "pending"


async def test_many_jobs_are_waited_for_at_once(api: Served, client: AsyncClient) -> None:
    first = await client.submit(**JOB)
    await end_all(api.store, STORED)
    second = await client.submit(**JOB)
    waiting = client.wait_each([second, first, second])
    assert (await anext(waiting)).id == first
    await end_all(api.store, GONE)
    assert [job.id async for job in waiting] == [second]


@pytest.mark.slow
async def test_those_behind_many_that_wait_are_asked_for_too(api: Served, client: AsyncClient) -> None:
    specs = [spec_for(api.store, aggr_limit=1) for _ in range(POLLED)]
    await api.store.submit([Submission(spec=spec) for spec in specs])
    last = await client.submit(**JOB | {"aggr_id": "another"})
    ended = {lease.id: lease for lease in (await api.store.lease(Kind.DOWNLOAD, "me", 9, 30)).leases}
    await api.store.settle("me", [downloaded(ended[last], STORED, None, 60)])
    waiting = client.wait_each([*(spec.id for spec in specs), last])
    async with aclosing(waiting):
        with trio.fail_after(60):
            assert (await anext(waiting)).id == last


async def test_failed_callbacks_are_sent_again(api: Served, client: AsyncClient) -> None:
    for name in ("a", "a", "b"):
        await client.submit(**JOB | {"aggr_id": name})
    await end_all(api.store, STORED, callback=CallbackOutcome(verdict=Verdict.FAILED, error="500"))
    soon = datetime.now(UTC) + timedelta(minutes=5)
    groups = (await client.failures(q="A")).groups
    assert [(row.kind, row.aggr_id, row.error, row.jobs) for row in groups] == [("callback", "a", "500", 2)]
    assert (await client.failures(aggr_id="c")).callbacks.jobs == 0
    assert await client.retry_failed(since=soon) == 0
    assert await client.retry_failed(q="c") == 0
    assert await client.retry_failed(until=soon - timedelta(hours=1)) == 0
    assert await client.retry_failed(aggr_id="a", since=soon - timedelta(hours=1)) == 2
    assert await client.retry_failed(destination="http nobody") == 0
    assert await client.retry_failed(destination="http c") == 1


async def test_failed_downloads_are_repeated(api: Served, client: AsyncClient) -> None:
    for name in ("a", "a", "b"):
        await client.submit(**JOB | {"aggr_id": name})
    await end_all(api.store, GONE, callback=CallbackOutcome(verdict=Verdict.SUCCEEDED))
    soon = datetime.now(UTC) + timedelta(minutes=5)
    assert await client.retry_failed() == 0
    for none in ({"since": soon}, {"error_code": "timeout"}, {"destination": "http nobody"}):
        assert await client.retry_failed(download=True, **none) == 0
    assert await client.retry_failed(download=True, aggr_id="b", error_code="http_status") == 1
    assert await client.retry_failed(download=True) == 2


async def test_jobs_of_an_aggregation_are_cancelled(
    api: Served, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downloader.api.routes.aggregations.CANCELLED_AT_ONCE", 1)
    monkeypatch.setattr("downloader.api.routes.aggregations.CANCEL_S", 1e-9)
    for name in ("a", "a", "b"):
        await client.submit(**JOB | {"aggr_id": name})
    assert await client.cancel_jobs("a") == 2
    assert await api.store.aggregation_sizes() == {"b": 1}


async def test_all_are_paused(api: Served, client: AsyncClient) -> None:
    await client.pause_all()
    assert await api.store.all_paused()
    await client.pause_all(paused=False)
    assert not await api.store.all_paused()


async def test_jobs_are_listed(api: Served, client: AsyncClient) -> None:
    for name in ("a", "a", "a", "b", "b"):
        await client.submit(**JOB | {"aggr_id": name})
    waiting = [job async for job in client.jobs(state="pending", aggr_id="a")]
    assert [(job.aggr_id, job.state, job.callback) for job in waiting] == [("a", "pending", None)] * 3
    await end_all(api.store, GONE, callback=CallbackOutcome(verdict=Verdict.FAILED, error="500"))
    failed = [job async for job in client.jobs(callback="failed")]
    assert len({job.id for job in failed}) == len(failed) == 5
    assert {(job.state, job.callback, job.error) for job in failed} == {("failed", "failed", "500")}
    soon = datetime.now() + timedelta(minutes=5)  # noqa: DTZ005  # local time
    assert [job async for job in client.jobs(state="failed", since=soon)] == []
    recent = client.jobs(state="failed", aggr_id="b", since=soon - timedelta(hours=1))
    assert [job.aggr_id async for job in recent] == ["b", "b"]
    with pytest.raises(ApiProblem, match="aggr_id is required"):
        await anext(client.jobs(state="pending"))


def test_a_running_job_that_comes_again_is_listed_once() -> None:
    """Its lease was renewed while the pages were read."""
    pages = [(["a", "b"], "1"), (["c"], "2"), (["a", "d", "b"], "")]
    answers = [
        httpx2.Response(
            200,
            json={"jobs": [{"id": each, "aggr_id": "x", "state": "running"} for each in ids], "cursor": at},
        )
        for ids, at in pages
    ]
    with Client(transport=Script(*answers)) as client:
        assert [job.id for job in client.jobs(state="running")] == ["a", "b", "c", "d"]


def test_what_a_newer_service_adds_is_kept() -> None:
    """States, error codes and members that this version does not know."""
    job = {
        "id": "x",
        "aggr_id": "a",
        "url": "u",
        "state": "frozen",
        "error_code": "eclipse",
        "moon": {"phase": 1},
    }
    callback = {"type": "fax", "destination": "d", "state": "ringing", "tone": 7}
    row = {
        "id": "y",
        "aggr_id": "a",
        "state": "frozen",
        "callback": "ringing",
        "error_code": "eclipse",
        "m": 1,
    }
    problem = {
        "code": "new",
        "detail": "No.",
        "errors": [{"code": "c", "detail": "d", "field": "f", "x": 1}],
        "y": 2,
    }
    answers = [
        httpx2.Response(200, json=job | {"callback": callback}),
        httpx2.Response(200, json={"jobs": [row], "cursor": "", "total": 1}),
        httpx2.Response(200, json={"aggr_id": "a", "limit": 1, "mood": "good"}),
        httpx2.Response(422, json=problem),
    ]
    with Client(transport=Script(*answers)) as client:
        found = client.job("x")
        assert (found.state, found.error_code, found.ended) == ("frozen", "eclipse", False)
        assert found.model_dump()["moon"] == {"phase": 1}
        assert found.callback is not None
        assert (found.callback.state, found.callback.ended) == ("ringing", False)
        [listed] = client.jobs(state="failed")
        assert (listed.state, listed.callback, listed.error_code) == ("frozen", "ringing", "eclipse")
        assert client.aggregation("a").model_dump()["mood"] == "good"
        with pytest.raises(ApiProblem) as caught:
            client.cancel("x")
        assert caught.value.errors == [{"code": "c", "detail": "d", "field": "f", "x": 1}]


async def test_a_job_is_cancelled(client: AsyncClient) -> None:
    job_id = await client.submit(**JOB)
    await client.cancel(job_id)
    await client.cancel(job_id)
    job = await client.job(job_id)
    assert (job.state, job.ended, job.error_code) == ("cancelled", True, "cancelled")
    assert (await client.wait(job_id)).id == job_id


async def test_aggregations(client: AsyncClient) -> None:
    names = [f"a/{number}?" for number in range(250)]
    async for answer in client.submit_many(cast("JobFields", JOB | {"aggr_id": name}) for name in names):
        assert answer.id
    found = [each async for each in client.aggregations()]
    assert sorted(each.aggr_id for each in found) == sorted(names)
    one = await client.adjust(names[3], limit=2, rate=0.5, paused=True)
    assert (one.limit, one.rate, one.delay, one.paused, one.pending) == (2, 0.5, None, True, 1)
    assert one.overridden["limit"] == JOB["aggr_limit"]
    assert await client.aggregation(names[3]) == one
    assert (await client.adjust(names[3], limit=None)).limit == JOB["aggr_limit"]
    with pytest.raises(ApiProblem) as caught:
        await client.aggregation("other")
    assert caught.value.code == "unknown_aggregation"


async def test_counters_and_events(api: Served, client: AsyncClient) -> None:
    await client.ping()
    assert await client.stats("processor") == {}
    await client.submit(**JOB)
    assert (await client.stats())["downloads"]["pending"] == 1
    async with aclosing(client.events()) as events:
        async for event in events:
            if event["aggregations"]:
                break
    assert event["aggregations"][0]["aggr_id"] == JOB["aggr_id"]


async def test_a_problem_is_one_type(client: AsyncClient) -> None:
    with pytest.raises(ApiProblem) as caught:
        await client.submit(**JOB | {"aggr_limit": 0})
    found = caught.value
    assert (found.status, found.code, found.field) == (422, "out_of_range", "aggr_limit")
    assert str(found) == found.detail.rstrip(".")
    with pytest.raises(ApiProblem) as caught:
        await client.submit(**JOB | {"aggr_limit": 0, "url": "ftp://h/"})
    assert {error["field"] for error in caught.value.errors} == {"aggr_limit", "url"}
    assert str(caught.value) == "; ".join(error["detail"].rstrip(".") for error in caught.value.errors)
    for job_id in ("NSb4FOAs9fVaQw", "../x"):
        with pytest.raises(ApiProblem) as caught:
            await client.job(job_id)
        assert caught.value.status == 404


async def test_tokens(serving: Serving) -> None:
    token = TokenSettings(name="n", token=SecretStr("t" * 20), scopes=["read"])
    api = await serving(settings=ApiSettings(tokens=[token]))
    async with AsyncClient(f"http://127.0.0.1:{api.port}") as nobody:
        with pytest.raises(ApiProblem) as caught:
            await nobody.job("NSb4FOAs9fVaQw")
        assert (caught.value.status, caught.value.code) == (401, "unauthorized")
    async with AsyncClient(f"http://127.0.0.1:{api.port}", token="t" * 20) as reader:
        with pytest.raises(ApiProblem) as caught:
            await reader.submit(**JOB)
        assert (caught.value.status, caught.value.code) == (403, "forbidden")


async def test_many_are_answered_in_order(api: Served, client: AsyncClient) -> None:
    jobs: list[Any] = [JOB | {"extra": str(number)} for number in range(BATCH_JOBS + 3)]
    jobs[1] = JOB | {"url": "nonsense"}
    found = [answer async for answer in client.submit_many(jobs)]
    assert [answer.job for answer in found] == jobs
    assert [answer for answer in found if answer.problem is not None] == [found[1]]
    assert found[1].problem is not None
    assert (found[1].id, found[1].problem.field, found[1].problem.code) == ("", "url", "url_malformed")
    assert len({answer.id for answer in found}) == len(jobs)
    assert await api.client.get(f"/jobs/{found[-1].id}") is not None
    assert list((await api.store.aggregation_sizes()).values()) == [len(jobs) - 1]


async def test_many_are_taken_as_they_come(client: AsyncClient) -> None:
    taken = 0

    async def endless() -> AsyncGenerator[JobFields]:
        nonlocal taken
        while True:
            taken += 1
            yield cast("JobFields", JOB | {"extra": "x" * 10_000})

    async with aclosing(endless()) as jobs, aclosing(client.submit_many(jobs)) as answers:
        first = await anext(answers)
    assert first.id
    assert BATCH_BYTES // 10_500 < taken < BATCH_BYTES // 10_000 + 2


async def test_without_an_event_loop(api: Served) -> None:
    def use() -> None:
        with Client(f"http://127.0.0.1:{api.port}") as client:
            job_id = client.submit(**JOB)
            assert client.job(job_id).state == "pending"
            with pytest.raises(WaitTimeout):
                client.wait(job_id, timeout_s=0.01)
            found = list(client.submit_many([JOB_FIELDS, {"url": "", "aggr_id": "a", "aggr_limit": 1}]))
            assert [bool(answer.id) for answer in found] == [True, False]
            with pytest.raises(ApiProblem) as caught:
                client.retry(job_id)
            assert caught.value.status == 409
            assert client.retry_failed() == 0
            for event in client.events():
                if event["aggregations"]:
                    break
            assert event["aggregations"][0]["pending"] == 2
            assert client.stats("notifier") == {}

    await trio.to_thread.run_sync(use)


def test_the_blocking_client_has_all_that_the_other_has() -> None:
    def names(of: type[object]) -> set[str]:
        return {name for name in vars(of) if not name.startswith("_")}

    assert names(AsyncClient) - {"aclose"} == names(Client) - {"close"}
    assert Client.submit.__doc__ == AsyncClient.submit.__doc__


def test_on_asyncio_and_without_a_loop_too() -> None:
    async def submit(transport: Script) -> str:
        async with AsyncClient(transport=transport) as client:
            return await client.submit(**JOB)

    def block(transport: Script) -> str:
        with Client(transport=transport) as client:
            return client.submit(**JOB)

    runs: Sequence[Callable[[Script], str]] = (
        block,
        lambda transport: asyncio.run(submit(transport)),
        lambda transport: trio.run(partial(submit, transport), clock=trio.testing.MockClock(0, 0)),
    )
    for run in runs:
        transport = Script(accepted("one"))
        assert run(transport) == "one"
        [request] = transport.requests
        assert request.url == "http://127.0.0.1:8000/download"
        assert json.loads(request.content) == JOB


async def test_a_lost_answer_does_not_submit_twice(autojump_clock: trio.testing.MockClock) -> None:
    """The key is the same in each try, and the store takes it once."""
    transport = Script(httpx2.ReadError, httpx2.ReadTimeout, problem(502, ""), accepted())
    async with AsyncClient(transport=transport) as client:
        assert await client.submit(**JOB) == "x"
        keys = {request.headers["idempotency-key"] for request in transport.requests}
        assert (len(transport.requests), len(keys)) == (4, 1)
        transport = Script(accepted())
    async with AsyncClient(transport=transport) as client:
        await client.submit(**JOB, idempotency_key="mine")
        assert transport.requests[0].headers["idempotency-key"] == "mine"
        assert "idempotency_key" not in json.loads(transport.requests[0].content)


async def test_a_lost_answer_to_many_does_not_submit_twice(api: Served) -> None:
    class Losing(httpx2.AsyncHTTPTransport):
        lost = False

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            response = await super().handle_async_request(request)
            if not self.lost:
                self.lost = True
                await response.aclose()
                raise httpx2.ReadError("cut")
            return response

    async with AsyncClient(f"http://127.0.0.1:{api.port}", transport=Losing()) as client:
        found = [answer async for answer in client.submit_many([JOB_FIELDS] * 3)]
    assert len({answer.id for answer in found}) == 3
    assert list((await api.store.aggregation_sizes()).values()) == [3]


@pytest.mark.parametrize(
    ("after", "pause_s"),
    [("7", 7), ("Thu, 26 Nov 2020 19:35:09 GMT", 0.25), ("nonsense", 0.25)],
)
async def test_retry_after_is_obeyed(
    autojump_clock: trio.testing.MockClock, after: str, pause_s: float
) -> None:
    async with AsyncClient(transport=Script(unavailable(after), accepted())) as client:
        began = trio.current_time()
        await client.submit(**JOB)
        assert pause_s <= trio.current_time() - began <= max(pause_s, 0.5)


async def test_a_429_is_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    async with AsyncClient(transport=Script(problem(429, ""), accepted())) as client:
        assert await client.submit(**JOB) == "x"


async def test_too_few_answers_to_many_jobs_are_none(autojump_clock: trio.testing.MockClock) -> None:
    transport = Script(httpx2.Response(200, content=b'{"id": "x"}\n'))
    async with AsyncClient(transport=transport) as client:
        with pytest.raises(ClientError, match="did not answer as a downloader does"):
            await anext(client.submit_many([JOB_FIELDS, JOB_FIELDS]))


async def test_a_retry_after_that_is_too_long_is_raised(autojump_clock: trio.testing.MockClock) -> None:
    transport = Script(unavailable(f"{LONGEST_PAUSE_S + 1:.0f}"))
    async with AsyncClient(transport=transport) as client:
        with pytest.raises(ApiProblem) as caught:
            await client.submit(**JOB)
    assert caught.value.status == 503


async def test_tries_end(autojump_clock: trio.testing.MockClock) -> None:
    async with AsyncClient(transport=Script(*[httpx2.ConnectError] * 3), retries=2) as client:
        with pytest.raises(Unreachable, match=r"cannot reach http://127\.0\.0\.1:8000: broken off"):
            await client.submit(**JOB)


async def test_waiting_ends_in_time_whatever_the_service_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    transport = Script(httpx2.ReadTimeout)
    async with AsyncClient(transport=transport) as client:
        with pytest.raises(WaitTimeout, match="1 of the jobs have not ended within 0 s"):
            await client.wait("x", timeout_s=0)
    assert [set(request.extensions["timeout"].values()) for request in transport.requests] == [{LEAST_S}]
    transport = Script(unavailable("30"))
    async with AsyncClient(transport=transport) as client:
        with pytest.raises(ApiProblem, match="No"):
            await client.wait("x", timeout_s=20)
    assert transport.requests[0].extensions["timeout"]["read"] <= 20


async def test_requests_that_may_not_be_repeated_are_not(autojump_clock: trio.testing.MockClock) -> None:
    for lost in (httpx2.ReadError, httpx2.ReadTimeout, problem(504, "")):
        async with AsyncClient(transport=Script(lost)) as client:
            with pytest.raises((Unreachable, ApiProblem)):
                await client.retry("x")
    sent = Script(httpx2.ConnectError, unavailable("1"), accepted())
    async with AsyncClient(transport=sent) as client:
        await client.retry("x")
    assert len(sent.requests) == 3


async def test_lines_that_the_store_did_not_take_are_sent_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def lines(*answers: dict[str, str]) -> httpx2.Response:
        return httpx2.Response(200, text="".join(json.dumps(answer) + "\n" for answer in answers))

    busy, bad = ({"code": code, "detail": "No."} for code in ("store_unavailable", "required"))
    transport = Script(lines({"id": "a"}, busy, bad, busy), lines(busy, {"id": "d"}), lines({"id": "b"}))
    jobs = [cast("JobFields", JOB | {"extra": str(number)}) for number in range(4)]
    async with AsyncClient(transport=transport) as client:
        found: list[Submitted] = [answer async for answer in client.submit_many(jobs)]
    assert [answer.id for answer in found] == ["a", "b", "", "d"]
    assert [answer.job for answer in found] == jobs
    sent = [
        [json.loads(line)["extra"] for line in request.content.splitlines()] for request in transport.requests
    ]
    assert sent == [["0", "1", "2", "3"], ["1", "3"], ["1"]]


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, text="<html>"),
        httpx2.Response(200, json=[]),
        httpx2.Response(200, json={"id": "x"}),
        httpx2.Response(200, text="[" * 100_000),
        httpx2.Response(200, stream=httpx2.ByteStream(b"no gzip"), headers={"Content-Encoding": "gzip"}),
    ],
)
async def test_another_service_is_recognised(answer: httpx2.Response) -> None:
    async with AsyncClient("http://h/api", retries=0, transport=Script(answer)) as client:
        with pytest.raises(ClientError, match="http://h/api/jobs/x did not answer as a downloader does"):
            await client.job("x")


@pytest.mark.parametrize("answer", [httpx2.Response(200, text="data: 1"), httpx2.Response(200, json={})])
async def test_another_service_has_no_events(answer: httpx2.Response) -> None:
    async with AsyncClient("http://h/api", transport=Script(answer)) as client:
        with pytest.raises(ClientError, match="http://h/api/events did not answer as a downloader does"):
            await anext(client.events())


@pytest.mark.parametrize("data", ["nonsense", "[]", "[" * 100_000])
async def test_a_snapshot_that_is_no_object(data: str) -> None:
    answer = httpx2.Response(
        200, text=f"event: snapshot\ndata: {data}\n\n", headers={"Content-Type": "text/event-stream"}
    )
    async with AsyncClient("http://h/api", transport=Script(answer)) as client:
        with pytest.raises(ClientError, match="http://h/api did not answer as a downloader does"):
            await anext(client.events())


async def test_an_error_page_of_a_proxy_is_a_problem_too() -> None:
    async with AsyncClient(transport=Script(httpx2.Response(403, text="<html>"))) as client:
        with pytest.raises(ApiProblem, match=r"//127\.0\.0\.1:8000/jobs/x answered 403 Forb") as caught:
            await client.job("x")
    assert (caught.value.status, caught.value.code) == (403, "")


@pytest.mark.parametrize("errors", [None, 7, "no", ["no"], {"a": 1}, [{"detail": 7}]])
async def test_a_stranger_s_errors_are_no_error_of_ours(errors: object) -> None:
    answer = httpx2.Response(400, json={"code": "bad", "detail": "No.", "errors": errors})
    async with AsyncClient(transport=Script(answer)) as client:
        with pytest.raises(ApiProblem) as caught:
            await client.job("x")
    assert (caught.value.code, caught.value.detail) == ("bad", "No.")


@pytest.mark.parametrize(
    "url", ["", "nonsense", "ftp://h", "http://", "http://[::1", "http://a..b", "http://h:99999"]
)
def test_an_invalid_address(url: str) -> None:
    with pytest.raises(ConfigError, match="must be an http or https URL"):
        Client(url)
