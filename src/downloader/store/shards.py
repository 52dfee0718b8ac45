"""`Shards`: asks the shards that a call concerns, at the same time; silent ones spoil no other's answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import trio

from downloader.errors import StoreError, StoreRefused, StoreUnavailable
from downloader.ids import shard_of
from downloader.observe import Event, get_logger
from downloader.store.redis import StoreClient

log = get_logger()

T = TypeVar("T")
A = TypeVar("A")


class Shards:
    """The shards of a store: one, or several of a Cluster."""

    def __init__(self, client: StoreClient) -> None:
        self._client = client
        self.all = range(client.keys.shards)

    async def run_on_all(self, script: str, call: Mapping[str, Any]) -> Sequence[Any]:
        """The answers of all shards that answer. Raises as `ask` does."""
        answers = await self.ask(self.all, lambda shard: self._client.run(script, shard, call))
        return list(answers.values())

    async def per_item(
        self,
        items: Sequence[T],
        job_id: Callable[[T], str],
        ask: Callable[[int, Sequence[T]], Awaitable[Sequence[A]]],
        missing: Callable[[T], A],
    ) -> list[A]:
        """Ask the shards of the items, each once for all of its items.

        Answers in order of the items; `missing` gives the answers for shards that did not answer.

        Raises:
            StoreUnavailable: no shard answered.
        """
        places: defaultdict[int, list[int]] = defaultdict(list)
        for place, item in enumerate(items):
            places[shard_of(job_id(item), len(self.all))].append(place)
        answers = [missing(item) for item in items]
        found = await self.ask(places, lambda shard: ask(shard, [items[place] for place in places[shard]]))
        for shard, of_shard in found.items():
            for place, answer in zip(places[shard], of_shard, strict=True):
                answers[place] = answer
        return answers

    async def ask(
        self, shards: Collection[int], ask: Callable[[int], Awaitable[A]], *, some: bool = False
    ) -> dict[int, A]:
        """Ask shards at the same time; returns the answers by shard, and logs which shards did not answer.

        Raises:
            StoreUnavailable: none answered. Not if `some` is true: others have answered before.
        """
        if len(self.all) == 1:
            return {shard: await ask(shard) for shard in shards}
        answers: dict[int, A] = {}
        errors: dict[int, StoreError] = {}

        async def one(shard: int) -> None:
            try:
                answers[shard] = await ask(shard)
            except StoreRefused as error:
                errors[shard] = StoreUnavailable(f"shard {shard}: {error}")
            except StoreUnavailable as error:
                errors[shard] = error

        async with trio.open_nursery() as nursery:
            for shard in shards:
                nursery.start_soon(one, shard)
        if errors and not answers and not some:
            raise next(iter(errors.values()))
        for shard, error in errors.items():
            log.warning(Event.STORE_UNAVAILABLE, shard=shard, reason=str(error))
        return answers
