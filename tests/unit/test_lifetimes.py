"""Owning a task or a plugin over a `with`: which error comes out, and how long a close may take."""

import ast
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

import downloader
from downloader.errors import PluginError
from downloader.lifetimes import Plugin, opened
from downloader.tasks import background

SCOPES = frozenset(
    {"open_nursery", "CancelScope", "move_on_after", "move_on_at", "fail_after", "fail_at"},
)

OWNERS = frozenset({"lifetimes.py", "tasks.py"})
"""The only modules in which a nursery or scope may enclose a `yield`."""


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below this one that run in the same function."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            yield child
            yield from own_nodes(child)


def called(expression: ast.expr) -> str:
    while isinstance(expression, (ast.Call, ast.Subscript)):
        expression = expression.func if isinstance(expression, ast.Call) else expression.value
    return expression.attr if isinstance(expression, ast.Attribute) else getattr(expression, "id", "")


def yields_in_scopes(source: str) -> list[int]:
    """The lines of each `yield` inside a nursery or a cancel scope, a named one included."""
    tree = ast.parse(source)
    scopes = {
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and called(node.value) in SCOPES
        for target in node.targets
    }
    return [
        inner.lineno
        for node in ast.walk(tree)
        if isinstance(node, (ast.With, ast.AsyncWith))
        and any(
            called(item.context_expr) in SCOPES or ast.unparse(item.context_expr) in scopes
            for item in node.items
        )
        for inner in own_nodes(node)
        if isinstance(inner, (ast.Yield, ast.YieldFrom))
    ]


def test_the_search_finds_each_form() -> None:
    forms = (
        "async def f():\n async with trio.open_nursery() as n:\n  yield",
        "def f():\n with trio.CancelScope(shield=True):\n  try:\n   yield\n  finally: pass",
        "def f():\n scope = trio.CancelScope()\n with scope:\n  yield",
        "async def f():\n async with other(), open_nursery():\n  for x in y:\n   yield x",
    )
    assert [len(yields_in_scopes(form)) for form in forms] == [1] * len(forms)
    assert not yields_in_scopes("async def f():\n with trio.CancelScope():\n  def g():\n   yield\n yield")


def test_no_nursery_or_scope_encloses_a_yield() -> None:
    package = Path(downloader.__file__).parent
    places = [
        f"{path.relative_to(package.parent)}:{line}"
        for folder in (package, package.with_name("downloader_plugins"))
        for path in sorted(folder.rglob("*.py"))
        if path.name not in OWNERS
        for line in yields_in_scopes(path.read_text(encoding="utf-8"))
    ]
    assert places == []


def test_no_object_has_a_nursery() -> None:
    package = Path(downloader.__file__).parent
    places = [
        f"{path.relative_to(package.parent)}:{node.lineno}"
        for folder in (package, package.with_name("downloader_plugins"))
        for path in sorted(folder.rglob("*.py"))
        for of_class in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(of_class, ast.ClassDef)
        for node in of_class.body
        if isinstance(node, ast.AnnAssign) and "Nursery" in ast.unparse(node.annotation)
    ]
    assert places == []


async def until_cancelled(*, task_status: trio.TaskStatus[str]) -> None:
    task_status.started("ready")
    await trio.sleep_forever()


async def failing_after(seconds: float, error: Exception, *, task_status: trio.TaskStatus[None]) -> None:
    if seconds:
        task_status.started()
    await trio.sleep(seconds)
    raise error


async def failing_when_cancelled(error: Exception, *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    try:
        await trio.sleep_forever()
    finally:
        raise error


async def test_a_task_runs_as_long_as_the_context() -> None:
    ended = []

    async def task(*, task_status: trio.TaskStatus[int]) -> None:
        task_status.started(3)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    async with background(task) as value:
        assert value == 3
        assert not ended
    assert ended == [True]


async def test_an_error_of_the_body_is_raised_as_it_is() -> None:
    with pytest.raises(OSError, match="ours"):
        async with background(until_cancelled):
            raise OSError("ours")


async def test_an_error_of_the_task_cancels_the_body(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(OSError, match="task") as caught:
        async with background(partial(failing_after, 3, OSError("task"))):
            await trio.sleep(10)
    assert trio.current_time() == pytest.approx(3)
    assert not hasattr(caught.value, "__notes__")


async def test_an_error_before_the_task_is_ready_is_raised_as_it_is() -> None:
    with pytest.raises(OSError, match="early") as caught:
        async with background(partial(failing_after, 0, OSError("early"))):
            pytest.fail("the body began")
    assert not hasattr(caught.value, "__notes__")


async def test_a_task_that_is_never_ready_is_an_error() -> None:
    async def task(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.lowlevel.checkpoint()

    with pytest.raises(RuntimeError, match="started"):
        async with background(task):
            pytest.fail("the body began")


async def test_of_two_errors_the_first_is_raised_with_a_note() -> None:
    with pytest.raises(OSError, match="body") as caught:
        async with background(partial(failing_when_cancelled, ValueError("task"))):
            raise OSError("body")
    assert "ValueError: task" in caught.value.__notes__[0]


async def test_a_cancel_ends_body_and_task(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as scope:
        async with background(until_cancelled):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(1)


Factory = Callable[[], AbstractAsyncContextManager[str]]


def plugin(factory: Factory, *, closing_s: float = 5.0) -> Plugin:
    return Plugin(name="table", factory=factory, check=str.upper, opening_s=7.0, closing_s=closing_s)


def closing(*, seconds: float = 0.0, error: Exception | None = None, log: list[str] | None = None) -> Factory:
    """A plugin whose close takes so long, and then raises."""

    @asynccontextmanager
    async def factory() -> AsyncIterator[str]:
        try:
            yield "value"
        finally:
            await trio.sleep(seconds)
            if log is not None:
                log.append("closed")
            if error is not None:
                raise error

    return factory


async def test_a_plugin_is_open_as_long_as_the_context(autojump_clock: trio.testing.MockClock) -> None:
    log: list[str] = []
    with capture_logs() as logs:
        async with opened(plugin(closing(seconds=4, log=log))) as values:
            assert values == ["VALUE"]
            assert not log
    assert log == ["closed"]
    assert logs == []


BAD_CLOSES = pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (closing(seconds=math.inf), "did not close within 5 s"),
        (closing(error=ValueError("close")), "cannot be closed: ValueError: close"),
    ],
)


@BAD_CLOSES
async def test_a_bad_close_is_logged(
    factory: Factory, reason: str, autojump_clock: trio.testing.MockClock
) -> None:
    with capture_logs() as logs:
        async with opened(plugin(factory)):
            pass
    [entry] = logs
    assert (entry["event"], entry["plugin"], entry["error"]) == ("plugin.not_closed", "table", reason)
    assert trio.current_time() <= 5.1


@BAD_CLOSES
async def test_a_bad_close_does_not_replace_the_error_of_the_body(
    factory: Factory, reason: str, autojump_clock: trio.testing.MockClock
) -> None:
    with capture_logs() as logs, pytest.raises(OSError, match="the service crashed"):
        async with opened(plugin(factory)):
            raise OSError("the service crashed")
    assert [entry["error"] for entry in logs] == [reason]
    assert trio.current_time() <= 5.1


async def test_plugins_are_closed_side_by_side(autojump_clock: trio.testing.MockClock) -> None:
    log: list[str] = []
    slow = [plugin(closing(seconds=4, log=log)) for _ in range(3)]
    async with opened(*slow):
        pass
    assert log == ["closed"] * 3
    assert trio.current_time() == pytest.approx(4)


async def test_those_already_open_are_closed_when_a_later_one_does_not_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def asleep() -> AsyncIterator[str]:
        await trio.sleep_forever()
        yield ""

    with pytest.raises(PluginError, match=r"^table: did not open within 7 s$"):
        async with opened(plugin(closing(seconds=1, log=log)), plugin(asleep)):
            pytest.fail("the body began")
    assert log == ["closed"]
    assert trio.current_time() == pytest.approx(8)


async def test_after_a_cancel_a_plugin_gets_no_time_to_close(autojump_clock: trio.testing.MockClock) -> None:
    log: list[str] = []
    with trio.move_on_after(1):
        async with opened(plugin(closing(seconds=4, log=log))):
            await trio.sleep_forever()
    assert log == []
    assert trio.current_time() == pytest.approx(1)


async def test_a_cancel_reaches_an_open_plugin_after_the_body(
    autojump_clock: trio.testing.MockClock,
) -> None:
    log: list[str] = []
    with trio.move_on_after(1):
        async with opened(plugin(closing(log=log))):
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(3)
                    log.append("body")
    assert log == ["body"]


@asynccontextmanager
async def with_a_failing_task() -> AsyncIterator[str]:
    async with background(partial(failing_after, 1, OSError("inside"))):
        yield "value"


@asynccontextmanager
async def swallowing() -> AsyncIterator[str]:
    with pytest.raises(OSError, match="inside"):
        async with with_a_failing_task():
            yield "value"


@pytest.mark.parametrize(
    ("factory", "reason"),
    [(with_a_failing_task, "has ended by itself: OSError: inside"), (swallowing, "has ended by itself")],
)
async def test_a_plugin_that_ends_by_itself_cancels_the_body(
    factory: Factory, reason: str, autojump_clock: trio.testing.MockClock
) -> None:
    log: list[str] = []
    with pytest.raises(PluginError) as caught:
        async with opened(plugin(closing(log=log)), plugin(factory)):
            await trio.sleep(10)
    assert str(caught.value) == f"table: {reason}"
    assert trio.current_time() == pytest.approx(1)


async def test_a_plugin_that_wants_to_end_the_process_is_an_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def quitting() -> Any:
        raise SystemExit(3)

    with pytest.raises(PluginError, match=r"^table: cannot be opened: SystemExit: 3$"):
        async with opened(plugin(quitting)):
            pytest.fail("the body began")
