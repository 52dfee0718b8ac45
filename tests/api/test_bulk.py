"""`POST /downloads`: many jobs as NDJSON, with a response line for each line as soon as the line arrives."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import httpx2
import pytest
import trio
import trio.testing
from pydantic import SecretStr

from downloader.api import Api, ApiDeps
from downloader.api.auth import CALLER
from downloader.api.intake import MAX_BATCH, MAX_BYTES, Intake
from downloader.api.routes.downloads import STEP_LINES, Lines, submit_lines
from downloader.config import ApiSettings, TokenSettings
from downloader.server import PIECE_BYTES, Gone, Limits, Message
from downloader.store import Accepted, JobStore, StoreUnavailable, Submission
from servers.api import JOB, Served, Serving, read_to_end

HEAD = b"POST /downloads HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


def line(**changes: Any) -> bytes:
    return json.dumps(JOB | changes).encode() + b"\n"


def answers(body: bytes | bytearray) -> list[dict[str, Any]]:
    return [json.loads(text) for text in body.splitlines()]


async def post(api: Served, content: bytes | AsyncIterator[bytes]) -> list[dict[str, Any]]:
    answer = await api.client.post("/downloads", content=content)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    return answers(answer.content)


async def test_line_for_line_in_order(api: Served) -> None:
    given = [
        line(extra="1"),
        b"\n",
        b" \t\r\n",
        b"{nonsense\n",
        line(aggr_limit=0),
        b"[1]\n",
        line(extra="2").replace(b"\n", b"\r\n"),
        line(extra="x" * 300_000),
        line(callback_type="kafka"),
        b'{"a": ' + b"[" * 200 + b"\n",
        b"\xff\n",
        line(extra="3")[:-1],  # the last one needs no end
    ]
    found = await post(api, b"".join(given))
    codes = [one.get("code", "ok") for one in found]
    assert codes == [
        *("ok", "bad_json", "out_of_range", "not_an_object", "ok", "too_large", "unknown_backend"),
        *("too_deep", "bad_encoding", "ok"),
    ]
    assert found[2] == {
        "code": "out_of_range",
        "detail": "aggr_limit should be greater than or equal to 1.",
        "field": "aggr_limit",
        "errors": [
            {
                "code": "out_of_range",
                "detail": "aggr_limit should be greater than or equal to 1.",
                "field": "aggr_limit",
            }
        ],
    }
    views = [await api.store.get(one["id"]) for one in found if "id" in one]
    assert [view.spec.extra if view else None for view in views] == ["1", "2", "3"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b" "])
async def test_no_job_at_all(api: Served, content: bytes) -> None:
    assert await post(api, content) == []


async def test_idempotency_keys(api: Served) -> None:
    one, other = line(idempotency_key="k"), line(idempotency_key="k", aggr_limit=5)
    first, again, conflict, unkeyed = await post(api, one + one + other + line())
    assert again == first | {"replayed": True}
    assert first["id"] != unkeyed["id"]
    assert (conflict["code"], conflict["field"]) == ("idempotency_conflict", "idempotency_key")
    assert await post(api, one) == [again]
    for key in ("", "x" * 256, "ü", 5, ["k"]):
        (bad,) = await post(api, line(idempotency_key=key))
        assert (bad["code"], bad["field"]) == ("idempotency_key", "idempotency_key")


async def test_answers_come_while_lines_are_sent(api: Served) -> None:
    """Both ways at once: the second line is sent only when the first has been answered."""
    async with await api.connect() as stream:
        await stream.send_all(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        received = b""
        for number in range(1, 4):
            data = line()
            await stream.send_all(b"%x\r\n%s\r\n" % (len(data), data))
            with trio.fail_after(20):
                while received.count(b'{"id"') < number:
                    received += await stream.receive_some()
        await stream.send_all(b"0\r\n\r\n")
        received += await read_to_end(stream)
    assert received.endswith(b"0\r\n\r\n")


class Watched:
    """A store that records how many jobs each call has, and may be unreachable."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.new_id = store.new_id
        self.sizes: list[int] = []
        self.away = False
        self.away_after: int | None = None
        """Calls."""

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        if len(self.sizes) == self.away_after:
            self.away = True
        self.sizes.append(len(submissions))
        if self.away:
            raise StoreUnavailable("away")
        return await self._store.submit(submissions)


async def test_jobs_that_arrive_together_are_one_call(serving: Serving, store: JobStore) -> None:
    watched = Watched(store)
    api = await serving(store=watched)
    data = line() * 100
    assert len(data) < PIECE_BYTES
    await api.say(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
    assert sum(watched.sizes) == 100
    assert len(watched.sizes) <= 3  # the head may come alone


async def test_a_batch_is_bounded(serving: Serving, store: JobStore) -> None:
    watched = Watched(store)
    api = await serving(store=watched)
    assert len(await post(api, line() * 3 * MAX_BATCH)) == 3 * MAX_BATCH
    assert max(watched.sizes) <= MAX_BATCH


async def test_the_store_goes_away_in_the_middle(serving: Serving, store: JobStore) -> None:
    watched = Watched(store)
    api = await serving(store=watched)
    async with await api.connect() as stream:
        data = line()
        await stream.send_all(HEAD + b"Content-Length: %d\r\n\r\n" % (3 * len(data)) + data)
        received = b""
        while b'{"id"' not in received:
            received += await stream.receive_some()
        watched.away = True
        await stream.send_all(data + b"{}\n" + data[:-3])
        received += await read_to_end(stream)
    body = received.partition(b"\r\n\r\n")[2]
    assert body.count(b'{"id"') == 1
    assert body.count(b"store_unavailable") == 1
    assert body.replace(b" ", b"").count(b'"field":"aggr_id","errors"') == 1


class OneShardGone(Watched):
    """A store of several shards, of which the shard of every second job does not respond."""

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        gone = [(Accepted.UNAVAILABLE, each.spec.id) for each in submissions[1::2]]
        taken = await self._store.submit(submissions[::2])
        return [pair for pairs in zip_longest(taken, gone) for pair in pairs if pair]


@pytest.mark.row("F22")
async def test_a_job_whose_shard_is_gone_is_not_accepted(serving: Serving, store: JobStore) -> None:
    api = await serving(store=OneShardGone(store))
    lines = await post(api, 6 * line())
    assert ["id" in each for each in lines] == [True, False] * 3
    assert {each["code"] for each in lines[1::2]} == {"store_unavailable"}


@pytest.mark.row("F22")
async def test_posts_that_share_a_call_with_others_whose_shard_is_gone(
    serving: Serving, store: JobStore
) -> None:
    api = await serving(store=OneShardGone(store))
    answers: list[httpx2.Response] = []

    async def submit() -> None:
        answers.append(await api.client.post("/download", json=JOB))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(submit)
    taken = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    assert {answer.status_code for answer in answers} == {201, 503}
    assert list((await store.aggregation_sizes()).values()) == [len(taken)]


ADDRESS = "10.0.0.1"

LEFT: Message = {"type": "http.disconnect"}


def chunk(body: bytes) -> Message:
    """A part of a body, with more to follow."""
    return {"type": "http.request", "body": body, "more_body": True}


async def serve_messages(deps: ApiDeps, intake: Intake, messages: Iterator[Message], sent: bytearray) -> None:
    """Serve a request of which these messages arrive; the bodies that are sent are added to `sent`.

    A generator of messages runs on when the request waits for the next one.
    """

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.extend(message.get("body", b""))

    scope: Message = {"client": (ADDRESS, 1), "headers": [], CALLER: None}
    context = replace(Api(deps).context, intake=intake)
    await submit_lines.handler(context, scope, receive, send)


async def test_an_incomplete_line_is_dropped_when_its_client_disconnects(
    deps: ApiDeps, store: JobStore
) -> None:
    intake, sent = Intake(store), bytearray()
    messages = iter([chunk(line() + line().rstrip()), LEFT])
    with pytest.raises(Gone):
        await serve_messages(deps, intake, messages, sent)
    assert [list(answer) for answer in answers(sent)] == [["id"]]
    assert list((await store.aggregation_sizes()).values()) == [1]
    with intake.room(ADDRESS) as keep:
        keep(MAX_BYTES // 2)  # all that one client may have


async def test_between_two_chunks_only_the_line_that_has_begun_is_kept(
    deps: ApiDeps, store: JobStore
) -> None:
    intake = Intake(store)

    def messages() -> Iterator[Message]:
        yield chunk(line() + b"12345")
        with intake.room(ADDRESS) as keep:
            keep(MAX_BYTES // 2 - 5)
            with pytest.raises(StoreUnavailable):
                keep(MAX_BYTES // 2 - 4)
        yield LEFT

    with pytest.raises(Gone):
        await serve_messages(deps, intake, messages(), bytearray())


async def test_a_client_whose_budget_is_used_up(deps: ApiDeps, store: JobStore) -> None:
    """It is answered 503 before the response has begun; afterwards the connection is closed."""
    intake, sent = Intake(store), bytearray()
    with intake.room(ADDRESS) as keep:
        keep(MAX_BYTES // 2)
        with pytest.raises(StoreUnavailable):
            await serve_messages(deps, intake, iter([chunk(line())]), sent)
        assert not sent

        def messages() -> Iterator[Message]:
            keep(0)
            yield chunk(line())
            keep(MAX_BYTES // 2)
            yield chunk(line())

        with pytest.raises(Gone):
            await serve_messages(deps, intake, messages(), sent)
    assert [list(answer) for answer in answers(sent)] == [["id"]]


async def test_jobs_accepted_before_the_store_goes_away_keep_their_ids(
    deps: ApiDeps, store: JobStore
) -> None:
    watched, sent = Watched(store), bytearray()
    watched.away_after = 1
    messages = iter([chunk(line() * (MAX_BATCH + 1)), LEFT])
    with pytest.raises(Gone):
        await serve_messages(replace(deps, store=watched), Intake(watched), messages, sent)  # type: ignore[arg-type]  # submit is all that it uses
    *accepted, refused = answers(sent)
    assert len({answer["id"] for answer in accepted}) == MAX_BATCH
    assert refused["code"] == "store_unavailable"


@pytest.mark.row("H25")
async def test_a_chunk_of_the_shortest_lines_does_not_hold_up_others(deps: ApiDeps, store: JobStore) -> None:
    count, turns, sent = 20 * MAX_BATCH, 0, bytearray()

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        with pytest.raises(Gone):
            await serve_messages(deps, Intake(store), iter([chunk(b"1\n" * count), LEFT]), sent)
        nursery.cancel_scope.cancel()
    assert turns >= count // STEP_LINES // 2
    assert sent.count(b"not_an_object") == count


async def test_a_client_may_pause_between_two_lines(serving: Serving) -> None:
    """The limit between two parts of a body is 0 here."""
    api = await serving(limits=Limits(body_grace_s=0))
    async with await api.connect() as stream:
        data = line()
        await stream.send_all(HEAD + b"Content-Length: %d\r\n\r\n" % (2 * len(data)) + data)
        received = b""
        with trio.fail_after(20):
            while b'{"id"' not in received:
                received += await stream.receive_some()
            await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.send_all(data)
        received += await read_to_end(stream)
    assert received.count(b'{"id"') == 2


async def test_a_malformed_chunk_behind_answers_ends_the_connection(
    serving: Serving, capfd: pytest.CaptureFixture[str]
) -> None:
    """The response has begun, so that no problem can be answered; nor is it an error of ours."""
    api = await serving()
    data = line()
    async with await api.connect() as stream:
        await stream.send_all(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(data), data))
        received = b""
        with trio.fail_after(20):
            while b'{"id"' not in received:
                received += await stream.receive_some()
        await stream.send_all(b"ZZ\r\n")
        received += await read_to_end(stream)
    assert received.count(b"HTTP/1.1 ") == 1
    assert "api.failed" not in "".join(capfd.readouterr())


async def test_a_client_that_leaves_in_the_middle(
    serving: Serving, store: JobStore, capfd: pytest.CaptureFixture[str]
) -> None:
    api = await serving(limits=Limits(connections=2))
    data = line()
    for _ in range(5):
        async with await api.connect() as stream:
            await stream.send_all(HEAD + b"Content-Length: %d\r\n\r\n" % (3 * len(data)) + data + data[:9])
            assert await stream.receive_some()
    with trio.fail_after(20):
        while (await api.client.get("/hb")).status_code != 200:
            pass
    assert list((await store.aggregation_sizes()).values()) == [5]
    assert "api.failed" not in "".join(capfd.readouterr())


async def send_until_cut(stream: trio.SocketStream, chunk: bytes) -> int:
    """Send without reading; returns how much was sent."""
    sent = 0
    with trio.fail_after(30):
        try:
            while True:
                await stream.send_all(chunk)
                sent += len(chunk)
        except trio.BrokenResourceError:
            return sent


@pytest.mark.slow
async def test_a_client_that_does_not_read_its_answers_is_not_read(serving: Serving, store: JobStore) -> None:
    """What the server takes in is bounded by what fits into the sockets, and then it is cut off."""
    watched = Watched(store)
    api = await serving(store=watched, limits=Limits(send_s=1))
    chunk = line(aggr_limit=0) * 400  # answered without the store
    async with await api.connect() as stream:
        await stream.send_all(HEAD + b"Content-Length: 100000000000\r\n\r\n")
        sent = await send_until_cut(stream, chunk)
        assert sent < 64 * 1024**2
    assert (await api.client.get("/hb")).status_code == 200


async def test_tokens(serving: Serving) -> None:
    token = TokenSettings(
        name="shop",
        token=SecretStr("0123456789abcdef"),
        scopes=["submit"],
        aggregations=["shop-*"],
    )
    api = await serving(settings=ApiSettings(tokens=[token]))
    content = line(aggr_id="shop-1") + line(aggr_id="other")
    assert (await api.client.post("/downloads", content=content)).status_code == 401
    answer = await api.client.post(
        "/downloads", content=content, headers={"Authorization": "Bearer 0123456789abcdef"}
    )
    allowed, refused = answers(answer.content)
    assert "id" in allowed
    assert (refused["code"], refused["field"]) == ("forbidden", "aggr_id")


def test_a_line_that_never_ends_is_not_kept() -> None:
    lines = Lines(10)
    assert list(lines.feed(b"12345\n12345678901", last=False)) == [b"12345"]
    for _ in range(1000):
        assert list(lines.feed(b"x" * 1000, last=False)) == []
        assert lines.kept <= 10
    assert list(lines.feed(b"x\n1234567890\r\n1234567890", last=True)) == [
        None,
        b"1234567890\r",
        b"1234567890",
    ]
