"""The page's cost with 10,000 aggregations: bytes, and calls of the store, for any number of viewers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import pytest
import trio
import trio.testing

from downloader.api.events import Events, Pace
from downloader.api.problems import Refused
from downloader.api.search import PAGE_MAX, Aggregations
from downloader.api.snapshot import DESTINATIONS, SHOWN
from downloader.errors import StoreError, StoreUnavailable
from downloader.globs import anything
from downloader.store import Backlog, JobStore, Load, Waiting
from downloader.wire import (
    Aggregation,
    AggregationLoad,
    BacklogPoint,
    FailedDestination,
    WaitingDestination,
    moment,
)

MANY = 10_000

NAME = "\U0001f600" * 123
"""Twelve bytes a character in JSON: with the number below as long as a name may be."""

READING_S = 0.1


class Store:
    """Responds like a store with `MANY` aggregations, and counts calls."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.away = False
        self.loads_ = [
            AggregationLoad(aggr_id=f"{NAME}{number:05}", pending=10**6, in_flight=8, limit=8, paused=False)
            for number in range(MANY)
        ]

    async def _answer(self, question: str) -> None:
        self.asked[question] += 1
        await trio.sleep(READING_S)

    async def load(self, count: int) -> Load:
        await self._answer("load")
        return Load(aggregations=self.loads_[:count], total=MANY, downloads=80_000, callbacks=0)

    async def loads(self, most: int) -> Sequence[AggregationLoad]:
        await self._answer("loads")
        if self.away:
            raise StoreUnavailable("gone")
        return self.loads_[:most]

    async def backlog(self, destinations: int) -> Backlog:
        await self._answer("backlog")
        much = Waiting(pending=10**9, queues=MANY, next_ms=None)
        busy = [
            WaitingDestination(
                destination=f"http {NAME}{number:05}", pending=10**6, in_flight=8, limit=8, due_at=moment(1)
            )
            for number in range(MANY)
        ]
        return Backlog(
            now_ms=2,
            downloads=much,
            callbacks=much,
            failed_callbacks=0,
            destinations=busy[:destinations],
            failed_to=[
                FailedDestination(destination=f"http {NAME}{number:05}", failed=10**6)
                for number in range(destinations)
            ],
        )

    async def reports(self, _role: str) -> Sequence[Mapping[str, Any]]:
        await self._answer("reports")
        return []

    async def totals(self, _role: str) -> Mapping[str, int]:
        await self._answer("totals")
        return {}

    async def note_backlog(self, _point: BacklogPoint) -> None:
        await self._answer("note_backlog")

    async def described(self, aggr_ids: Iterable[str]) -> Sequence[Aggregation]:
        names = list(aggr_ids)
        self.asked["described"] = max(self.asked["described"], len(names))
        return [
            Aggregation(
                aggr_id=name,
                pending=1,
                in_flight=8,
                limit=8,
                rate=None,
                delay=None,
            )
            for name in names
        ]


@pytest.fixture
def store() -> Store:
    return Store()


async def test_one_sample_serves_all_listeners(
    store: Store, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    events = Events(cast("JobStore", store))
    nursery.start_soon(events.run)
    received: list[bytes] = []

    async def listen(address: str) -> None:
        async with events.listener(anything, address) as stream:
            assert (await anext(stream)).startswith(b"retry: ")
            received.append(await anext(stream))

    async with trio.open_nursery() as listeners:
        for number in range(64):
            listeners.start_soon(listen, f"client {number % 4}")
    assert store.asked["load"] == 1
    [event] = set(received)
    data = json.loads(event.partition(b"data: ")[2])
    assert (len(data["aggregations"]), data["more_aggregations"]) == (SHOWN, MANY - SHOWN)
    assert len(data["waiting"]["callbacks"]["destinations"]) == DESTINATIONS
    assert len(event) < 400_000, "twelve times as much as with plain names"
    nursery.cancel_scope.cancel()


async def test_a_listener_counts_from_its_admission(store: Store) -> None:
    events = Events(cast("JobStore", store), Pace(per_address=1))
    async with events.listener(anything, "a"), events.listener(anything, "b"):
        with pytest.raises(Refused):
            async with events.listener(anything, "a"):
                pass
    async with events.listener(anything, "a"):
        pass


async def test_a_snapshot_is_encoded_once_for_a_restricted_token(
    store: Store, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    events = Events(cast("JobStore", store), Pace(history_s=1000))
    names: list[str] = []

    def allows(name: str) -> bool:
        names.append(name)
        return True

    nursery.start_soon(events.run)
    async with events.listener(allows, "a") as stream:
        await anext(stream)
        assert (await anext(stream)).startswith(b"event: snapshot")
    assert len(names) == len(set(names)) > SHOWN
    nursery.cancel_scope.cancel()


async def test_one_reading_serves_all_searches(store: Store, autojump_clock: trio.testing.MockClock) -> None:
    found = Aggregations(cast("JobStore", store))

    async def search(text: str) -> None:
        page, _ = await found.find(anything, text=text, sort="-work", skip=0, count=PAGE_MAX)
        assert len(page) <= PAGE_MAX

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(search, str(number))
    assert (store.asked["loads"], store.asked["described"]) == (1, PAGE_MAX)
    await trio.sleep(60)
    await search("")
    assert store.asked["loads"] == 2, "what is answered is not old"


async def test_a_store_that_is_away_lets_searches_wait_once(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    store.away = True
    found = Aggregations(cast("JobStore", store))
    refused = []

    async def search() -> None:
        try:
            await found.find(anything, text="", sort="-work", skip=0, count=PAGE_MAX)
        except StoreError:
            refused.append(trio.current_time())

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(search)
    assert len(refused) == 50
    assert max(refused) - began == pytest.approx(READING_S)
    store.away = False
    await trio.sleep(60)
    await search()
    assert len(refused) == 50
