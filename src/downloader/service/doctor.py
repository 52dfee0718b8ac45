"""The engine of `downloader doctor`: tries each configured part and reports the results.

The parts are tried at the same time, each with a time limit; the error of a part is its finding. What is
written is deleted again. Folders and the layout of the store stay, as after a start.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote

import httpx2
import trio
from pydantic import SecretStr
from rich.filesize import decimal

from downloader.client import AsyncClient
from downloader.config import ApiSettings, RedisSettings, Settings, redacted
from downloader.errors import ConfigError, DownloaderError, PluginError, StorageError, StoreError, first_leaf
from downloader.fetch import disk_used_percent
from downloader.net import HIDDEN, userinfo_of
from downloader.notify import Checkable, open_notifiers
from downloader.paths import private_folder
from downloader.plugins import BUCKETS, describe, find_cancel, missing_package
from downloader.service.instance import ROLES, differences, open_host, running_redis
from downloader.service.start import listen
from downloader.storage import CLOUD_BUCKETS, OWN_BUCKETS, Body, open_buckets, open_storage
from downloader.store import (
    START_S,
    FolderInUse,
    StoreClient,
    StoreReader,
    asyncio_loop,
    open_client,
    socket_path,
    where,
)

PART_S = 15.0
"""Time limit of a part."""

STORE_S = START_S + PART_S
"""Time limit of the store. An embedded store may have to load a long append-only file."""

STUCK_S = 60.0
"""Time limit of the process, for a part that ignores a cancel, for example a plugin stuck in a thread."""

OPENING_S = 10.0
"""Time limit for a plugin to open; shorter than the service's, because a person waits."""

ASK_S = 3.0
"""Time limit of the request to the program that has our port."""

WRITTEN_MS = 10_000
"""Time to live of the report in the store, in case the doctor is killed before deleting the report."""

TEXT = b"downloader doctor was here; this object may be deleted\n"

_SHORT = 3
"""Longest secret that is not replaced in texts, because replacing would hide parts of plain words."""


class FindingState(StrEnum):
    """The result for a part."""

    OK = "ok"
    FAILED = "failed"
    NOTE = "note"
    """Nothing is broken, but the operator should know the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of trying a part."""

    part: str
    """The name in the configuration: `redis`, `processor.filestorage`, `backends.http` ..."""
    state: FindingState
    text: str
    """A single line without secrets."""
    seconds: float
    """How long the part took."""


class Note(Exception):
    """The text of a finding that is a note."""


Compare = Callable[[Sequence[Mapping[str, Any]]], None]
"""Called with the reports of all live instances."""

Try = Callable[[], Awaitable[str]]
"""Tries a part and returns the text of the finding; raises a `Note` or the error."""


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
    examination = _Examination(list(secrets_of(settings)), show)
    timer = threading.Timer(stuck_s, examination.give_up)
    timer.daemon = True
    timer.start()
    try:
        trio.run(examination.run, settings, part_s)
    except Exception as error:  # noqa: BLE001 - the findings of the other parts are shown all the same
        examination.note("doctor", FindingState.FAILED, f"ended early: {describe(first_leaf(error))}")
    finally:
        timer.cancel()
    return examination.done()


@dataclass(slots=True)
class _Examination:
    """The findings of a run."""

    secrets: Sequence[str]
    show: Callable[[Sequence[Finding]], None]
    findings: dict[str, Finding | None] = field(default_factory=dict)
    """By part, in the order of showing; `None` for a part that is being tried."""

    async def run(self, settings: Settings, part_s: float) -> None:
        """Try all parts."""
        s3, cloud = settings.processor.s3, settings.processor.cloud
        parts: dict[str, Try] = {
            "redis": partial(_try_store, settings, self.compare),
            "processor.filestorage": partial(_try_storage, settings),
            "processor.s3": partial(_try_buckets, OWN_BUCKETS, s3.section, needed=s3.is_set),
            "processor.cloud": partial(_try_buckets, CLOUD_BUCKETS, cloud.section, needed=True),
            **{f"backends.{name}": partial(_try_backend, settings, name) for name in settings.backends},
            "spool": partial(trio.to_thread.run_sync, _try_spool, settings, abandon_on_cancel=True),
            "api": partial(try_api, settings.api),
        }
        if not cloud.buckets:
            del parts["processor.cloud"]
        self.findings = dict.fromkeys(parts)
        if not settings.backends:
            text = (
                "none is configured: `downloader run` sends HTTP callbacks, a notifier alone does not start"
            )
            self.note("backends", FindingState.NOTE, text)
        for line in settings.deprecations:
            self.note("configuration", FindingState.NOTE, line)
        async with asyncio_loop(), trio.open_nursery() as nursery:
            for part, attempt in parts.items():
                nursery.start_soon(self.examine, part, attempt, STORE_S if part == "redis" else part_s)

    async def examine(self, part: str, attempt: Try, within_s: float) -> None:
        """Try a part, in bounded time, and note the finding."""
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

    def compare(self, reports: Sequence[Mapping[str, Any]]) -> None:
        """Note whether the settings of the live instances agree; nothing if none is alive."""
        if reports and (texts := [*differences(reports)]):
            self.note("fleet", FindingState.FAILED, "; ".join(texts))
        elif reports:
            self.note("fleet", FindingState.OK, f"{len(reports)} roles run, with the same settings")

    def note(self, part: str, state: FindingState, text: str, seconds: float = 0.0) -> None:
        """Note the finding of a part."""
        # The part's name is shown beside it.
        line = " ".join(text.split()).removeprefix(f"{part}: ")
        for secret in self.secrets:
            line = line.replace(secret, HIDDEN)
        self.findings[part] = Finding(part=part, state=state, text=line, seconds=round(seconds, 3))

    def done(self) -> list[Finding]:
        """The findings, in order."""
        return [finding for finding in self.findings.values() if finding is not None]

    def give_up(self) -> None:
        """In a thread: show the findings, and exit, because a part ignores the cancel."""
        for part, finding in list(self.findings.items()):
            if finding is None:
                self.note(part, FindingState.FAILED, "hangs, and ignores its cancel")
        self.show(self.done())
        os._exit(1)


async def _try_store(settings: Settings, compare: Compare) -> str:
    """Connect as a start does, write as durably as configured, and read the server's version."""
    try:
        async with running_redis(settings) as redis:
            return await _try_redis(redis, compare)
    except FolderInUse:  # by a service that runs
        url = f"unix://{socket_path(settings.data_dir / 'valkey')}"
        return await _try_redis(settings.redis.model_copy(update={"url": url}), compare)


async def _try_redis(redis: RedisSettings, compare: Compare) -> str:
    who = {"role": "doctor", "instance": f"doctor-{secrets.token_hex(4)}"}
    async with open_client(redis) as client:
        began = trio.current_time()
        report = {**who, "facts": "{}", "ttl_ms": WRITTEN_MS, "number": 0, "counted_ms": WRITTEN_MS}
        try:
            await client.run("report", 0, report, durable=True)
        finally:
            await client.run("leave", 0, who)
        took_ms = (trio.current_time() - began) * 1000
        info = await _info(client)
        reader = StoreReader(client)
        compare([report for role in ROLES for report in await reader.reports(role)])
    kind = "valkey" if "valkey_version" in info else "redis"
    text = (
        f"{kind.title()} {info.get(f'{kind}_version', '')} at {where(redis)}; a write took {took_ms:.1f} ms"
    )
    if redis.durability != "memory":
        text += f", waiting for {redis.durability}"
    text += f"; secrets of jobs are {'' if redis.encryption_keys else 'not '}encrypted"
    if limit := info.get("maxmemory"):
        text += f"; {decimal(info['used_memory'])} of at most {decimal(limit)} of memory used"
    if risks := [*_risks(redis, info)]:
        raise Note("; ".join((text, *risks)))
    return text


async def _info(client: StoreClient) -> Mapping[str, Any]:
    """The reply of a server to `INFO`; empty if the user may not ask."""
    try:
        info: Mapping[str, Any] = await client.command("INFO")
    except StoreError:
        return {}
    return info


def _risks(redis: RedisSettings, info: Mapping[str, Any]) -> Iterator[str]:
    """The settings of the server that may lose jobs."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield f"maxmemory-policy is {policy}, which may delete jobs: it has to be noeviction"
    if info.get("maxmemory") == 0:
        yield "it has no maxmemory: jobs are accepted until the system kills it"
    if redis.durability == "memory" and info.get("aof_enabled") == 0:
        yield "it has no append-only file, so a restart of it may lose jobs"


async def _try_storage(settings: Settings) -> str:
    """Store, read and delete a small object under a key that no job has."""
    name, key = settings.storage_name, f"doctor/{secrets.token_hex(8)}"
    digest = hashlib.sha256(TEXT).hexdigest()
    async with open_storage(name, settings.storage_section, opening_s=OPENING_S) as storage:
        try:
            await storage.put(key, Body(size=len(TEXT), sha256=digest, mime_type="text/plain", data=TEXT))
            stored = await storage.local(key)
            if stored is not None and stored.size != len(TEXT):
                raise StorageError(f"stored {len(TEXT)} bytes, and found {stored.size}")
        finally:
            await storage.delete(key)
        if await storage.local(key) is not None:
            raise StorageError("deleted an object, which is still there")
    return f"{name}: wrote and deleted an object"


async def _try_buckets(name: str, section: Mapping[str, Any], *, needed: bool) -> str:
    """Open the plugin for buckets of jobs; no bucket can be tried before a job names one."""
    if not needed and (missing := missing_package(BUCKETS, name)):
        raise Note(f"jobs' own buckets are refused: the plugin {missing}")
    async with open_buckets(name, section):
        return "opens; nothing to try until a job brings a bucket"


async def _try_backend(settings: Settings, name: str) -> str:
    """Open a backend, and call `check` if the notifier has the method."""
    async with AsyncExitStack() as stack:
        opening = open_storage(settings.storage_name, settings.storage_section, opening_s=OPENING_S)
        try:
            storage = await stack.enter_async_context(opening)
        except PluginError:
            raise Note("not tried, because the file storage does not open") from None
        host = await stack.enter_async_context(open_host(settings, storage))
        section = {name: settings.backends[name]}
        notifiers = await stack.enter_async_context(open_notifiers(section, host, opening_s=OPENING_S))
        notifier = notifiers[name]
        if isinstance(notifier, Checkable):
            return str(await notifier.check())
        return "opens; nothing to try until there is a callback"


def _try_spool(settings: Settings) -> str:
    """Write a temporary file in the spool, and check how full the disk is."""
    folder, high = settings.spool_dir, settings.processor.disk_high
    private_folder(folder, setting="data_dir")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(TEXT)
            file.flush()
            os.fsync(file.fileno())
        used, disk = disk_used_percent(folder), os.statvfs(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from error
    free = decimal(disk.f_bavail * disk.f_frsize)
    text = f"{folder} can be written; the disk is {used:.0f}% full, {free} free"
    if used >= high:
        raise StorageError(f"{text}; no download starts at disk_high = {high:g}% or more")
    if used >= settings.processor.disk_low:
        raise Note(f"{text}; at disk_high = {high:g}% downloads pause")
    return text


async def try_api(api: ApiSettings) -> str:
    """Bind the API's port for a moment, or find a running downloader on the port."""
    text = ""
    try:
        [listener] = await trio.to_thread.run_sync(listen, api, abandon_on_cancel=True)
        listener.close()
        text = "is free"
    except ConfigError as error:
        # The certificate is not verified, because the connection stays on this machine.
        transport = httpx2.AsyncHTTPTransport(verify=False)
        with trio.move_on_after(ASK_S), suppress(DownloaderError):
            async with AsyncClient(api.local_url, retries=0, transport=transport) as client:
                await client.ping()
                text = "is served by a downloader that runs"
        if not text:
            raise ConfigError(f"{str(error).partition(': ')[2]}; another program has it") from None
    text = f"{api.host}:{api.port} {text}"
    if not api.tokens and not is_loopback(api.host):
        raise Note(f"{text}; there are no [[api.tokens]]: every client that reaches it may do everything")
    return text


def is_loopback(host: str) -> bool:
    """Whether only the local machine can reach an address to listen on."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def secrets_of(settings: Settings) -> Iterator[str]:
    """The texts in the settings that are secret, the longest first."""
    texts = set(_hidden(settings.model_dump(), redacted(settings)))
    yield from sorted((text for text in texts if len(text) > _SHORT), key=len, reverse=True)


def _hidden(values: Any, shown: Any) -> Iterator[str]:
    """The strings that differ between `values` and the redacted settings `shown`."""
    if isinstance(values, Mapping) and isinstance(shown, Mapping):
        for key, value in values.items():
            yield from _hidden(value, shown.get(key))
    elif isinstance(values, list) and isinstance(shown, list):
        for value, redacted_value in zip(values, shown, strict=False):
            yield from _hidden(value, redacted_value)
    elif isinstance(values, SecretStr):
        yield values.get_secret_value()
    elif isinstance(values, str) and isinstance(shown, str) and values != shown:
        userinfo = userinfo_of(values)
        password = userinfo.partition(":")[2]
        yield from (values, userinfo, password, unquote(password))
