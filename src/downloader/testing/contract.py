"""How a test of a contract suite runs: in a separate Trio run, with a time limit for each wait."""

from __future__ import annotations

import asyncio
import os
import queue
import re
import stat
import sys
import tempfile
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import trio
import trio_asyncio

from downloader.errors import PluginError
from downloader.net import EgressPolicy, guarded_client, open_transport, tls_context
from downloader.notify import Host
from downloader.storage import open_storage
from downloader.store import asyncio_loop
from downloader.testing.tcp_proxy import Fault

_LOOPBACK = ("127.0.0.0/8", "::1", "localhost")


@asynccontextmanager
async def open_host() -> AsyncIterator[Host]:
    """A `Host` like the service's: the client may connect to loopback, the storage is a temporary folder."""
    policy = EgressPolicy.parse(_LOOPBACK, setting="egress.callbacks")
    with tempfile.TemporaryDirectory(prefix="downloader-contract-") as folder:
        async with (
            open_transport(policy, tls=tls_context()) as transport,
            open_storage("filesystem", {"rootdir": folder, "fsync": False}) as storage,
        ):
            yield Host(client=guarded_client(transport), transport=transport, storage=storage)


_IDLE_WORKER = re.compile(r"Trio thread \d+")
"""The name of an idle thread that Trio keeps for reuse; a busy thread has another name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Tasks, threads and descriptors of this process at one moment."""

    tasks: frozenset[trio.lowlevel.Task]
    aio_tasks: frozenset[asyncio.Task[Any]]
    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, int, int, str]]
    """Descriptor, device, inode, kind."""

    def since(self, before: Resources) -> str:
        """A text about the resources that are not in `before`; empty if there are none."""
        added = [f"the task {task.name}" for task in self.tasks - before.tasks]
        added += [f"the asyncio task {task.get_name()}" for task in self.aio_tasks - before.aio_tasks]
        added += [f"the thread {thread.name}" for thread in self.threads - before.threads]
        added += [f"the {kind} of descriptor {fd}" for fd, *_, kind in self.descriptors - before.descriptors]
        return ", ".join(sorted(added))


def resources() -> Resources:
    """The present resources; to be called within a Trio run."""
    threads = (thread for thread in threading.enumerate() if not _IDLE_WORKER.fullmatch(thread.name))
    return Resources(
        tasks=frozenset(_tasks()),
        aio_tasks=frozenset(
            task for task in asyncio.all_tasks(trio_asyncio.current_loop.get()) if not task.done()
        ),
        threads=frozenset(threads),
        descriptors=frozenset(_descriptors()),
    )


def _tasks() -> list[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    tasks = [root] if root is not None else []
    for task in tasks:
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return tasks


def _descriptors() -> list[tuple[int, int, int, str]]:
    descriptors = []
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - names; Linux and macOS have it
        try:
            status = os.fstat(int(name))
        except OSError:  # the descriptor of the listing itself
            continue
        kinds = {stat.S_IFSOCK: "socket", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "something")
        descriptors.append((int(name), status.st_dev, status.st_ino, kind))
    return descriptors


_CLEANUP_S = 5.0
"""How long a test that was given up may take to clean up; then the test's thread is abandoned."""

_LONGEST_REASON = 500
"""Characters of a reason that the service keeps."""

T = TypeVar("T")
Hang = Callable[[str], None]


class Peer(ABC):
    """The server that a plugin under test talks to."""

    section: Mapping[str, Any]
    """The plugin's section of the configuration, valid for this peer."""
    bad_section: Mapping[str, Any]
    """A section that the plugin refuses; one key differs from `section`."""
    hasty: Mapping[str, Any] = MappingProxyType({})
    """Keys that replace keys of `section` in tests of failures: short timeouts, such as a second or two."""
    secrets: Sequence[str] = ()
    """Passwords and tokens in the section and in destinations, which no text may contain."""
    faults: Sequence[Fault] = tuple(Fault)
    """The failures that this peer can produce; `AWAY` alone for a plugin without a network."""

    @abstractmethod
    def open(self, section: Mapping[str, Any], host: Any) -> AbstractAsyncContextManager[Any]:
        """Call the plugin's factory with a section and a host; returns the factory's context manager."""


P = TypeVar("P", bound=Peer)


class Times:
    """The time limits of a suite, which a subclass may change."""

    answer_s: float = 10.0
    """Seconds in which a call, opening and closing return without a cancel, whatever the peer does."""
    cancel_s: float = 5.0
    """Seconds in which a cancelled call returns."""
    recover_s: float = 15.0
    """Seconds after an outage in which the plugin works again."""
    settle_s: float = 10.0
    """Seconds after closing in which the last thread and socket are gone."""
    limit_s: float = 55.0
    """Seconds for a whole test."""


def check_line(text: object, secrets: Sequence[str], what: str) -> None:
    """Check a text that people read: one line, not empty, at most 500 characters, without a secret.

    `what` names the text in the message.

    Raises:
        AssertionError: the text breaks one of these rules.
    """
    assert isinstance(text, str), f"{what} is {text!r}, not a text"
    assert text.strip(), f"{what} is empty"
    assert len(text.splitlines()) == 1, f"{what} is more than one line: {text!r}"
    assert len(text) <= _LONGEST_REASON, f"{what} is longer than {_LONGEST_REASON} characters: {text!r}"
    assert not [secret for secret in secrets if secret in text], f"{what} holds a secret"


def only_cause(error: BaseException) -> BaseException:
    """The only exception in nested groups, else the first `AssertionError` in the groups, else the group."""
    while isinstance(error, BaseExceptionGroup):
        broken = error.subgroup(AssertionError)
        if len(error.exceptions) > 1 and (broken is None or broken is error):
            inner = [only_cause(cause) for cause in error.exceptions]
            return next((cause for cause in inner if isinstance(cause, AssertionError)), error)
        error = (broken if len(error.exceptions) > 1 and broken is not None else error).exceptions[0]
    return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Generic[P]):
    """One run of a test, and what the test uses."""

    peer: P
    host: Any
    """The host that the plugin's factory gets."""
    times: Times
    hang: Hang
    """Fails the test now with this message; callable from any thread."""

    @contextmanager
    def watched(self, seconds: float, what: str) -> Iterator[None]:
        """Fail the test when the block takes longer, even if the block ignores cancels or blocks the loop."""
        timer = threading.Timer(seconds, self.hang, [f"{what} has not come to an end within {seconds:g} s"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    async def bounded(self, call: Callable[[], Awaitable[T]], seconds: float, what: str) -> T:
        """Make a call that has to return in time without being cancelled."""
        with self.watched(seconds + self.times.cancel_s, f"{what}, cancelled after {seconds:g} s,"):
            with trio.move_on_after(seconds):
                return await call()
        raise AssertionError(f"{what} had not returned after {seconds:g} s")

    async def cancelled(self, call: Callable[[], Awaitable[T]], *, after_s: float, what: str) -> T | None:
        """Make a call and cancel the call after a time; the call's result if earlier, else `None`."""
        with self.watched(after_s + self.times.cancel_s, f"{what}, cancelled after {after_s:g} s,"):
            with trio.move_on_after(after_s):
                return await call()
        return None

    @asynccontextmanager
    async def opened(
        self, section: Mapping[str, Any] | None = None, *, hasty: bool = False
    ) -> AsyncIterator[Any]:
        """Open the plugin, with the peer's section by default and the short timeouts if `hasty`.

        Opening and closing have to end in time.
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
        """Wait until no resource is in use that was not in use before.

        Raises:
            AssertionError: a resource is still in use; the message names it.
        """
        more = ""
        with trio.move_on_after(self.times.settle_s):
            while more := resources().since(before):  # noqa: ASYNC110 - nothing tells of the end of a thread
                await trio.sleep(0.01)
        assert not more, f"{self.times.settle_s:g} s after the plugin was closed it had left behind: {more}"

    def plugin_error(self, error: Exception) -> str:
        """The text of the `PluginError` with which opening failed; any other exception fails the test."""
        cause = only_cause(error)
        if isinstance(cause, AssertionError):
            raise cause
        assert isinstance(cause, PluginError), f"opening raised {cause!r}, which is no PluginError"
        return str(cause)


def run_test(
    scenario: Callable[[Run[P]], Awaitable[None]],
    peer: Callable[[], AbstractAsyncContextManager[P]],
    lend: Callable[[], AbstractAsyncContextManager[Any]],
    times: Times,
) -> None:
    """Run a test with a peer; raises the test's exception, or an `AssertionError` at the time limit.

    The test runs in its own thread, so that a plugin that ignores a cancel or blocks the loop fails this test
    and not the whole run. Such a thread is abandoned; everything else is cancelled and awaited.
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
        # Also after Ctrl-C: the peers' processes and files have to be removed.
        if thread.is_alive() and stop:
            with suppress(trio.RunFinishedError):
                stop[0]()
        thread.join(_CLEANUP_S)
    if error is not None:
        raise only_cause(error)


C = TypeVar("C", bound="Contract[Any]")


def promise(scenario: Callable[[C, Run[Any]], Awaitable[None]]) -> Callable[[C], None]:
    """Make a test method without parameters of a coroutine method; a failure shows the docstring."""

    def test(self: C) -> None:
        __tracebackhide__ = True  # pytest's tracebacks leave this frame out
        try:
            run_test(partial(scenario, self), self.peer, self.lend, self)
        except Exception as error:
            error.add_note(f"The promise: {' '.join((scenario.__doc__ or '').split())}")
            raise

    # Not functools.wraps: pytest would look for a fixture for each parameter of what is wrapped.
    test.__name__, test.__qualname__ = scenario.__name__, scenario.__qualname__
    test.__module__, test.__doc__ = scenario.__module__, scenario.__doc__
    return test


class Contract(ABC, Times, Generic[P]):
    """Base of the contract suites."""

    @abstractmethod
    def peer(self) -> AbstractAsyncContextManager[P]:
        """A running peer, a new peer for each test."""

    @abstractmethod
    def lend(self) -> AbstractAsyncContextManager[Any]:
        """The host that the factory gets. Each suite has a default."""

    @abstractmethod
    async def _work(self, run: Run[P]) -> None:
        """Open the plugin, do all kinds of work, cancels among them, and close the plugin."""

    @promise
    async def test_it_leaves_nothing_behind(self, run: Run[P]) -> None:
        """After closing no task, thread, socket or file of the plugin is left, also after cancels."""
        await self._work(run)  # what is made once per process is no leak
        before = resources()
        await self._work(run)
        await run.nothing_left(before)

    @promise
    async def test_what_is_raised_while_it_is_open_passes_through(self, run: Run[P]) -> None:
        """The plugin's context manager swallows no exception, and can be opened again."""
        ours = LookupError("raised while the plugin was open")
        seen: BaseException | None = None
        try:
            async with run.opened():
                raise ours  # noqa: TRY301 - it has to pass through the plugin's context manager
        except Exception as error:  # noqa: BLE001 - compared below
            seen = only_cause(error)
        if isinstance(seen, AssertionError):
            raise seen
        assert seen is ours, f"what was raised while the plugin was open became {seen!r}"
        async with run.opened():
            pass

    @promise
    async def test_a_bad_section_is_one_line_that_names_the_key(self, run: Run[P]) -> None:
        """A refused section is a `PluginError` of one line that names the key and has no secret."""
        good, bad = run.peer.section, run.peer.bad_section
        keys = {key for key in {*good, *bad} if good.get(key) != bad.get(key)}
        assert keys, "bad_section is the same as section"
        try:
            async with run.opened(bad):
                accepted = True
        except Exception as error:  # noqa: BLE001 - checked below
            accepted = False
            text = run.plugin_error(error)
        assert not accepted, f"the bad section was accepted: {sorted(keys)}"
        check_line(text, run.peer.secrets, "the PluginError")
        assert [key for key in keys if key in text], f"none of {sorted(keys)} is named in {text!r}"
