"""How the suites run: whatever hangs is ended, every failure says what is wrong, and pytest is not needed."""

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import trio

from downloader.errors import PluginError
from downloader.testing.contract import Run, Times, check_line, only_cause, run_test


def brief(limit_s: float = 20.0) -> Times:
    times = Times()
    times.answer_s = times.recover_s = times.settle_s = 0.2
    times.cancel_s, times.limit_s = 0.1, limit_s
    return times


def peer(closed: list[bool]) -> AbstractAsyncContextManager[Any]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[object]:
        try:
            yield object()
        finally:
            closed.append(True)

    return opened()


@pytest.mark.slow
def test_a_scenario_that_does_not_end_is_given_up_and_cleaned_up() -> None:
    closed: list[bool] = []

    async def scenario(run: Run[Any]) -> None:
        await trio.sleep_forever()

    with pytest.raises(AssertionError, match=r"not over after 2 s"):
        run_test(scenario, partial(peer, closed), nullcontext, brief(2.0))
    assert closed == [True]


@pytest.mark.slow
def test_a_blocked_loop_fails_the_test_and_names_the_place() -> None:
    async def scenario(run: Run[Any]) -> None:
        with run.watched(0.1, "the call"):
            time.sleep(0.4)  # noqa: ASYNC251 - the fault that is looked for

    with pytest.raises(AssertionError, match=r"the call has not come to an end within 0\.1 s"):
        run_test(scenario, partial(peer, []), nullcontext, brief())

    async def unwatched(run: Run[Any]) -> None:
        time.sleep(5)  # noqa: ASYNC251 - as above

    with pytest.raises(AssertionError, match=r"(?s)not over.*it is at\n.*time\.sleep\(5\)"):
        run_test(unwatched, partial(peer, []), nullcontext, brief(2.0))


def test_what_a_scenario_raises_is_raised() -> None:
    async def scenario(run: Run[Any]) -> None:
        async with trio.open_nursery():
            raise LookupError("x")

    with pytest.raises(LookupError, match="x"):
        run_test(scenario, partial(peer, []), nullcontext, brief())


def test_the_only_cause_is_found() -> None:
    broken, other = AssertionError("promise"), ValueError("x")
    group = ExceptionGroup("a", [ExceptionGroup("b", [broken]), other])
    assert only_cause(group) is broken
    assert only_cause(ExceptionGroup("a", [ExceptionGroup("b", [other])])) is other
    both = ExceptionGroup("a", [other, LookupError()])
    assert only_cause(both) is both
    assert only_cause(other) is other


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "not a text"),
        (" ", "empty"),
        ("a\nb", "more than one line"),
        ("a\u2028b", "more than one line"),
        ("x" * 501, "longer"),
        ("hunter2!", "secret"),
    ],
)
def test_a_text_for_people_is_checked(text: object, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_line(text, ["hunter2"], "it")


def test_a_plugin_error_is_distinguished_from_others() -> None:
    run: Run[Any] = Run(peer=None, host=None, times=brief(), hang=lambda _: None)
    assert run.plugin_error(ExceptionGroup("a", [PluginError("key: x")])) == "key: x"
    with pytest.raises(AssertionError, match="which is no PluginError"):
        run.plugin_error(ValueError("key"))


@pytest.mark.slow
def test_it_is_imported_without_pytest() -> None:
    code = "import sys, downloader.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
