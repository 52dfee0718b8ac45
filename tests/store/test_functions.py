"""The library of functions: a call leaves nothing to the next, and a server that lacks it is given it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from importlib import resources
from os import fsdecode
from pathlib import Path
from typing import Any

import pytest
import redis
import trio

from downloader.config import HostSettings, RedisSettings
from downloader.errors import StoreRefused
from downloader.model import Kind
from downloader.store import (
    JobStore,
    Keys,
    Library,
    Listed,
    Shares,
    TokenShare,
    asyncio_loop,
    load_library,
    open_client,
    open_store,
)
from servers.every_key import use_every_key
from servers.jobs import handed_back, submitted
from servers.raw_store import RawStore
from servers.store_clock import StoreClock, clocked_library
from servers.valkey import Valkey
from servers.valkey_groups import open_cluster

LUA = resources.files("downloader.store").joinpath("lua")
DOCS = Path(__file__).parents[2] / "docs"
HOSTS = {"slow.test": HostSettings(limit=1, delay=5)}

OURS = load_library()
CHANGED = replace(OURS, body=f"{OURS.body}-- another version\n")


@pytest.mark.row("F12")
async def test_a_full_store_can_be_opened_by_the_version_that_it_knows(
    raw: RawStore, redis_settings: RedisSettings, store: JobStore
) -> None:
    raw.command("CONFIG", "SET", "maxmemory", 1)
    try:
        async with open_store(redis_settings):
            pass
        with pytest.raises(StoreRefused, match="memory is full"):
            async with open_store(redis_settings, library=CHANGED):
                pass
    finally:
        raw.command("CONFIG", "SET", "maxmemory", 0)


def test_all_that_belongs_to_a_call_is_set_when_it_begins() -> None:
    """The server keeps variables of the library's files between calls."""
    shared = "".join(
        LUA.joinpath(f"_{name}.lua").read_text("utf-8") for name in ("lib", "hosts", "ended", "wake")
    )
    declared = re.findall(r"^local (?!function )([\w, ]+)", shared, re.MULTILINE)
    names = {name for names in declared for name in re.split(", ?", names.strip())}
    functions = set(re.findall(r"^ *function (\w+)\(", shared, re.MULTILINE))
    [begin] = re.findall(r"^local function begin\(.*?^end", shared, re.MULTILINE | re.DOTALL)
    begun = {
        name
        for names in re.findall(r"^  (?!local | )([\w, ]+) = ", begin, re.MULTILINE)
        for name in names.split(", ")
    }
    constants = {name for name in names if name.isupper()}
    assert names - constants - functions == begun - {"base"}
    for name in constants:
        assert not re.search(
            rf"\b{name}\b[\w.\[\]]* = ", re.sub("^ *local .*", "", shared, flags=re.MULTILINE)
        )


async def use_every_transition(store: JobStore, clock: StoreClock) -> None:
    await use_every_key(store)
    await store.pause_all(paused=False)
    for kind in Kind:
        clock.move(3)
        share = TokenShare(before_last=1, most=2, unproven=1)
        batch = await store.lease(kind, "one", 3, 60, shares=Shares(token=share, tokens={"t": share}), room=9)
        await store.renew(kind, "one", batch.leases, 60)
        await store.settle("one", [handed_back(lease, "later", 1) for lease in batch.leases[:1]])
        await store.waiting(kind, token="t")
        await store.withdraw(kind, "watches", ["http"] if kind is Kind.CALLBACK else None)
    for which in Listed:
        await store.jobs(which, "d", "", 5)
        await store.failures(which, "", 5)
    clock.move(120)
    for kind in Kind:
        await store.sweep(kind)
    for name in ("a", "nobody's"):
        await store.adjust(name, {"paused": True})
        await store.unfinished(name, 5)
        await store.aggregation(name)
    [failed, *_] = (await store.jobs(Listed.FAILED_DOWNLOADS, "", "", 5)).jobs
    await store.retry(failed.id, download=True, limit=4)
    await store.purge(failed.id)
    await store.load(5)
    await store.backlog(5)
    reapable = await store.reap(3, 60)
    await store.remove([job.spec.id for job in reapable.jobs])
    await store.get(failed.id)
    await store.seal_group("g")
    clock.move(120)
    await store.tend_groups((await store.reap(1, 60)).groups)
    await store.leave("one", "processor")


@contextmanager
def monitored(server: Valkey) -> Iterator[list[list[str]]]:
    """The commands that clients send; complete when the context has ended."""
    words: list[list[str]] = []
    with (
        redis.Redis.from_url(server.url, decode_responses=True) as client,
        redis.Redis.from_url(server.url) as other,
    ):
        connection = client.connection_pool.get_connection()
        connection.send_command("MONITOR")
        connection.read_response()
        yield words
        other.echo("the end")
        while (line := str(connection.read_response())) and '"ECHO"' not in line:
            if " lua] " not in line:
                texts = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
                words.append([codecs.escape_decode(text)[0].decode() for text in texts])


def state_of(server: redis.Redis, base: str) -> Mapping[str, Any]:
    """All keys of a shard with their values."""
    names = sorted(server.keys(f"{base}*"))
    with server.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.dump(name)
        return {
            fsdecode(name).removeprefix(base): value
            for name, value in zip(names, pipeline.execute(), strict=True)
        }


@pytest.mark.slow
async def test_a_call_leaves_nothing_to_the_next() -> None:
    """Each call is made with a library loaded just now, and for two other stores with one that stays.

    The second of these is one call behind, so that calls follow each other that differ in all they have.
    """
    stays = clocked_library()
    new = replace(stays, body=f"{stays.body}-- another name\n")
    with Valkey() as server:
        settings = RedisSettings(url=server.url, key_prefix="first")
        raw = RawStore(settings)
        with monitored(server) as commands:
            clock = StoreClock(raw)
            async with asyncio_loop(), open_store(settings, hosts=HOSTS, library=stays) as store:
                await use_every_transition(store, clock)
        raw.close()
        steps = [words for words in commands if words[0] == "FCALL" or words[1] == "first:1:{0}:clock"]
        called = {words[1].removeprefix(f"{stays.name}_") for words in steps if words[0] == "FCALL"}
        assert called == set(stays.transitions) - {"complete"}, "which only a Cluster needs"
        bases = [
            Keys(prefix=prefix, shards=16).base(shard)
            for prefix, shard in (("new", 0), ("b", 3), ("behind", 12))
        ]
        states: list[tuple[Any, Mapping[str, Any]]] = []
        with redis.Redis.from_url(server.url) as client:

            def step(number: int, library: Library, base: str) -> tuple[Any, Mapping[str, Any]]:
                words = [word.replace("first:1:{0}:", base) for word in steps[number][:4]] + steps[number][4:]
                words[1] = words[1].replace(stays.name, library.name)
                return client.execute_command(*words), state_of(client, base)

            for number, words in enumerate(steps):
                client.function_load(new.text, replace=True)
                states.append(step(number, new, bases[0]))
                assert step(number, stays, bases[1]) == states[number], words
                if number:
                    assert step(number - 1, stays, bases[2]) == states[number - 1], steps[number - 1]


def libraries(server: Valkey) -> set[str]:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return {row[1] for row in client.function_list()}


@pytest.mark.slow
async def test_versions_share_a_server_and_the_older_library_goes() -> None:
    with Valkey() as server:
        redis_settings = RedisSettings(url=server.url)
        async with asyncio_loop(), open_store(redis_settings, library=CHANGED):
            assert libraries(server) == {CHANGED.name}
        async with (
            asyncio_loop(),
            open_store(redis_settings, library=CHANGED) as old,
            open_store(redis_settings) as store,
        ):
            assert libraries(server) == {OURS.name}
            await submitted(old)
            await submitted(store)
            async with open_store(redis_settings), open_store(redis_settings, library=CHANGED):
                assert libraries(server) == {OURS.name, CHANGED.name}


@pytest.mark.row("F12")
async def test_calls_load_a_lost_library_side_by_side(raw: RawStore, store: JobStore) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(20):  # the connections
            nursery.start_soon(store.get, store.new_id("a"))
    raw.command("FUNCTION", "FLUSH")
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(store.get, store.new_id("a"))


@pytest.mark.slow
async def test_each_primary_of_a_cluster_is_given_the_library() -> None:
    with open_cluster(primaries=2) as nodes:
        settings = RedisSettings(url=f"redis://127.0.0.1:{nodes[0].port}", cluster=True)
        async with asyncio_loop(), open_store(settings) as store:
            assert [len(libraries(node)) for node in nodes] == [1, 1]
            for node in nodes:
                node.command("FUNCTION", "FLUSH")
            for number in range(8):
                await submitted(store, f"group {number}")
            assert [len(libraries(node)) for node in nodes] == [1, 1]


@pytest.mark.slow
async def test_a_durable_call_loads_the_library_too() -> None:
    with Valkey("--appendonly", "yes") as server:
        settings = RedisSettings(url=server.url, durability="aof")
        async with asyncio_loop(), open_store(settings) as store:
            server.command("FUNCTION", "FLUSH")
            await submitted(store)


@pytest.mark.slow
@pytest.mark.parametrize("lacks", ["fcall", "function|load"])
async def test_a_user_that_may_not_use_functions(lacks: str) -> None:
    with Valkey() as server:
        server.command("ACL", "SETUSER", "u", "on", "nopass", "~*", "&*", "+@all", f"-{lacks}")
        settings = RedisSettings(url=f"{server.url}?username=u&password=x")
        async with asyncio_loop(), AsyncExitStack() as stack:
            with pytest.raises(StoreRefused, match=r"needs \+fcall and \+function"):
                await stack.enter_async_context(open_client(settings))


@pytest.mark.slow
async def test_the_user_of_the_page_on_redis_may_do_all_that_a_store_does() -> None:
    [line] = re.findall(r"^ACL SETUSER .*$", (DOCS / "howto/redis.md").read_text("utf-8"), re.MULTILINE)
    with Valkey() as server:
        assert server.command(*line.split()) == b"+OK\r\n"
        settings = RedisSettings(url=f"{server.url}?username=downloader&password=secret")
        async with asyncio_loop(), open_store(settings, hosts=HOSTS) as store:
            await use_every_key(store)
            await store.backlog(5)
