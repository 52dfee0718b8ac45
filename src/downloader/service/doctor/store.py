"""The check of the store: runs a script as jobs do, on keys of its own prefix."""

from __future__ import annotations

import secrets
import statistics
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from rich.filesize import decimal

from downloader.config import EMBEDDED, RedisSettings, Settings
from downloader.errors import ConfigError, StoreError
from downloader.folders import private_folder
from downloader.service.doctor.parts import Note
from downloader.store import (
    FolderInUse,
    Keys,
    StoreClient,
    compare_layout,
    embedded_valkey,
    open_client,
    open_sealer,
    socket_path,
    where,
)

WRITES = 5
"""Number of writes; the median of their times is shown."""

PREFIX_CHARS = 44
"""How much of the configured prefix begins the doctor's own prefix, so that the server's ACLs allow both."""

KEPT_MS = 10_000
"""Time to live of what is written, in case the doctor is killed before it deletes it."""

_WHO = {"role": "doctor", "instance": "doctor"}


async def examine_store(settings: Settings) -> str:
    """Connect, write as durably as configured, and read the server's version; raises what is wrong."""
    if settings.redis.url != EMBEDDED:
        return await _examine(settings.redis, f"at {where(settings.redis)}")
    folder = settings.data_dir / "valkey"
    try:
        async with _embedded(settings) as url:
            redis = settings.redis.model_copy(update={"url": url})
            return await _examine(redis, f"embedded, in {folder}")
    except FolderInUse:
        redis = settings.redis.model_copy(update={"url": f"unix://{socket_path(folder)}"})
        return await _examine(redis, f"embedded in a service that runs, in {folder}")


@asynccontextmanager
async def _embedded(settings: Settings) -> AsyncIterator[str]:
    """The embedded server on its own data; if there are none yet, on a temporary folder beside them."""
    data_dir, max_memory = settings.data_dir, settings.redis.max_memory
    if await trio.Path(data_dir / "valkey").exists():
        async with embedded_valkey(data_dir, max_memory) as url:
            yield url
        return
    try:
        beside = await trio.to_thread.run_sync(_folder_in, data_dir)
    except OSError as error:
        raise ConfigError(f"data_dir: {data_dir} cannot be written: {error.strerror}") from error
    with beside as folder:
        async with embedded_valkey(Path(folder), max_memory) as url:
            yield url


def _folder_in(data_dir: Path) -> tempfile.TemporaryDirectory[str]:
    private_folder(data_dir, setting="data_dir")
    return tempfile.TemporaryDirectory(prefix=".doctor-", dir=data_dir, ignore_cleanup_errors=True)


async def _examine(redis: RedisSettings, place: str) -> str:
    sealer = open_sealer(redis.encryption_keys)
    fleets = redis.key_prefix
    prefix = f"{fleets[:PREFIX_CHARS]}:doctor-{secrets.token_hex(4)}"
    redis = redis.model_copy(update={"key_prefix": prefix})
    # A second client for cleaning up, as the first is refused by a server that is not durable enough.
    async with open_client(redis.model_copy(update={"durability": "memory"})) as cleaner:
        try:
            async with open_client(redis) as client:
                took_ms = [await _write(client) for _ in range(WRITES)]
                await _check_layout(client, fleets)
                facts = await _facts(client)
        finally:
            await cleaner.run("leave", 0, _WHO)
            await cleaner.command("DEL", *(cleaner.keys.key(0, name) for name in ("layout", "synced")))
    text = f"{_server(facts)} {place}; a write took {statistics.median(took_ms):.1f} ms"
    if redis.durability != "memory":
        text += f", waiting for {redis.durability}"
    text += "; secrets of jobs are encrypted" if sealer else "; secrets of jobs are not encrypted"
    if limit := facts.get("maxmemory"):
        text += f"; {decimal(facts['used_memory'])} of at most {decimal(limit)} of memory used"
    if note := _risk(redis, facts):
        raise Note(f"{text}; {note}")
    return text


async def _write(client: StoreClient) -> float:
    """One write by script, deleted again; returns how many milliseconds it took."""
    began = trio.current_time()
    call = {**_WHO, "facts": "{}", "ttl_ms": KEPT_MS, "number": 0, "counted_ms": KEPT_MS}
    await client.run("report", 0, call, durable=True)
    took_ms = (trio.current_time() - began) * 1000
    await client.run("leave", 0, _WHO)
    return took_ms


async def _check_layout(client: StoreClient, prefix: str) -> None:
    """Whether the fleet's own data, if there are any, are of a layout that this version knows."""
    keys = Keys(prefix=prefix, shards=client.keys.shards)
    if text := await client.command("GET", keys.key(0, "layout")):
        compare_layout(text, keys.shards)


async def _facts(client: StoreClient) -> Mapping[str, Any]:
    """`INFO` of one server; empty where we are not allowed to ask."""
    try:
        answer = await client.command("INFO")
    except StoreError:
        return {}
    if isinstance(answer, Mapping) and answer and all(isinstance(one, Mapping) for one in answer.values()):
        # A cluster's client asks each node.
        answer = next(iter(answer.values()))
    return answer if isinstance(answer, Mapping) else {}


def _server(facts: Mapping[str, Any]) -> str:
    if version := facts.get("valkey_version"):
        return f"Valkey {version}"
    return f"Redis {facts['redis_version']}" if "redis_version" in facts else "a server"


def _risk(redis: RedisSettings, facts: Mapping[str, Any]) -> str:
    """The settings of the server that may lose jobs; empty if there are none."""
    risks = []
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        risks.append(f"maxmemory-policy is {policy}, which may delete jobs: it has to be noeviction")
    if facts.get("maxmemory") == 0:
        risks.append("it has no maxmemory: jobs are accepted until the system kills it")
    if redis.durability == "memory" and facts.get("aof_enabled") == 0:
        risks.append("it has no append-only file, so a restart of it may lose jobs")
    return "; ".join(risks)
