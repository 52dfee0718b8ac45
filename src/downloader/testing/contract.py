"""How a test of a contract suite runs: in a Trio run of its own, which ends whatever hangs in it."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import trio

from downloader.errors import PluginError
from downloader.store import asyncio_loop
from downloader.testing.resources import Resources, resources

_CLEANUP_S = 5.0
"""For peers to end after a test was given up; what hangs then is left behind."""

_LONGEST_REASON = 500
"""Characters that the service keeps of a reason."""

T = TypeVar("T")
Plugin_co = TypeVar("Plugin_co", covariant=True)
Hang = Callable[[str], None]


class Peer(Protocol[Plugin_co]):
    """What every kind of peer has."""

    @property
    def section(self) -> Mapping[str, Any]:
        """A good section."""

    @property
    def bad_section(self) -> Mapping[str, Any]:
        """One that is refused."""

    @property
    def hasty(self) -> Mapping[str, Any]:
        """Laid over `section` where the peer is about to fail."""

    @property
    def secrets(self) -> Sequence[str]:
        """What no text may hold."""

    @property
    def open(self) -> Callable[[Mapping[str, Any], Any], AbstractAsyncContextManager[Plugin_co]]:
        """Opens the plugin with a section and a host."""


P = TypeVar("P", bound="Peer[Any]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The bounds of a suite, in seconds."""

    answer_s: float
    cancel_s: float
    recover_s: float
    settle_s: float
    limit_s: float


def check_line(text: object, secrets: Sequence[str], what: str) -> None:
    """Text for people: one line, not empty, not too long, no secret in it."""
    assert isinstance(text, str), f"{what} is {text!r}, not a text"
    assert text.strip(), f"{what} is empty"
    assert len(text.splitlines()) == 1, f"{what} is more than one line: {text!r}"
    assert len(text) <= _LONGEST_REASON, f"{what} is longer than {_LONGEST_REASON} characters: {text!r}"
    assert not [secret for secret in secrets if secret in text], f"{what} holds a secret"


def only_cause(error: BaseException) -> BaseException:
    """What nurseries have wrapped: the one exception inside, or the first broken promise, or the group."""
    while isinstance(error, BaseExceptionGroup):
        broken = error.subgroup(AssertionError)
        if len(error.exceptions) > 1 and (broken is None or broken is error):
            inner = [only_cause(one) for one in error.exceptions]
            return next((one for one in inner if isinstance(one, AssertionError)), error)
        error = (broken if len(error.exceptions) > 1 and broken is not None else error).exceptions[0]
    return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Generic[P]):
    """One run of a test, and what it works with."""

    peer: P
    host: Any
    """What the service would lend."""
    times: Times
    hang: Hang
    """Fails the test now, from whatever hangs here."""

    @contextmanager
    def watched(self, seconds: float, what: str) -> Iterator[None]:
        """Fail the test, whatever hangs inside, when it takes longer than this."""
        timer = threading.Timer(seconds, self.hang, [f"{what} has not come to an end within {seconds:g} s"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    async def bounded(self, call: Callable[[], Awaitable[T]], seconds: float, what: str) -> T:
        """Make a call that has to return in time by itself."""
        with self.watched(seconds + self.times.cancel_s, f"{what}, cancelled after {seconds:g} s,"):
            with trio.move_on_after(seconds):
                return await call()
        raise AssertionError(f"{what} had not returned after {seconds:g} s")

    async def cancelled(self, call: Callable[[], Awaitable[T]], *, after_s: float, what: str) -> T | None:
        """Make a call and cancel it; what it returned if it was faster, else `None`."""
        with self.watched(after_s + self.times.cancel_s, f"{what}, cancelled after {after_s:g} s,"):
            with trio.move_on_after(after_s):
                return await call()
        return None

    @asynccontextmanager
    async def opened(
        self, section: Mapping[str, Any] | None = None, *, hasty: bool = False
    ) -> AsyncIterator[Any]:
        """The open plugin; opening and closing have to come to an end.

        Args:
            section: by default the peer's.
            hasty: whether with the peer's short time-outs.
        """
        more = self.peer.hasty if hasty else {}
        manager = self.peer.open({**(self.peer.section if section is None else section), **more}, self.host)
        with self.watched(self.times.answer_s, "opening the plugin"):
            plugin = await manager.__aenter__()
        try:
            yield plugin
        except BaseException as error:
            with self.watched(self.times.answer_s, "closing the plugin"):
                swallowed = await manager.__aexit__(type(error), error, error.__traceback__)
            if swallowed:
                raise AssertionError(
                    f"the plugin swallowed what was raised while it was open: {error!r}"
                ) from error
            raise
        else:
            with self.watched(self.times.answer_s, "closing the plugin"):
                await manager.__aexit__(None, None, None)

    async def nothing_left(self, before: Resources) -> None:
        """Wait until nothing is held that was not held before.

        Raises:
            AssertionError: something stays; the message names it.
        """
        more = ""
        with trio.move_on_after(self.times.settle_s):
            while more := resources().since(before):  # noqa: ASYNC110 - nothing tells of the end of a thread
                await trio.sleep(0.01)
        assert not more, f"{self.times.settle_s:g} s after the plugin was closed it had left behind: {more}"

    def plugin_error(self, error: Exception) -> str:
        """The text of the `PluginError` that opening has to raise when it cannot."""
        cause = only_cause(error)
        if isinstance(cause, AssertionError):
            raise cause
        assert isinstance(cause, PluginError), f"opening raised {cause!r}, which is no PluginError"
        return str(cause)

    async def refuses_the_bad_section(self) -> None:
        """Open it with the peer's bad section, and judge what it says."""
        good, bad = self.peer.section, self.peer.bad_section
        keys = {key for key in {*good, *bad} if good.get(key) != bad.get(key)}
        assert keys, "bad_section is the same as section"
        try:
            async with self.opened(bad):
                accepted = True
        except Exception as error:  # noqa: BLE001 - judged here
            accepted = False
            text = self.plugin_error(error)
        assert not accepted, f"the bad section was accepted: {sorted(keys)}"
        check_line(text, self.peer.secrets, "the PluginError")
        assert [key for key in keys if key in text], f"none of {sorted(keys)} is named in {text!r}"

    async def passes_errors_through(self) -> None:
        """Raise something while it is open."""
        ours = LookupError("raised while the plugin was open")
        seen: BaseException | None = None
        try:
            async with self.opened():
                raise ours  # noqa: TRY301 - through the plugin's context manager is the point
        except Exception as error:  # noqa: BLE001 - judged here
            seen = only_cause(error)
        if isinstance(seen, AssertionError):
            raise seen
        assert seen is ours, f"what was raised while the plugin was open became {seen!r}"


def run_test(
    scenario: Callable[[Run[P]], Awaitable[None]],
    peer: Callable[[], AbstractAsyncContextManager[P]],
    lend: Callable[[], AbstractAsyncContextManager[Any]],
    times: Times,
) -> None:
    """Run a test with a peer; raises what it raises, and gives it up when it takes too long.

    It runs in a thread of its own, so that a plugin that ignores a cancel or blocks the loop fails this test
    and not the whole run. Such a thread is left behind; all else is cancelled and awaited.
    """
    __tracebackhide__ = True
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    stop: list[Callable[[], None]] = []

    def hang(what: str) -> None:
        ends.put(AssertionError(what))

    async def main() -> None:
        with trio.CancelScope() as scope:
            token = trio.lowlevel.current_trio_token()
            stop.append(lambda: token.run_sync_soon(scope.cancel))
            async with asyncio_loop(), lend() as host, peer() as opened:
                await scenario(Run(peer=opened, host=host, times=times, hang=hang))

    def body() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            ends.put(error)
        else:
            ends.put(None)

    thread = threading.Thread(target=body, name="contract", daemon=True)
    thread.start()
    try:
        error = ends.get(timeout=times.limit_s)
    except queue.Empty:
        frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the only way there
        where = "".join(traceback.format_stack(frame, limit=3)) if frame is not None else ""
        error = AssertionError(f"the test is not over after {times.limit_s:g} s; it is at\n{where}")
    finally:
        # Also for Ctrl-C: the peers' processes and files are to go.
        if thread.is_alive() and stop:
            with suppress(trio.RunFinishedError):
                stop[0]()
        thread.join(_CLEANUP_S)
    if error is not None:
        raise only_cause(error)


class Contract(ABC, Generic[P]):
    """What the suites have in common: the peer, and bounds that a subclass may move."""

    answer_s: float = 10.0
    """Seconds in which a call, opening and closing end by themselves, whatever the peer does."""
    cancel_s: float = 5.0
    """Seconds in which a cancelled call returns."""
    recover_s: float = 15.0
    """Seconds after an outage in which the plugin works again."""
    settle_s: float = 10.0
    """Seconds after closing in which the last thread and socket are gone."""
    limit_s: float = 55.0
    """Seconds for a whole test."""

    @abstractmethod
    def peer(self) -> AbstractAsyncContextManager[P]:
        """A running peer; each test opens one of its own."""

    @abstractmethod
    def lend(self) -> AbstractAsyncContextManager[Any]:
        """What the factory gets beside its section; the suites have it."""


C = TypeVar("C", bound=Contract[Any])


def promise(scenario: Callable[[C, Run[Any]], Awaitable[None]]) -> Callable[[C], None]:
    """Make it a test method that needs nothing of the test runner; its docstring is told with a failure."""

    def test(self: C) -> None:
        __tracebackhide__ = True  # from pytest, for which this frame tells nothing
        times = Times(**{field.name: getattr(self, field.name) for field in fields(Times)})
        try:
            run_test(partial(scenario, self), self.peer, self.lend, times)
        except Exception as error:
            error.add_note(f"The promise: {' '.join((scenario.__doc__ or '').split())}")
            raise

    # Not functools.wraps: pytest would look for a fixture for each parameter of what is wrapped.
    test.__name__, test.__qualname__ = scenario.__name__, scenario.__qualname__
    test.__module__, test.__doc__ = scenario.__module__, scenario.__doc__
    return test
