"""Calls to the servers of a store: how seeds share a time limit, and how one call cancels another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import trio
import trio.testing

from downloader.store import asyncio_loop
from downloader.store.servers import NoAnswer, Servers

TIMEOUT_S = 3.0


def servers_of(*clients: str) -> Servers:
    def open_node(host: str, port: int) -> Any:
        raise AssertionError((host, port))

    return Servers(clients, open_node, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    ("seeds", "takes_s"), [(("silent", "silent", "live"), 2.0), (("dead", "silent", "live"), 1.5)]
)
async def test_dead_seeds_and_a_live_one_share_the_time_of_a_call(
    autojump_clock: trio.testing.MockClock, seeds: tuple[str, ...], takes_s: float
) -> None:
    async def call(client: str) -> str:
        if client == "dead":
            raise ConnectionRefusedError
        if client == "silent":
            await asyncio.sleep(3600)
        return client

    async with asyncio_loop():
        servers, began = servers_of(*seeds), trio.current_time()
        assert await servers.run(0, call) == "live"
        assert trio.current_time() - began == pytest.approx(takes_s)
        assert await servers.run(0, call) == "live"
        assert trio.current_time() - began == pytest.approx(takes_s)


async def test_a_call_that_waits_for_what_another_cancels_gets_no_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """redis-py: two calls close a connection and wait for the same future, and the first runs out of time."""
    async with asyncio_loop() as loop, trio.open_nursery() as nursery:
        servers, closed = servers_of("client"), loop.create_future()

        async def close(_client: str) -> None:
            await closed

        async def close_within_the_limit() -> None:
            with pytest.raises(NoAnswer, match="no reply within 3 s"):
                await servers.run(0, close)

        nursery.start_soon(close_within_the_limit)
        await trio.sleep(TIMEOUT_S / 2)
        with pytest.raises(NoAnswer, match="the connection is being closed"):
            await servers.run(0, close)
