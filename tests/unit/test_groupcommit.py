"""Group commit: which items share a call, which results they get, and what a cancel leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from downloader.groupcommit import CommitAbandoned, GroupCommit


class Calls:
    """A commit that waits for `go`; returns each item's text in capitals."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = trio.Event()
        self.error: Exception | None = None

    async def __call__(self, items: Sequence[str]) -> Sequence[str]:
        self.batches.append(list(items))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return [item.upper() for item in items]


@asynccontextmanager
async def running(calls: Calls, **options: Any) -> AsyncIterator[GroupCommit[str, str]]:
    commit: GroupCommit[str, str] = GroupCommit(calls, **{"max_batch": 10, **options})
    async with commit.running():
        yield commit


async def submit_all(commit: GroupCommit[str, str], items: Sequence[str], calls: Calls) -> list[str]:
    """Submit items one after the other, and commit when all wait."""
    answers: dict[str, str] = {}

    async def one(item: str) -> None:
        answers[item] = await commit.submit(item)

    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(one, item)
            await trio.testing.wait_all_tasks_blocked()
        calls.go.set()
    return [answers[item] for item in items]


async def test_a_single_item_is_committed_at_once_and_later_ones_together() -> None:
    calls = Calls()
    async with running(calls) as commit:
        assert await submit_all(commit, ["a", "b", "c"], calls) == ["A", "B", "C"]
    assert calls.batches == [["a"], ["b", "c"]]
    assert commit.waiting == 0


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({"max_batch": 2}, [["0"], ["1", "22"], ["333", "4"]]),
        ({"weight": len, "max_weight": 3}, [["0"], ["1", "22"], ["333"], ["4"]]),
        ({"weight": len, "max_weight": 2}, [["0"], ["1"], ["22"], ["333"], ["4"]]),
    ],
    ids=["items", "weight", "one too heavy goes alone"],
)
async def test_a_batch_is_bounded(options: dict[str, Any], batches: list[list[str]]) -> None:
    calls = Calls()
    items = ["0", "1", "22", "333", "4"]
    async with running(calls, **options) as commit:
        assert await submit_all(commit, items, calls) == items
    assert calls.batches == batches


async def test_lanes_do_not_wait_for_each_other() -> None:
    calls = Calls()
    async with running(calls, lane=lambda item: item[0]) as commit:
        assert await submit_all(commit, ["a1", "b1", "a2", "b2"], calls) == ["A1", "B1", "A2", "B2"]
    assert calls.batches[:2] == [["a1"], ["b1"]]
    assert sorted(calls.batches[2:]) == [["a2"], ["b2"]]


async def test_an_error_is_raised_to_all_of_the_batch_and_to_no_other() -> None:
    calls = Calls()
    calls.error = ZeroDivisionError("broken")
    caught: list[Exception] = []
    async with running(calls) as commit:

        async def one(item: str) -> None:
            with pytest.raises(ZeroDivisionError, match="broken") as info:
                await commit.submit(item)
            caught.append(info.value)

        async with trio.open_nursery() as nursery:
            for item in ("a", "b"):
                nursery.start_soon(one, item)
            await trio.testing.wait_all_tasks_blocked()
            calls.go.set()
        assert caught[0] is not caught[1]
        calls.error = None
        assert await commit.submit("c") == "C"


class NotCopied(Exception):
    """An error such as `httpx2.HTTPStatusError`, which its `args` alone do not make again."""

    def __init__(self, text: str, *, status: int) -> None:
        super().__init__(text)
        self.status = status


async def test_an_error_that_cannot_be_copied_is_raised_as_it_is() -> None:
    calls = Calls()
    calls.error = NotCopied("full", status=507)
    calls.go.set()
    async with running(calls) as commit:
        with pytest.raises(NotCopied, match=r"^full$"):
            await commit.submit("a")


@pytest.mark.parametrize("answers", [[], ["A", "B"], None])
async def test_a_wrong_number_of_results_is_an_error_of_each_item(answers: Any) -> None:
    async def commit(_: Sequence[str]) -> Any:
        return answers

    committing: GroupCommit[str, str] = GroupCommit(commit, max_batch=10)
    async with committing.running():
        for _ in range(2):
            with pytest.raises((ValueError, TypeError)):
                await committing.submit("a")


async def test_a_cancel_before_its_batch_leaves_withdraws_an_item() -> None:
    calls = Calls()
    async with running(calls) as commit, trio.open_nursery() as nursery:
        nursery.start_soon(commit.submit, "first")
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0) as scope:
            await commit.submit("never")
        assert scope.cancelled_caught
        calls.go.set()
    assert calls.batches == [["first"]]


@pytest.mark.parametrize(("finish_s", "finished"), [(0, False), (1, False), (3, True)])
async def test_a_cancel_waits_for_a_batch_that_has_left(
    autojump_clock: trio.testing.MockClock, *, finish_s: float, finished: bool
) -> None:
    calls = Calls()
    async with running(calls, finish_s=finish_s) as commit:
        before, done = trio.current_time(), False

        async def finish() -> None:
            nonlocal done
            await trio.sleep(3)
            done = True
            calls.go.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish)
            with trio.move_on_after(1):
                await commit.submit("a")
            assert trio.current_time() - before == min(1 + finish_s, 3)
            assert done is finished


@pytest.mark.parametrize("linger_s", [0.0, 2.0])
async def test_the_first_batch_may_linger(autojump_clock: trio.testing.MockClock, linger_s: float) -> None:
    calls = Calls()
    calls.go.set()
    async with running(calls, linger_s=lambda: linger_s) as commit, trio.open_nursery() as nursery:
        nursery.start_soon(commit.submit, "a")
        await trio.sleep(1)
        nursery.start_soon(commit.submit, "b")
    assert calls.batches == ([["a", "b"]] if linger_s else [["a"], ["b"]])


async def test_its_end_releases_all_that_wait() -> None:
    calls = Calls()
    commit: GroupCommit[str, str] = GroupCommit(calls, max_batch=1)

    async def abandoned(item: str) -> None:
        with pytest.raises(CommitAbandoned):
            await commit.submit(item)

    async with trio.open_nursery() as waiting, trio.open_nursery() as nursery:
        await nursery.start(commit.run)
        for item in ("under way", "waits"):
            waiting.start_soon(abandoned, item)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await abandoned("late")
    assert calls.batches == [["under way"]]
    assert commit.waiting == 0


async def test_an_error_while_it_runs_comes_out_as_it_is() -> None:
    with pytest.raises(LookupError, match="ours"):
        async with running(Calls()):
            raise LookupError("ours")


async def test_items_that_wait_in_the_lane_get_an_error_of_the_whole_lane() -> None:
    calls = Calls()
    calls.error = ConnectionError("no reply")

    async def fails(item: str) -> None:
        with pytest.raises(ConnectionError, match="no reply"):
            await commit.submit(item)

    async with running(calls, lane_errors=OSError) as commit, trio.open_nursery() as nursery:
        for item in ("first", "waits"):
            nursery.start_soon(fails, item)
            await trio.testing.wait_all_tasks_blocked()
        calls.go.set()
    assert calls.batches == [["first"]]
    assert commit.waiting == 0


async def test_a_shielded_item_gets_its_result_in_spite_of_a_cancel() -> None:
    calls = Calls()
    result = ""
    async with running(calls, shield=True) as commit, trio.open_nursery() as nursery:

        async def submit() -> None:
            nonlocal result
            result = await commit.submit("a")

        nursery.start_soon(submit)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        calls.go.set()
    assert result == "A"
