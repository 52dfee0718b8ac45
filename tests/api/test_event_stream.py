"""GET /events: what each listener gets, how soon, and what listeners may cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import trio

from downloader.api.events import Pace
from downloader.config import ApiSettings
from downloader.errors import StoreUnavailable
from downloader.model import Kind, Outcome, Verdict
from downloader.server import Limits
from downloader.store import JobStore, Load, Submission
from servers.api import Served, Serving, read_to_end
from servers.jobs import downloaded, spec_for, submitted
from servers.raw_store import RawStore

QUICK = Pace(sample_s=0.01, alive_s=30)
GET = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
Parsed = tuple[str, Any]


class Stream:
    """The events of one listener, over HTTP/1.0, whose bodies have no frames."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.headers: dict[str, str] = {}
        self._stream = stream
        self._buffer = b""

    async def open(self, headers: dict[str, str]) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        await self._stream.send_all(f"GET /events HTTP/1.0\r\n{lines}\r\n".encode())
        status, *fields = (await self._until(b"\r\n\r\n")).decode().split("\r\n")
        assert status.startswith("HTTP/1.1 200"), status
        self.headers = dict(field.lower().split(": ", 1) for field in fields if field)

    async def event(self, seconds: float = 5) -> Parsed:
        """The next event's name and data."""
        with trio.fail_after(seconds):
            while True:
                fields = dict(
                    line.split(": ", 1) for line in (await self._until(b"\n\n")).decode().splitlines()
                )
                if "data" in fields:
                    return fields["event"], json.loads(fields["data"])

    async def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            data = await self._stream.receive_some()
            assert data, "the stream has ended"
            self._buffer += data
        block, _, self._buffer = self._buffer.partition(end)
        return block

    async def snapshot(self, **wanted: Any) -> dict[str, Any]:
        """The next snapshot, or the next whose aggregations have these `(in flight, pending)`."""
        while True:
            name, data = await self.event()
            if name == "snapshot" and (not wanted or loads(data) == wanted):
                found: dict[str, Any] = data
                return found


def loads(snapshot: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {one["aggr_id"]: (one["in_flight"], one["pending"]) for one in snapshot["aggregations"]}


@asynccontextmanager
async def listening(api: Served, headers: dict[str, str] | None = None) -> AsyncIterator[Stream]:
    async with await api.connect() as connection:
        stream = Stream(connection)
        await stream.open(headers or {})
        yield stream


@pytest.fixture
async def api(serving: Serving) -> Served:
    return await serving(pace=QUICK)


async def submit(store: JobStore, *names: str, limit: int = 1) -> None:
    await store.submit([Submission(spec=spec_for(store, name, aggr_limit=limit)) for name in names])


async def test_a_snapshot_of_the_fleet(api: Served) -> None:
    store = api.store
    facts = {"instance": "h-1-a", "role": "processor", "host": "h", "version": "1.2.3", "started_ms": 5}
    now, counts = {"counters": {"in_flight": 1, "bytes": 7}}, {"downloads_failed|dns": 3, "spawnedWorkers": 9}
    await store.report("h-1-a", "processor", facts | now, 60, counts)
    backends = {
        "kafka": {"healthy": False, "last_error": "no broker"},
        "http": {"healthy": True, "last_error": ""},
    }
    await store.report("h-1-b", "notifier", facts | {"instance": "h-1-b", "backends": backends}, 60)
    await submit(store, "a", "a", "a", "b", limit=2)
    await store.lease(Kind.DOWNLOAD, "me", 2, 10)
    async with listening(api) as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-content-type-options"] == "nosniff"
        snapshot = await stream.snapshot()
    assert snapshot["waiting"]["downloads"].pop("oldest_due_at")
    assert snapshot == {
        "store": True,
        "paused": False,
        "stalled": False,
        "instances": [
            {
                "instance": "h-1-a",
                "role": "processor",
                "host": "h",
                "version": "1.2.3",
                "started_ms": 5,
                "in_flight": 1,
                "unhealthy": [],
                "troubles": {},
            },
            {
                "instance": "h-1-b",
                "role": "notifier",
                "host": "h",
                "version": "1.2.3",
                "started_ms": 5,
                "in_flight": None,
                "unhealthy": [{"backend": "kafka", "error": "no broker"}],
                "troubles": {},
            },
        ],
        "more_instances": 0,
        "aggregations": [
            {
                "aggr_id": "a",
                "pending": 2,
                "in_flight": 1,
                "limit": 2,
                "paused": False,
                "cooling_until": None,
                "pace": None,
            },
            {
                "aggr_id": "b",
                "pending": 0,
                "in_flight": 1,
                "limit": 2,
                "paused": False,
                "cooling_until": None,
                "pace": None,
            },
        ],
        "more_aggregations": 0,
        "in_flight": {"downloads": 2, "callbacks": 0},
        "waiting": {
            "downloads": {
                "pending": 2,
                "in_flight": 2,
                "aggregations": 2,
                "cooling": 0,
                "held": 0,
                "next_due_at": None,
            },
            "callbacks": {
                "pending": 0,
                "in_flight": 0,
                "failed": 0,
                "next_due_at": None,
                "destinations": [],
                "more_destinations": 0,
                "failed_to": [],
            },
        },
        "counters": {"processor": {"bytes": 7, "downloads_failed": 3, "in_flight": 1}, "notifier": {}},
    }


async def test_only_changes_are_sent(api: Served) -> None:
    async with listening(api) as stream:
        assert loads(await stream.snapshot()) == {}
        await submit(api.store, "a")
        await stream.snapshot(a=(0, 1))
        [lease] = (await api.store.lease(Kind.DOWNLOAD, "me", 1, 10)).leases
        await stream.snapshot(a=(1, 0))
        await api.store.settle("me", [downloaded(lease, Outcome(verdict=Verdict.SUCCEEDED), None, 60)])
        await stream.snapshot()
        with pytest.raises(trio.TooSlowError):
            await stream.event(seconds=0.1)


async def test_a_second_listener_gets_the_snapshot_at_once(api: Served) -> None:
    async with listening(api) as first, listening(api) as second:
        assert await first.snapshot() == await second.snapshot()


async def test_a_silent_stream_gets_alive_events(serving: Serving) -> None:
    api = await serving(pace=Pace(sample_s=0.01, alive_s=0.05))
    async with listening(api) as stream:
        await stream.snapshot()
        assert await stream.event() == ("alive", {})
        assert await stream.event() == ("alive", {})
    async with await api.connect() as connection:
        await connection.send_all(GET)
        answer = b""
        with trio.fail_after(20):
            while b"\n: alive\n" not in answer:
                answer += await connection.receive_some()
    assert b"\r\n\r\n" in answer
    assert b"retry: 2000\n\n" in answer


@pytest.mark.slow
async def test_a_stream_outlives_the_limits_of_a_request(serving: Serving) -> None:
    limits = Limits(head_s=0.05, idle_s=0.05, body_grace_s=0.05, send_s=0.05, linger_s=0.05)
    api = await serving(pace=Pace(sample_s=0.01, alive_s=0.1), limits=limits)
    async with listening(api) as stream:
        await stream.snapshot()
        for _ in range(3):
            assert await stream.event() == ("alive", {})


async def test_head_and_other_methods(api: Served) -> None:
    head = await api.client.head("/events")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
    answer = await api.client.post("/events")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.row("H18")
async def test_another_site_s_page_may_not_listen(api: Served) -> None:
    answer = await api.client.get("/events", headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    async with listening(api, {"Sec-Fetch-Site": "same-origin"}) as stream:
        await stream.snapshot()


# -- tokens -------------------------------------------------------------------------------------------


def tokens() -> ApiSettings:
    return ApiSettings.model_validate(
        {
            "tokens": [
                {"name": "all", "token": "a" * 40, "scopes": ["read"]},
                {"name": "some", "token": "b" * 40, "scopes": ["read"], "aggregations": ["mine-*"]},
                {"name": "posts", "token": "c" * 40, "scopes": ["submit"]},
            ]
        }
    )


def bearer(letter: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {letter * 40}"}


async def test_it_takes_a_token_that_reads(serving: Serving) -> None:
    api = await serving(pace=QUICK, settings=tokens())
    assert (await api.client.get("/events")).status_code == 401
    assert (await api.client.get("/events", headers=bearer("x"))).status_code == 401
    assert (await api.client.get("/events", headers=bearer("c"))).status_code == 403
    async with listening(api, bearer("a")) as stream:
        await stream.snapshot()


async def test_a_token_sees_its_aggregations_only(serving: Serving) -> None:
    api = await serving(pace=QUICK, settings=tokens())
    await submit(api.store, "mine-1", "secret-1", "secret-1", "secret-2")
    await api.store.report("one", "processor", {"instance": "one"}, 60, {"bytes": 9})
    async with listening(api, bearer("b")) as some, listening(api, bearer("a")) as every:
        found = await some.snapshot()
        assert loads(found) == {"mine-1": (0, 1)}
        assert found["more_aggregations"] == 0
        assert (found["instances"], found["counters"], found["in_flight"]) == ([], {}, {"downloads": 0})
        assert found["waiting"]["downloads"]["pending"] == 1
        assert found["waiting"]["callbacks"] is None
        assert loads(await every.snapshot()) == {"mine-1": (0, 1), "secret-1": (0, 2), "secret-2": (0, 1)}
        # What it may not see does not show in when it hears something either.
        await submit(api.store, "secret-3")
        await every.snapshot(**{"mine-1": (0, 1), "secret-1": (0, 2), "secret-2": (0, 1), "secret-3": (0, 1)})
        with pytest.raises(trio.TooSlowError):
            await some.event(seconds=0.1)


# -- bounds -------------------------------------------------------------------------------------------


async def test_many_aggregations_are_counted_and_the_busiest_shown(api: Served) -> None:
    await submit(api.store, *(f"a{number}" for number in range(120)), "busy", "busy")
    async with listening(api) as stream:
        found = await stream.snapshot()
    assert len(found["aggregations"]) == 100
    assert found["aggregations"][0]["aggr_id"] == "busy"
    assert found["more_aggregations"] == 21


async def test_one_listener_too_many(serving: Serving) -> None:
    api = await serving(pace=Pace(listeners=2, sample_s=0.01))
    async with listening(api) as first:
        async with listening(api) as second:
            await first.snapshot()
            await second.snapshot()
            answer = await api.client.get("/events")
            assert (answer.status_code, answer.json()["code"]) == (503, "too_many_listeners")
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) > 0
        with trio.fail_after(20):
            while not await has_room(api):  # until the server has seen that the client left
                pass


@pytest.mark.row("H25")
async def test_64_listeners_of_one_client_do_not_lock_out_another(serving: Serving) -> None:
    api = await serving(pace=Pace(sample_s=0.01))
    streams: list[trio.SocketStream] = []
    statuses = Counter[bytes]()
    for address in ("127.0.0.1",) * 64 + ("127.0.0.2",):
        stream = await trio.open_tcp_stream("127.0.0.1", api.port, local_address=address)
        streams.append(stream)
        await stream.send_all(GET)
        statuses[(await stream.receive_some())[9:12]] += 1
    assert statuses == {b"200": 17, b"503": 48}
    for stream in streams:
        await trio.aclose_forcefully(stream)


async def test_without_listeners_the_store_is_not_asked(
    raw: RawStore, serving: Serving, store: JobStore
) -> None:
    """Counted by the server that runs the scripts, not by our own code."""
    api = await serving(pace=QUICK)

    async def asked() -> int:
        stats = raw.command("INFO", "commandstats")
        evals = (stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("fcall", "zrange"))
        return sum(int(calls) for calls in evals)

    with trio.fail_after(20):
        # The backlog of the history is asked for at the start, and then every five minutes.
        while True:
            if await store.history():
                break
            await trio.sleep(0.01)
    before = await asked()
    await trio.sleep(0.1)  # ten looks' time
    assert await asked() == before
    async with listening(api) as stream:
        await stream.snapshot()
        assert await asked() > before
    with trio.fail_after(20):
        while True:  # until the server has seen that the client left
            before = await asked()
            await trio.sleep(0.1)
            if await asked() == before:
                break


NAME = "ü" * 120
"""Six bytes a character in an event: what a client can do to make them large."""


@pytest.mark.slow
async def test_a_listener_that_does_not_read_is_closed_and_others_get_events(serving: Serving) -> None:
    api = await serving(pace=replace(QUICK, listeners=2), limits=Limits(send_s=0.2))
    await submit(api.store, *(f"{number}{NAME}" for number in range(100)))
    async with listening(api) as reading, await api.connect() as deaf:
        await deaf.send_all(GET)
        await reading.snapshot()
        with trio.fail_after(20):
            while not await has_room(api):
                await submit(api.store, "busy")
                await reading.snapshot()
        # What it had not taken is what the buffers of two sockets hold.
        assert 100_000 < len(await read_or_reset(deaf)) < 8_000_000


async def has_room(api: Served) -> bool:
    """Whether one more listener is accepted."""
    return (await api.client.head("/events")).status_code == 200


async def read_or_reset(stream: trio.SocketStream) -> bytes:
    answer = b""
    with suppress(trio.BrokenResourceError):
        while data := await stream.receive_some():
            answer += data
    return answer


# -- the end ------------------------------------------------------------------------------------------


async def test_a_stop_ends_the_stream_at_once(serving: Serving) -> None:
    api = await serving(pace=QUICK, grace_s=60)
    async with await api.connect() as stream:
        await stream.send_all(GET)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        api.stop()
        assert (await read_to_end(stream)).endswith(b"0\r\n\r\n")  # properly, not cut
        with trio.fail_after(20):
            await api.ended.wait()


@pytest.mark.slow
async def test_a_stop_does_not_wait_for_a_listener_that_does_not_read(serving: Serving) -> None:
    api = await serving(pace=QUICK, grace_s=60)
    await submit(api.store, *(f"{number}{NAME}" for number in range(100)))
    async with listening(api) as reading, await api.connect() as deaf:
        await deaf.send_all(GET)
        for _ in range(30):  # 2 MB in all, more than the buffers hold
            await submit(api.store, "busy")
            await reading.snapshot()
        api.stop()
        with trio.fail_after(20):
            await api.ended.wait()
        assert not (await read_or_reset(deaf)).endswith(b"0\r\n\r\n")  # it was blocked, and cut


# -- the store ----------------------------------------------------------------------------------------


class Flaky:
    """A store that does not always answer."""

    def __init__(self, store: JobStore, error: Exception) -> None:
        self._store = store
        self._error = error
        self.works = True

    async def load(self, count: int) -> Load:
        if not self.works:
            raise self._error
        return await self._store.load(count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize(
    "error",
    [StoreUnavailable("it sleeps"), pytest.param(RuntimeError("a bug of ours"), marks=pytest.mark.slow)],
)
async def test_a_store_that_does_not_answer_is_reported(
    serving: Serving, store: JobStore, error: Exception
) -> None:
    flaky = Flaky(store, error)
    api = await serving(pace=QUICK, store=flaky)
    await submit(store, "a")
    async with listening(api) as stream:
        assert (await stream.snapshot())["store"] is True
        flaky.works = False
        lost = await stream.snapshot()
        assert lost["store"] is False
        assert loads(lost) == {"a": (0, 1)}  # as it was known
        flaky.works = True
        assert (await stream.snapshot())["store"] is True
    assert (await api.client.get("/hb")).status_code == 200


async def test_a_store_that_never_answered(serving: Serving, store: JobStore) -> None:
    flaky = Flaky(store, StoreUnavailable("it sleeps"))
    flaky.works = False
    api = await serving(pace=QUICK, store=flaky)
    async with listening(api) as stream:
        found = await stream.snapshot()
    assert (found["store"], found["instances"], found["aggregations"]) == (False, [], [])
    assert found["waiting"] is None


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"host": 1, "version": None, "started_ms": "x", "counters": [], "backends": {"k": 1}},
        {"counters": {"in_flight": "many"}, "backends": ["k"]},
        {"backends": {"k": {"healthy": False}}},
    ],
)
async def test_reports_of_another_version_do_no_harm(api: Served, facts: dict[str, Any]) -> None:
    await api.store.report("i", "notifier", facts, 60)
    async with listening(api) as stream:
        [instance] = (await stream.snapshot())["instances"]
    assert (instance["role"], instance["host"], instance["started_ms"]) == ("notifier", "", 0)


async def test_http_1_0_clients_get_events(api: Served) -> None:
    async with await api.connect() as stream:
        await stream.send_all(b"GET /events HTTP/1.0\r\n\r\n")
        answer = b""
        with trio.fail_after(20):
            while b"event: snapshot" not in answer:
                answer += await stream.receive_some()
        api.stop()
        await read_to_end(stream)
    assert b"transfer-encoding" not in answer.lower()


async def test_the_history_comes_at_once_and_then_as_it_grows(serving: Serving) -> None:
    api = await serving(pace=Pace(sample_s=0.01, history_s=0.02))

    async def next_samples(stream: Stream) -> list[dict[str, Any]]:
        while True:
            name, data = await stream.event()
            if name == "history":
                return data  # type: ignore[no-any-return]

    async with listening(api) as stream:
        [first, *_] = await next_samples(stream)
        assert first["rates"] == {"succeeded": 0, "failed": 0, "bytes": 0, "delivered": 0}
        counts = {"downloads_failed|dns": 3}
        await api.store.report("i", "processor", {}, 60, counts)
        later = [await next_samples(stream)]
        while not any(sample["failures"] for sample in later[-1]):
            later.append(await next_samples(stream))
        assert [len(samples) for samples in later] == [1] * len(later)
    async with listening(api) as stream:
        samples = await next_samples(stream)
        assert samples[0] == first
        assert {"dns": 3} in [sample["failures"] for sample in samples]


@pytest.mark.parametrize("moves", ["end", "bytes"])
async def test_downloads_that_do_not_progress_are_told(serving: Serving, store: JobStore, moves: str) -> None:
    pace = replace(QUICK, history_s=0.01, stall_s=0.2)
    await submitted(store)
    api = await serving(pace=pace)
    async with listening(api) as stream:
        with trio.fail_after(20):
            while not (await stream.snapshot())["stalled"]:
                await submitted(store)  # a snapshot is sent when it has changed
            stalled, ended = True, 0
            while stalled:
                ended += 1
                counts = {"downloads_retried|dns": ended} if moves == "end" else {}
                report = {"running": {"x": ended}} if moves == "bytes" else {}
                await store.report("i", "processor", report, 60, counts)
                stalled = (await stream.snapshot())["stalled"]
