"""The client of Redis and Valkey, with its errors mapped to ours.

Of the core's modules, this, `clients` and `cluster` alone import redis.

redis-py uses asyncio, so every call runs in the asyncio loop that the service has opened (`asyncio_loop`).
Calls are shielded from cancellation and bounded in time instead: a cancelled call would cost a connection,
and it would be unknown whether it was applied.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import trio
from redis import exceptions
from trio_asyncio import aio_as_trio

from downloader.config import RedisSettings
from downloader.errors import ConfigError, StoreError, StoreRefused, StoreUnavailable
from downloader.store.clients import servers_for
from downloader.store.cluster import Servers
from downloader.store.keys import CLUSTER_SHARDS, LAYOUT_VERSION, Keys
from downloader.store.scripts import Script, load_scripts

SILENCES = 2
"""After this many times `redis.timeout` without a message, a subscription is checked with a PING."""

CALLS = 64
"""Calls at once, each on a connection of its own; others wait. The client's pool raises beyond 100."""

REVIVE_S = 0.5
"""Pause between checks of shards that do not answer."""

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

_REFUSED = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
    exceptions.DataError,
)
_NOT_NOW = (
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.AskError,
    exceptions.TryAgainError,
)
"""Errors after which a later try may succeed."""
_NOT_NOW_CODES = ("MISCONF", "NOREPLICAS", "BUSY", "UNKILLABLE")
"""First words of further such error replies, for which redis-py has no types."""


Timed = Callable[[str, float], None]
"""Called after each transition with its name and the seconds that its call took, also if it failed."""


class NoAnswer(StoreUnavailable):
    """No reply came in time, or no connection could be opened. The next call may take as long."""


def as_store_error(error: Exception) -> StoreError:
    """The `StoreError` for an exception of the client; its text has the reason and no secret."""
    # An error of AUTH is the cause of the exception that the client raises while it connects.
    if isinstance(error, _REFUSED) or isinstance(error.__cause__, _REFUSED):
        return StoreRefused(f"the store refuses us: {error}")
    if isinstance(error, exceptions.ResponseError) and not isinstance(error, exceptions.ClusterDownError):
        text = str(error)
        if isinstance(error, _NOT_NOW) or text.split(" ", 1)[0] in _NOT_NOW_CODES:
            return StoreUnavailable(f"the store cannot answer: {text}")
        return StoreRefused(f"the store refuses a call: {text}")
    return NoAnswer(f"the store does not answer: {str(error) or type(error).__name__}")


class StoreClient:
    """Runs scripts and commands on the store's shards.

    After a shard of a Cluster has not answered, calls to it fail at once until `revive` has had an answer
    from it. So calls that concern other shards too do not wait for it.
    """

    def __init__(
        self,
        servers: Servers,
        *,
        keys: Keys,
        settings: RedisSettings,
        scripts: Mapping[str, Script],
        timed: Timed,
    ) -> None:
        self._servers = servers
        self._scripts = scripts
        self._timeout_s = settings.timeout
        self._durability = settings.durability
        self._replicas = settings.replicas
        self._room = trio.Semaphore(CALLS)
        self._silent: set[int] = set()
        self._fell_silent = trio.Event()
        self.keys = keys
        self._timed = timed

    async def run(
        self,
        name: str,
        shard: int,
        call: Mapping[str, Any],
        items: Iterable[Mapping[str, Any]] = (),
        *,
        durable: bool = False,
    ) -> Any:
        """Run one transition on one shard, with arguments by name for the whole call and for each item.

        A `durable` one waits until the write is as durable as configured.

        Raises:
            StoreUnavailable: not carried out, or carried out and the answer was lost.
            StoreRefused: the store will never carry it out.
        """
        script = self._scripts[name]
        base = self.keys.base(shard)
        arguments = [_encode(call), *map(_encode, items)]
        run = self._run_durably if durable and self._durability != "memory" else self._run
        begun_at = trio.current_time()
        try:
            return await self._call_shard(shard, lambda server: run(server, script, base, arguments))
        finally:
            self._timed(name, trio.current_time() - begun_at)

    async def command(self, *words: str | int, shard: int = 0) -> Any:
        """Run a plain command on the keys of `shard`. Raises as `run` does."""
        return await self._call_shard(shard, lambda server: server.execute_command(*words))

    async def ping(self, shard: int) -> None:
        """Check that one shard answers. Raises as `run` does."""
        await self.command("EXISTS", self.keys.key(shard, "layout"), shard=shard)

    async def _call_shard(self, shard: int, call: Callable[[Any], Any]) -> Any:
        if shard in self._silent:
            raise StoreUnavailable(f"the store does not answer: shard {shard} has not answered lately")
        try:
            return await self.call(lambda: self._servers.run(shard, call))
        except NoAnswer:
            if self.keys.shards > 1:
                self._silent.add(shard)
                self._fell_silent.set()
            raise

    async def revive(self) -> None:
        """Check shards that have not answered every `REVIVE_S` until they answer. Runs until cancelled."""
        while True:
            await self._fell_silent.wait()
            self._fell_silent = trio.Event()
            while self._silent:
                await trio.sleep(REVIVE_S)
                async with trio.open_nursery() as nursery:
                    for shard in self._silent:
                        nursery.start_soon(self._look_at, shard)

    async def _look_at(self, shard: int) -> None:
        key = self.keys.key(shard, "layout")

        async def exists(server: Any) -> None:
            await server.execute_command("EXISTS", key)

        for ask in (self._servers.run, self._servers.find):
            with suppress(StoreError):
                await self.call(partial(ask, shard, exists))
                self._silent.discard(shard)
                return

    async def call(self, call: Callable[[], Any]) -> Any:
        """Make one asyncio call: shielded from cancellation, bounded in time, its exceptions mapped."""
        # Shielded: see the module's docstring. The bound covers a stop while the server is dead.
        try:
            with trio.move_on_after(self._timeout_s, shield=True):
                async with self._room:
                    return await aio_as_trio(call)()
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as error:
            raise as_store_error(error) from error
        raise NoAnswer(f"the store does not answer: no reply within {self._timeout_s:g} s")

    async def _run(self, server: Any, script: Script, base: str, arguments: Sequence[str]) -> Any:
        try:
            return await server.evalsha(script.sha, 1, base, *arguments)
        except exceptions.NoScriptError:
            return await server.eval(script.text, 1, base, *arguments)

    async def _run_durably(self, server: Any, script: Script, base: str, arguments: Sequence[str]) -> Any:
        # WAIT and WAITAOF cover the writes of their own connection, so they follow the script on the same
        # one.
        wait_ms = int(self._timeout_s * 1000 * 0.8)
        pipeline = server.pipeline(transaction=False)
        pipeline.execute_command("EVAL", script.text, 1, base, *arguments)
        if self._durability == "aof":
            pipeline.execute_command("WAITAOF", 1, 0, wait_ms)
        else:
            pipeline.execute_command("WAIT", self._replicas, wait_ms)
        answer, reached = await pipeline.execute()
        if self._durability == "aof":
            if reached[0] < 1:
                raise exceptions.TimeoutError("not yet in the append-only file")
        elif reached < self._replicas:
            raise exceptions.TimeoutError(f"on {reached} of {self._replicas} replicas")
        return answer

    @asynccontextmanager
    async def subscribed(self, channels: Sequence[str]) -> AsyncIterator[Callable[[], Any]]:
        """Subscribe to channels; yields a coroutine function that waits for the next message.

        It returns the channel and the message; `None` stands for a (re)subscription to the channel. Messages
        before a (re)subscription may have been missed. It raises `StoreError` when the connection is lost for
        good.
        """
        pubsub = self._servers.any().pubsub()

        async def next_message() -> tuple[str, str | None]:
            asked = False
            while True:
                # After a lost connection the client subscribes again by itself. Only the reply to SUBSCRIBE
                # shows this.
                message = await pubsub.get_message(timeout=SILENCES * self._timeout_s)
                if message is None:
                    # Either there were no messages, or a firewall has dropped the connection silently.
                    if asked:
                        raise exceptions.TimeoutError("the subscription has gone silent")
                    await pubsub.ping()
                    asked = True
                    continue
                asked = False
                if message["type"] in ("message", "subscribe"):
                    text = str(message["data"]) if message["type"] == "message" else None
                    return str(message["channel"]), text

        async def receive() -> tuple[str, str | None]:
            try:
                answer: tuple[str, str | None] = await aio_as_trio(next_message)()
            except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as error:
                raise as_store_error(error) from error
            return answer

        try:
            await self.call(lambda: pubsub.subscribe(*channels))
            yield receive
        finally:
            await self.call(pubsub.aclose)


@asynccontextmanager
async def open_client(
    settings: RedisSettings, timed: Timed = lambda _name, _seconds: None
) -> AsyncIterator[StoreClient]:
    """Connect, and check the server and the layout; closes the client when the context ends.

    Needs a `trio_asyncio` loop around it.

    Raises:
        ConfigError: the URL cannot be read.
        StoreUnavailable: not reachable.
        StoreRefused: it refuses us, or its layout is of another version or kind.
    """
    try:
        servers = servers_for(settings)
    except (ValueError, exceptions.RedisError) as error:
        raise ConfigError(f"redis.url: {error}") from error
    keys = Keys(prefix=settings.key_prefix, shards=CLUSTER_SHARDS if settings.cluster else 1)
    client = StoreClient(servers, keys=keys, settings=settings, scripts=load_scripts(), timed=timed)
    try:
        try:
            await check_layout(client)
            await _check_durability(client, settings)
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"cannot reach the store at {where(settings)}: {_reason(error)}"
            ) from error
        except StoreRefused as error:
            raise StoreRefused(f"{where(settings)}: {error}") from error
        if keys.shards == 1:
            yield client
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.revive)
                yield client
                nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(settings.timeout, shield=True):
            await aio_as_trio(servers.aclose)()


def where(settings: RedisSettings) -> str:
    """The store's address for messages, without the password."""
    if settings.sentinel is not None:
        return f"Sentinel {settings.sentinel.master} of {', '.join(settings.sentinel.nodes)}"
    parts = urlsplit(settings.url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def _reason(error: Exception) -> str:
    return str(error).removeprefix("the store does not answer: ").removeprefix("the store cannot answer: ")


async def check_layout(client: StoreClient) -> bool:
    """Write the layout into an empty store, or compare it with the one found; returns whether it was empty.

    Raises:
        StoreUnavailable: the store does not answer.
        StoreRefused: its layout is of another version or kind.
    """
    key = client.keys.key(0, "layout")
    ours = {"version": LAYOUT_VERSION, "shards": client.keys.shards}
    fresh = await client.command("SET", key, json.dumps(ours), "NX") is not None
    text = await client.command("GET", key)
    if text is None:
        raise StoreUnavailable("the store lost its data while it was asked")
    compare_layout(text, client.keys.shards)
    return fresh


def compare_layout(text: str, shards: int) -> None:
    """Check a layout read from the store, the JSON of `check_layout`, for an instance with that many shards.

    Raises:
        StoreRefused: its version or its number of shards differs.
    """
    found = json.loads(text)
    if found.get("version") != LAYOUT_VERSION:
        raise StoreRefused(
            f"the store has layout {found.get('version')} and this version of the service uses"
            f" {LAYOUT_VERSION}"
        )
    if found.get("shards") != shards:
        raise StoreRefused(
            f"the store was set up with {found.get('shards')} shards and this instance uses"
            f" {shards}; is redis.cluster the same everywhere?"
        )


async def _check_durability(client: StoreClient, settings: RedisSettings) -> None:
    """Check that the server has the configured durability, so that a wrong setting fails at the start."""
    if settings.durability == "aof":
        try:
            await client.command("WAITAOF", 1, 0, 1)
        except StoreRefused as error:
            reason = _reason(error).removeprefix("the store refuses a call: ")
            raise StoreRefused(f"redis.durability is 'aof', but: {reason}") from error
