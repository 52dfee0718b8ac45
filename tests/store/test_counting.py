"""The fleet's totals: each count is added once, and none is lost with an instance."""

from __future__ import annotations

import pytest

from downloader.store import JobStore
from downloader.store.repeats import Uncounted
from servers.raw_store import RawStore


async def test_totals_are_sums_over_all_instances_that_there_have_been(store: JobStore) -> None:
    assert await store.totals("processor") == {}
    await store.report("one", "processor", {}, 60, {"x": 1, "y|a": 5})
    await store.report("two", "processor", {}, 60, {"x": 10})
    await store.report("two", "notifier", {}, 60, {"x": 100})
    await store.report("one", "processor", {}, 60, {"x": 2, "y|a": 5})
    assert await store.totals("processor") == {"x": 12, "y|a": 5}
    await store.leave("one", "processor")
    await store.leave("two", "processor")
    assert await store.totals("processor") == {"x": 12, "y|a": 5}
    assert await store.totals("notifier") == {"x": 100}


async def test_a_report_that_is_repeated_adds_nothing(raw: RawStore, store: JobStore) -> None:
    call = {
        "role": "processor",
        "instance": "i",
        "facts": "{}",
        "ttl_ms": 60_000,
        "counted_ms": 60_000,
        "number": 1,
    }
    rows = [{"series": "x", "amount": "3"}]
    for _ in range(2):
        raw.run("report", call, rows)
    assert await store.totals("processor") == {"x": 3}
    # Also not one that was on its way for so long that the next came before it.
    raw.run("report", call | {"number": 2}, rows)
    raw.run("report", call, rows)
    assert await store.totals("processor") == {"x": 6}


def test_counts_without_an_answer_are_sent_again_unchanged() -> None:
    uncounted = Uncounted()
    assert (uncounted.next({"x": 3}), uncounted.number) == ({"x": 3}, 1)
    # No answer: the store may have added them.
    assert (uncounted.next({"x": 4, "y": 1}), uncounted.number) == ({"x": 3}, 1)
    uncounted.confirm()
    assert (uncounted.next({"x": 4, "y": 1}), uncounted.number) == ({"x": 1, "y": 1}, 2)
    uncounted.confirm()
    assert uncounted.next({"x": 4, "y": 1}) == {}


async def test_the_number_of_the_last_counts_outlives_a_silence(raw: RawStore, store: JobStore) -> None:
    await store.report("i", "processor", {}, 0.01, {"x": 1})
    key = raw.key("counted", "processor", "i")
    assert raw.command("PTTL", key) == pytest.approx(86_400_000, abs=60_000)
