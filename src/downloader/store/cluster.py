"""Which server has a shard: one for all, or the nodes of a Cluster."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.exceptions import MovedError

T = TypeVar("T")

Call = Callable[[Any], Awaitable[T]]
"""Makes an asyncio call with the client that it is given."""

MOVES = 3
"""How often a call follows a shard to another node."""


class Servers:
    """A client for each server that is known. All its methods that are `async` run in the asyncio loop.

    redis-py has a client for a Cluster. When any node has failed, it lets all calls wait, without a time
    limit, until a random node has answered with the topology, and then opens all connections again. So one
    dead node and one frozen node stop the calls to all others. Here a shard, which is one slot, is asked for
    where it was found last, at first at the seed, and the call follows MOVED. It does not follow ASK: while
    the keys of a slot are on two nodes, a script would take those on the other node for missing.

    `seed` is the client of the configured server; `open_node` opens one for another host (empty: the seed's)
    and port. A `sentinel`, which gives the seed its server, is closed with the clients.
    """

    def __init__(self, seed: Any, open_node: Callable[[str, int], Any], sentinel: Any = None) -> None:
        self._seed = seed
        self._sentinel = sentinel
        self._open_node = open_node
        self._nodes: dict[tuple[str, int], Any] = {}
        self._of_shard: dict[int, Any] = {}

    async def run(self, shard: int, call: Call[T]) -> T:
        """Make a call for a shard at the server that has it."""
        return await self._follow(shard, self._of_shard.get(shard, self._seed), call)

    async def find(self, shard: int, call: Call[T]) -> T:
        """Make a call for a shard, beginning at any server: a replica may have taken the shard over."""
        return await self._follow(shard, self.any(), call)

    def any(self) -> Any:
        """A client, at random."""
        return random.choice([self._seed, *self._nodes.values()])  # noqa: S311  # no secret

    async def aclose(self) -> None:
        """Close all clients."""
        for client in (self._seed, *self._nodes.values()):
            await client.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def _follow(self, shard: int, client: Any, call: Call[T]) -> T:
        moves = 0
        while True:
            try:
                return await call(client)
            except MovedError as error:
                address = error.host, error.port
                client = self._nodes.get(address)
                if client is None:
                    client = self._nodes[address] = self._open_node(*address)
                self._of_shard[shard] = client
                moves += 1
                if moves > MOVES:
                    raise
