"""Calls that share round trips: an answer that is late, or lost for good, delays no later call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing

from downloader.config import RedisSettings
from downloader.errors import StoreUnavailable
from downloader.store import Keys, StoreClient, asyncio_loop, load_library
from downloader.store.client import LATE_S, MAX_ROWS
from downloader.store.servers import NoAnswer, Servers

TIMEOUT_S = 9


class Silent:
    """Servers that do not answer the first round trip."""

    def __init__(self) -> None:
        self.calls = 0

    async def run(self, shard: int, call: object) -> str:  # noqa: ARG002  # as `Servers`
        self.calls += 1
        if self.calls == 1:
            await trio.sleep(TIMEOUT_S)
            raise NoAnswer("no reply")
        return "answer"


def client_of(servers: object, shards: int) -> StoreClient:
    return StoreClient(
        cast("Any", servers),
        keys=Keys(prefix="p", shards=shards),
        settings=RedisSettings(timeout=TIMEOUT_S),
        library=load_library(),
        timed=lambda *_: None,
    )


@asynccontextmanager
async def opened(shards: int) -> AsyncIterator[tuple[StoreClient, Silent]]:
    """A client with a call that is in flight."""
    servers = Silent()
    client = client_of(servers, shards)

    async def lost() -> None:
        with pytest.raises(StoreUnavailable):
            await client.run("lease", 0, {})

    async with trio.open_nursery() as nursery, client.joined.running():
        nursery.start_soon(lost)
        await trio.testing.wait_all_tasks_blocked()
        yield client, servers


async def test_a_late_answer_delays_no_later_call(autojump_clock: trio.testing.MockClock) -> None:
    async with opened(shards=1) as (client, servers):
        autojump_clock.jump(LATE_S + 0.001)
        begun_at = trio.current_time()
        assert await client.run("lease", 0, {}) == "answer"
        assert (servers.calls, trio.current_time()) == (2, begun_at)


@pytest.mark.parametrize(("shards", "late_s"), [(1, LATE_S / 2), (2, LATE_S * 2)])
async def test_calls_wait_for_an_answer_that_is_not_late_and_on_a_cluster(
    autojump_clock: trio.testing.MockClock, shards: int, late_s: float
) -> None:
    async with opened(shards) as (client, servers):
        autojump_clock.jump(late_s)
        with pytest.raises(StoreUnavailable):
            await client.run("lease", 0, {})
        assert servers.calls == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("'NoneType' object is not callable", StoreUnavailable), ("unhashable type: 'list'", TypeError)],
)
async def test_asyncio_s_error_of_a_lost_connection_is_no_answer(
    text: str, expected: type[Exception]
) -> None:
    async def call(_: object) -> None:
        raise TypeError(text)

    servers = Servers([object()], cast("Any", None), timeout_s=TIMEOUT_S)
    async with asyncio_loop():
        with pytest.raises(expected):
            await servers.run(0, call)


async def test_a_part_of_a_bulk_without_an_answer_leaves_the_parts_before_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Breaking:
        def __init__(self, failing: int) -> None:
            self.calls, self.failing = 0, failing

        async def run(self, shard: int, call: object) -> list[str]:  # noqa: ARG002  # as `Servers`
            await trio.lowlevel.checkpoint()
            self.calls += 1
            if self.calls == self.failing:
                raise NoAnswer("lost")
            return ["answer"] * MAX_ROWS

    async def entries(*, failing: int) -> list[str | None]:
        client = client_of(Breaking(failing), shards=1)
        async with client.joined.running():
            return await client.run_rows("submit", {}, rows, durable=True)

    rows = [{"id": f"{number:014d}"} for number in range(3 * MAX_ROWS)]
    assert await entries(failing=0) == ["answer"] * len(rows)
    assert await entries(failing=2) == ["answer"] * MAX_ROWS + [None] * 2 * MAX_ROWS
    with pytest.raises(StoreUnavailable):
        await entries(failing=1)
