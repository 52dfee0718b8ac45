"""The engine of `downloader doctor`: tries each configured part and reports what it found.

The parts are tried at the same time, each with a time limit; an error of one is its finding. All that was
written is deleted again, except what a peer keeps (a log line, a deletion marker in a versioned bucket).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any
from urllib.parse import unquote

import trio
from pydantic import SecretStr

from downloader.config import Settings, redacted
from downloader.errors import DownloaderError, PluginError, first_leaf
from downloader.net import HIDDEN, userinfo_of
from downloader.plugins import describe, find_cancel
from downloader.service.doctor.parts import (
    OPENING_S,
    MissingFolders,
    NoStorage,
    Note,
    examine_api,
    examine_backend,
    examine_buckets,
    examine_egress,
    examine_spool,
    examine_storage,
    unreachable_files,
)
from downloader.service.doctor.store import examine_store
from downloader.storage import Storage, open_storage
from downloader.store import START_S, asyncio_loop

PART_S = 15.0
"""Time limit of one part. A plugin has less to open (`OPENING_S`)."""

STORE_S = START_S + PART_S
"""Time limit of the store. An embedded one may have to load a long append-only file."""

STUCK_S = 60.0
"""After this time the process ends, if a part ignores its cancel, such as a plugin stuck in a thread."""

_SHORT = 3
"""Secrets of at most this many characters are not replaced in texts: they would hide parts of plain words."""


class FindingState(StrEnum):
    """The result for a part."""

    OK = "ok"
    FAILED = "failed"
    NOTE = "note"
    """Nothing is broken, but the operator should know about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of one part."""

    part: str
    """What the configuration calls it: `redis`, `processor.filestorage`, `backends.http` ..."""
    state: FindingState
    text: str
    """One line, without secrets."""
    seconds: float
    """How long the part took."""


Try = Callable[[], Awaitable[str]]
"""Tries a part and returns what it found; raises `Note` or another exception that says what is wrong."""


@dataclass(slots=True)
class _Examination:
    """The state of one run."""

    settings: Settings
    secrets: Sequence[str]
    show: Callable[[Sequence[Finding]], None]
    part_s: float
    findings: dict[str, Finding | None] = field(default_factory=dict)
    """By part, in the order in which they are shown; `None` while it is being tried."""

    async def examine(self, part: str, attempt: Try, within_s: float) -> None:
        """Try a part, in bounded time, and note what was found."""
        began = trio.current_time()
        state, text = FindingState.FAILED, f"hangs: no end within {within_s:g} s"
        with trio.move_on_after(within_s):
            try:
                text, state = await attempt(), FindingState.OK
            except BaseException as error:  # noqa: BLE001 - a plugin may raise anything, SystemExit too
                if (cancel := find_cancel(error)) is not None:
                    raise cancel from None
                cause = first_leaf(error)
                state = FindingState.NOTE if isinstance(cause, Note) else FindingState.FAILED
                text = str(cause) if isinstance(cause, (Note, DownloaderError)) else describe(cause)
        self.note(part, state, text, trio.current_time() - began)

    def note(self, part: str, state: FindingState, text: str, seconds: float) -> None:
        """Note what was found of a part."""
        line = " ".join(text.split())
        # The part's name is shown beside it.
        line = line.removeprefix(f"{part}: ")
        for secret in self.secrets:
            line = line.replace(secret, HIDDEN)
        self.findings[part] = Finding(part=part, state=state, text=line, seconds=round(seconds, 3))

    def done(self) -> list[Finding]:
        """What has been found, in order."""
        return [finding for finding in self.findings.values() if finding is not None]

    def give_up(self) -> None:
        """In a thread: show what was found, and exit, because a part ignores its cancel."""
        for part, finding in list(self.findings.items()):
            if finding is None:
                self.note(part, FindingState.FAILED, "hangs, and ignores its cancel", 0.0)
        self.show(self.done())
        os._exit(1)


def diagnose(
    settings: Settings,
    *,
    show: Callable[[Sequence[Finding]], None],
    part_s: float = PART_S,
    stuck_s: float = STUCK_S,
) -> Sequence[Finding]:
    """Try all that is configured; a part that takes longer than `part_s` seconds has failed.

    If a part ignores its cancel, a thread calls `show` with the findings after `stuck_s` seconds, and the
    process exits with status 1.
    """
    this = _Examination(settings, list(secrets_of(settings)), show, part_s)
    timer = threading.Timer(stuck_s, this.give_up)
    timer.daemon = True
    timer.start()
    missing = MissingFolders.of(settings)
    try:
        trio.run(_examine_all, this)
    except Exception as error:  # noqa: BLE001 - the findings of the other parts are shown all the same
        this.note("doctor", FindingState.FAILED, f"ended early: {describe(first_leaf(error))}", 0.0)
    finally:
        timer.cancel()
        missing.remove_again()
    return this.done()


async def _examine_all(this: _Examination) -> None:
    settings = this.settings
    parts: dict[str, Try] = {
        "redis": partial(examine_store, settings),
        "processor.filestorage": partial(examine_storage, settings),
        "processor.s3": partial(examine_buckets, settings),
        "spool": partial(examine_spool, settings),
        "api": partial(examine_api, settings),
        "egress.downloads": partial(examine_egress, settings.egress.downloads),
        "egress.callbacks": partial(examine_egress, settings.egress.callbacks),
    }
    backends = [f"backends.{name}" for name in settings.backends]
    first = ("redis", "processor.filestorage", "processor.s3")
    this.findings = dict.fromkeys([*first, *backends, *parts])
    if not backends:
        text = "none is configured: `downloader run` sends HTTP callbacks, a notifier alone does not start"
        this.note("backends", FindingState.NOTE, text, 0.0)
    if text := unreachable_files(settings):
        this.note("processor.download_url", FindingState.NOTE, text, 0.0)
    for line in settings.deprecations:
        this.note("configuration", FindingState.NOTE, line, 0.0)
    async with asyncio_loop(), trio.open_nursery() as nursery:
        for part, attempt in parts.items():
            nursery.start_soon(this.examine, part, attempt, STORE_S if part == "redis" else this.part_s)
        nursery.start_soon(_examine_backends, this)


async def _examine_backends(this: _Examination) -> None:
    """With the storage, which they may use; whether it opens is a finding of its own."""
    settings = this.settings
    with suppress(DownloaderError):
        async with AsyncExitStack() as stack:
            storage: Storage = NoStorage()
            with suppress(PluginError):
                storage = await stack.enter_async_context(
                    open_storage(settings.storage_name, settings.storage_section, opening_s=OPENING_S)
                )
            async with trio.open_nursery() as nursery:
                for name in settings.backends:
                    attempt = partial(examine_backend, settings, name, storage)
                    nursery.start_soon(this.examine, f"backends.{name}", attempt, this.part_s)


def secrets_of(settings: Settings) -> Iterator[str]:
    """The texts in the settings that are secret, the longest first."""
    found = set(_hidden(settings.model_dump(), redacted(settings)))
    yield from sorted((text for text in found if len(text) > _SHORT), key=len, reverse=True)


def _hidden(values: Any, shown: Any) -> Iterator[str]:
    """The strings that differ between settings and what may be shown of them."""
    if isinstance(values, Mapping) and isinstance(shown, Mapping):
        for key, value in values.items():
            yield from _hidden(value, shown.get(key))
    elif isinstance(values, list) and isinstance(shown, list):
        for value, what in zip(values, shown, strict=False):
            yield from _hidden(value, what)
    elif isinstance(values, SecretStr):
        yield values.get_secret_value()
    elif isinstance(values, str) and isinstance(shown, str) and values != shown:
        yield values
        userinfo = userinfo_of(values)
        password = userinfo.partition(":")[2]
        yield from (userinfo, password, unquote(password))
