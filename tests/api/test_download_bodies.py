"""POST /download over sockets: bodies, headers, the store's answers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from downloader.api.intake import MAX_BATCH, MAX_BYTES, MAX_EXTRA, MAX_WAITING, WAIT_S, Intake
from downloader.config import ApiSettings, RedisSettings
from downloader.model import JobSpec
from downloader.store import Accepted, JobStore, StoreUnavailable, Submission, open_store
from servers.api import JOB, Served, Serving
from servers.hostile_urls import HOSTILE_URLS
from servers.valkey import Valkey

PROBLEM = "application/problem+json"


def body(**changes: Any) -> bytes:
    return json.dumps(JOB | changes).encode()


async def curl(*words: str) -> tuple[int, str]:
    """`curl`'s answer as `(status, body)`."""
    done = await trio.run_process(
        ["curl", "-sS", "--max-time", "10", "--noproxy", "*", "-w", "\n%{http_code}", *words],
        capture_stdout=True,
        stderr=subprocess.STDOUT,
    )
    text, _, status = done.stdout.decode().rpartition("\n")
    return int(status), text


async def test_a_job_is_taken_in(api: Served) -> None:
    answer = await api.post(body())
    assert answer.status_code == 201
    job_id = answer.json()["id"]
    assert answer.json() == {"id": job_id}
    assert answer.headers["location"] == f"/jobs/{job_id}"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    view = await api.store.get(job_id)
    assert view is not None
    assert view.spec.url == JOB["url"]
    assert view.download.state == "pending"


@pytest.mark.parametrize("field", ["url", "callback_url", "callback_dst", "callback_error_dst", "aggr_proxy"])
@pytest.mark.row("H7")
async def test_a_hostile_url_is_refused_in_any_field(api: Served, field: str) -> None:
    more = {"callback_error_type": "http"} if field == "callback_error_dst" else {}
    for url in HOSTILE_URLS:
        answer = await api.post(body(**{field: url}, **more))
        assert (answer.status_code, answer.json().get("field")) == (422, field), url


@pytest.mark.slow
async def test_curl_with_the_content_type_it_sends(api: Served, tmp_path: Any) -> None:
    url = f"http://127.0.0.1:{api.port}/download"
    status, text = await curl("-d", body().decode(), url)
    assert status == 201
    assert await api.store.get(json.loads(text)["id"]) is not None
    status, _ = await curl("--json", body().decode(), url)
    assert status == 201
    status, _ = await curl("-H", "Transfer-Encoding: chunked", "-d", body().decode(), url)
    assert status == 201
    large = tmp_path / "large"
    large.write_bytes(b'{"extra": "' + b"x" * 2_000_000 + b'"}')
    for extra in (
        (),
        ("-H", "Transfer-Encoding: chunked"),
        ("-H", "Expect:"),
        ("-H", "Expect: 100-continue"),
    ):
        status, text = await curl(*extra, "--data-binary", f"@{large}", url)
        assert (status, json.loads(text)["code"]) == (413, "too_large"), extra


BODIES: Sequence[tuple[bytes, str]] = [
    (b"", "bad_json"),
    (b" ", "bad_json"),
    (b"{", "bad_json"),
    (b"{} x", "bad_json"),
    (b"{'a': 1}", "bad_json"),
    (b'{"a": 01}', "bad_json"),
    (b'{"a": "\n"}', "bad_json"),
    (b"aggr_id=x&url=http%3A%2F%2Fexample.org", "bad_json"),
    (b"\xef\xbb\xbf{}", "bad_json"),
    (b'{"a": ' + b"1" * 5000 + b"}", "bad_json"),
    (b"[]", "not_an_object"),
    (b"null", "not_an_object"),
    (b'"text"', "not_an_object"),
    (b"1", "not_an_object"),
    (b'{"a": "\xff"}', "bad_encoding"),
    (b"\xff\xfe{\x00}\x00", "bad_encoding"),
    (b'{"a": "\\ud800"}', "bad_encoding"),
    (b'{"a": ["\\uDC00x"]}', "bad_encoding"),
    (b'{"\\ud800": 1}', "bad_encoding"),
    (b'{"a": NaN}', "bad_number"),
    (b'{"a": -Infinity}', "bad_number"),
    (b'{"a": 1e400}', "bad_number"),
    (b'{"a": [-1e400]}', "bad_number"),
    (b'{"a": 1, "a": 2}', "duplicate_key"),
    (b'{"x": {"a": 1, "\\u0061": 2}}', "duplicate_key"),
    (b'{"a": ' + b"[" * 100_000, "too_deep"),
    (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "too_deep"),
]


@pytest.mark.parametrize(("data", "code"), BODIES, ids=lambda value: repr(value)[:30])
@pytest.mark.row("H16")
async def test_bodies_that_are_no_json_object(api: Served, data: bytes, code: str) -> None:
    answer = await api.post(data)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["code"] == code
    assert answer.json()["status"] == 400
    assert (await api.post(body())).status_code == 201


async def test_whole_surrogate_pairs_are_text(api: Served) -> None:
    answer = await api.post(json.dumps(JOB | {"extra": "\N{GRINNING FACE}"}).encode())
    assert answer.status_code == 201
    view = await api.store.get(answer.json()["id"])
    assert view is not None
    assert view.spec.extra == "\N{GRINNING FACE}"


async def test_a_field_at_fault(api: Served) -> None:
    answer = await api.post(body(aggr_limit=0))
    assert answer.status_code == 422
    assert answer.headers["content-type"] == PROBLEM
    assert answer.headers["x-content-type-options"] == "nosniff"
    problem = answer.json()
    detail = problem.pop("detail")
    assert detail.startswith("aggr_limit should be")
    assert problem == {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "code": "out_of_range",
        "field": "aggr_limit",
        "errors": [{"code": "out_of_range", "detail": detail, "field": "aggr_limit"}],
    }


async def test_the_limit_of_a_body(api: Served) -> None:
    job = body(extra="")
    full = body(extra="x" * (256 * 1024 - len(job)))
    assert (await api.post(full)).status_code == 201
    assert (await api.post(full + b" ")).status_code == 413


async def test_a_large_chunked_body(api: Served) -> None:
    async def pieces() -> Any:
        for _ in range(32):
            yield b"x" * 65536

    answer = await api.client.post("/download", content=pieces())
    assert answer.status_code == 413
    assert answer.json()["code"] == "too_large"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, 201),
        ({"Content-Type": "text/plain"}, 201),
        ({"X-Aggr": "whatever"}, 201),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://elsewhere.example"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost:8000"}, 201),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "http://localhost"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "null", "Host": ""}, 403),
    ],
    ids=str,
)
@pytest.mark.row("H18")
async def test_other_sites_are_refused(api: Served, headers: dict[str, str], status: int) -> None:
    answer = await api.post(body(), {"Host": "localhost:8000"} | headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    if status == 403:
        assert answer.json()["code"] == "cross_site"


async def test_idempotency_key(api: Served) -> None:
    first = await api.post(body(), {"Idempotency-Key": "one"})
    again = await api.post(body(), {"Idempotency-Key": "one"})
    other = await api.post(body(), {"Idempotency-Key": "two"})
    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 201)
    assert first.json() == again.json() != other.json()
    replayed = [answer.headers.get("idempotent-replayed") for answer in (first, again, other)]
    assert replayed == [None, "true", None]
    assert again.headers["location"] == first.headers["location"]
    assert await api.store.aggregation_sizes() == {"example.org": 2}
    conflict = await api.post(body(aggr_limit=5), {"Idempotency-Key": "one"})
    assert conflict.status_code == 422
    assert (conflict.json()["code"], conflict.json()["field"]) == ("idempotency_conflict", "Idempotency-Key")


async def test_a_job_whose_extra_is_written_otherwise_is_a_repetition(api: Served) -> None:
    answers = [
        await api.post(body()[:-1] + b', "extra": %b}' % extra, {"Idempotency-Key": "one"})
        for extra in (b'{"a": 1, "b": 2}', b'{"b":2,"a":1}', b'{"a": 1, "b": 3}')
    ]
    assert [answer.status_code for answer in answers] == [201, 201, 422]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "\xfc"])
async def test_malformed_idempotency_keys(api: Served, key: str) -> None:
    answer = await api.client.post(
        "/download", content=body(), headers=[(b"Idempotency-Key", key.encode("latin-1"))]
    )
    assert answer.status_code == 400
    assert answer.json()["code"] == "idempotency_key"


@pytest.mark.slow
async def test_503_while_the_store_is_away(serving: Serving, deps: Any) -> None:
    with Valkey() as server:
        settings = RedisSettings(url=server.url, key_prefix="away", timeout=1)
        async with open_store(settings) as store:
            api = await serving(store=store)
            assert (await api.post(body())).status_code == 201
            server.kill()
            for answer in (await api.post(body()), await api.client.get("/jobs/00000000000000")):
                assert answer.status_code == 503
                assert answer.json()["code"] == "store_unavailable"
                assert int(answer.headers["retry-after"]) > 0
            ready = await api.client.get("/health/ready")
            assert (ready.status_code, ready.json()["store"]) == (503, False)
            assert (await api.client.get("/health/live")).status_code == 200
            assert (await api.client.get("/hb")).status_code == 200


class Counting:
    """A slow store that counts calls."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.new_id = store.new_id
        self.sizes: list[int] = []
        self.entered = trio.Event()
        self.go = trio.Event()

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        self.sizes.append(len(submissions))
        self.entered.set()
        await self.go.wait()
        return await self._store.submit(submissions)


def submission(store: JobStore, aggr_id: str = "a") -> Submission:
    spec = JobSpec(id=store.new_id(aggr_id), aggr_id=aggr_id, aggr_limit=1, url="http://x/")
    return Submission(spec=spec)


async def counted(store: JobStore, nursery: trio.Nursery) -> tuple[Intake, Counting]:
    """A running intake, and the slow store of the intake."""
    counting = Counting(store)
    intake = Intake(counting)  # type: ignore[arg-type]  # submit is all that it uses
    await nursery.start(intake.run)
    return intake, counting


async def test_jobs_that_arrive_together_share_a_call(store: JobStore, nursery: trio.Nursery) -> None:
    intake, counting = await counted(store, nursery)
    answers: list[tuple[Accepted, str]] = []

    async def submit(aggr_id: str) -> None:
        answers.append(await intake.submit(submission(store, aggr_id)))

    async with trio.open_nursery() as clients:
        clients.start_soon(submit, "a0")
        await counting.entered.wait()
        for number in range(1, 11):
            clients.start_soon(submit, f"a{number}")
        await wait_all_tasks_blocked()
        counting.go.set()
    assert counting.sizes == [1, 10]
    assert {why for why, _ in answers} == {Accepted.NEW}
    assert len({job_id for _, job_id in answers}) == 11
    nursery.cancel_scope.cancel()


async def test_a_batch_is_bounded(store: JobStore, nursery: trio.Nursery) -> None:
    intake, counting = await counted(store, nursery)
    async with trio.open_nursery() as clients:
        for _ in range(MAX_BATCH + 2):
            clients.start_soon(intake.submit, submission(store))
        counting.go.set()
    assert max(counting.sizes) == MAX_BATCH
    assert sum(counting.sizes) == MAX_BATCH + 2
    nursery.cancel_scope.cancel()


async def test_a_cancelled_submission_is_not_in_the_batch(store: JobStore, nursery: trio.Nursery) -> None:
    intake, counting = await counted(store, nursery)
    async with trio.open_nursery() as clients:
        clients.start_soon(intake.submit, submission(store))
        await counting.entered.wait()
        with trio.CancelScope() as impatient:
            impatient.cancel()
            await intake.submit(submission(store))
        clients.start_soon(intake.submit, submission(store))
        await wait_all_tasks_blocked()
        counting.go.set()
    assert counting.sizes == [1, 1]
    nursery.cancel_scope.cancel()


async def test_too_many_that_wait_are_refused_at_once(store: JobStore, nursery: trio.Nursery) -> None:
    intake, counting = await counted(store, nursery)
    async with trio.open_nursery() as clients:
        clients.start_soon(intake.submit, submission(store))
        await counting.entered.wait()
        one = submission(store)
        for _ in range(MAX_WAITING):
            clients.start_soon(intake.submit, one)
        await wait_all_tasks_blocked()
        with pytest.raises(StoreUnavailable):
            await intake.submit(one)
        clients.cancel_scope.cancel()
    nursery.cancel_scope.cancel()


async def test_a_job_waits_for_the_store_for_a_bounded_time(autojump_clock: MockClock) -> None:
    class Hanging:
        """A store that never answers."""

        async def submit(self, _submissions: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
            await trio.sleep_forever()
            raise AssertionError

    intake = Intake(Hanging())  # type: ignore[arg-type]  # submit is all that it uses
    async with trio.open_nursery() as nursery:
        await nursery.start(intake.run)
        with trio.fail_after(10 * WAIT_S), pytest.raises(StoreUnavailable):
            await intake.submit(Submission(spec=JobSpec(id="1", aggr_id="a", aggr_limit=1, url="http://x/")))
        nursery.cancel_scope.cancel()


@pytest.mark.row("F27")
async def test_received_bytes_have_a_budget(store: JobStore) -> None:
    intake = Intake(store)
    with intake.room("10.0.0.1") as keep, intake.room("10.0.0.2") as other, intake.room("") as unknown:
        keep(MAX_BYTES // 2)
        with intake.room("10.0.0.1") as second, pytest.raises(StoreUnavailable):
            second(1)  # one client has half of it at the most
        other(MAX_BYTES // 2)
        with pytest.raises(StoreUnavailable):
            unknown(1)
        keep(MAX_BYTES // 2 - 1)
        unknown(1)
    with intake.room("10.0.0.1") as keep, intake.room("10.0.0.2") as other:
        keep(MAX_BYTES // 2)
        other(MAX_BYTES // 2)


@pytest.mark.row("F27")
async def test_wide_characters_count_as_what_they_take_in_memory(serving: Serving, store: JobStore) -> None:
    counting = Counting(store)
    api = await serving(store=counting)
    # Python stores four bytes for each character of a text that has one such character.
    text = "\U0001f600" + "x" * 250_000
    data = json.dumps(JOB | {"extra": text}, ensure_ascii=False).encode()
    head = b"POST /download HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data)
    answers: list[bytes] = []

    async def post() -> None:
        async with await api.connect() as stream:
            await stream.send_all(head + data)
            answers.append((await stream.receive_some(100))[9:12])
            counting.go.set()

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_BYTES // 2 // (4 * len(text)) + 2):
            nursery.start_soon(post)
    assert set(answers) == {b"201", b"503"}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/download", "/downloads"])
async def test_f27_half_a_body_counts_until_its_client_leaves(api: Served, path: str) -> None:
    most = ApiSettings().max_body
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {most}\r\n\r\n".encode()
    request = head + b" " * (most - 1)
    with trio.fail_after(30):
        async with AsyncExitStack() as clients:
            for _ in range(MAX_BYTES // 2 // most + 1):
                stream = await clients.enter_async_context(await api.connect())
                await stream.send_all(request)
            while (answer := await api.post(body())).status_code == 201:
                pass
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        while (await api.post(body())).status_code != 201:
            pass


async def test_large_jobs_go_in_small_batches(store: JobStore, nursery: trio.Nursery) -> None:
    intake, counting = await counted(store, nursery)
    large = replace(submission(store).spec, extra="x" * (MAX_EXTRA // 3))
    async with trio.open_nursery() as clients:
        clients.start_soon(intake.submit, submission(store))
        await counting.entered.wait()
        for _ in range(7):
            clients.start_soon(intake.submit, Submission(spec=replace(large, id=store.new_id("a"))))
        await wait_all_tasks_blocked()
        counting.go.set()
    assert counting.sizes == [1, 3, 3, 1]
    nursery.cancel_scope.cancel()


async def test_a_client_that_disconnects_affects_no_other(serving: Serving, store: JobStore) -> None:
    counting = Counting(store)
    api = await serving(store=counting)
    data = body()
    answers: list[int] = []

    async def post() -> None:
        answers.append((await api.post(data)).status_code)

    async with trio.open_nursery() as nursery:
        async with await api.connect() as leaving:
            head = b"POST /download HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data)
            await leaving.send_all(head + data)
            await counting.entered.wait()
        nursery.start_soon(post)
        counting.go.set()
    assert answers == [201]
    assert counting.sizes == [1, 1]
