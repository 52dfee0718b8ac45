"""`StoreClient`: runs scripts and commands on the shards of the store, and checks a store at the start."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import trio

from downloader.config import RedisSettings
from downloader.errors import StoreError, StoreRefused, StoreUnavailable
from downloader.groupcommit import CommitAbandoned, GroupCommit
from downloader.ids import shard_of
from downloader.jsontext import compact_json
from downloader.observe import Event, get_logger
from downloader.store.keys import CLUSTER_SHARDS, LAYOUT_VERSION, Keys
from downloader.store.scripts import Library, load_library
from downloader.store.servers import (
    CALLS,
    SYNCED_TTL_MS,
    NoAnswer,
    ScriptCall,
    Servers,
    prepare,
    run_script,
    run_script_durably,
    run_scripts,
    servers_for,
)
from downloader.tasks import background

log = get_logger()

T = TypeVar("T")
A = TypeVar("A")

JOINED = ("submit", "lease", "finish", "close_callback", "retry_later", "release")
"""Scripts that jobs call most often. Calls that begin at the same time share a round trip, and calls that
begin during a round trip share the next one. So each call sees the writes of all earlier calls. Calls of
other scripts, such as renewals, do not wait."""

MAX_ROWS = 100
"""Most rows of a call that joins others, and of a call of a durable transition. The script takes about 2 ms,
and delays all other calls by this time."""

FEW_ROWS = 16
"""Calls of durable transitions with more rows wait for their turn, see `MANY_CALLS`."""

MANY_CALLS = 3
"""Most concurrent calls of durable transitions with more than `FEW_ROWS` rows. The store works on one call
at a time, so more concurrent calls would only delay all others."""

DURABLE_CALLS = CALLS - 16
"""Most concurrent calls that wait until a write is durable. They may wait seconds for a disk or a replica, so
they leave connections for calls that do not wait, such as renewals of leases."""

LATE_S = 0.05
"""A pipeline that takes longer is late; most take a millisecond."""

JOINED_CALLS = 8
"""Most calls in one round trip."""

REVIVE_S = 0.5
"""Pause between checks of shards that do not answer."""


def shard_count(settings: RedisSettings) -> int:
    """The number of shards of a store."""
    return CLUSTER_SHARDS if settings.cluster else 1


def limit_of_shard(limit: int, settings: RedisSettings) -> int:
    """Each shard's equal part of a limit over the fleet, at least 1."""
    return max(1, limit // shard_count(settings))


Timed = Callable[[str, float], None]
"""Called after each transition, failed transitions included, with the name and the duration in seconds."""


class StoreClient:
    """Runs scripts and commands on the store's shards: one, or several of a Cluster.

    After a shard of a Cluster has failed to answer, calls to that shard fail at once until `revive` gets an
    answer from it. So a silent shard does not delay calls that go to several shards.
    """

    def __init__(
        self,
        servers: Servers,
        *,
        keys: Keys,
        settings: RedisSettings,
        library: Library,
        timed: Timed,
    ) -> None:
        self.keys = keys
        self._servers = servers
        self._library = library
        self._timed = timed
        self._timeout_s = settings.timeout
        self._no_reply = f"the store does not answer: no reply within {settings.timeout:g} s"
        self._durable = settings.durability != "memory"
        self._run_durably = partial(run_script_durably, settings=settings)
        self.joined: GroupCommit[ScriptCall, Any] = GroupCommit(
            self._run_together,
            max_batch=JOINED_CALLS,
            lane=self._lane,
            lane_errors=NoAnswer,
            shield=True,
        )
        self._lanes: dict[int, tuple[int, float]] = {}
        """By shard: the number of the lane for new calls, and the Trio time at which the lane's pipeline
        began (infinite: none runs)."""
        self._many = trio.Semaphore(MANY_CALLS)
        self._durables = trio.Semaphore(DURABLE_CALLS)
        self._silent: set[int] = set()
        self._fell_silent = trio.Event()

    async def run(
        self,
        name: str,
        shard: int,
        call: Mapping[str, Any],
        items: Iterable[Mapping[str, Any]] = (),
        *,
        durable: bool = False,
    ) -> Any:
        """Run a transition on a shard, with named arguments for the whole call and for each item.

        A `durable` call waits until the write is as durable as configured.

        Raises:
            StoreUnavailable: not carried out, or carried out and the answer was lost.
            StoreRefused: the store refuses the call, and will refuse a repetition.
        """
        arguments = [compact_json(row) for row in (call, *items)]
        script_call = ScriptCall(self._library, name, shard, self.keys.base(shard), arguments)
        begun_at = trio.current_time()
        try:
            if durable and self._durable:
                async with self._turn(self._durables):
                    return await self._call_shard(
                        shard, lambda server: self._run_durably(server, script_call)
                    )
            if name in JOINED and len(arguments) <= 1 + MAX_ROWS:
                return await self._join(script_call)
            return await self._call_shard(shard, lambda server: run_script(server, script_call))
        finally:
            self._timed(name, trio.current_time() - begun_at)

    async def _join(self, call: ScriptCall) -> Any:
        """Run a script in one round trip with others; bounded in time and shielded, as all calls are.

        The call waits for one round trip at the most, and fails with that.
        """
        try:
            answer = await self.joined.submit(call)
        except CommitAbandoned:
            raise StoreUnavailable("the store's client is closing") from None
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def _lane(self, call: ScriptCall) -> tuple[int, int]:
        """The shard's lane; a new lane if an answer is late, so that a lost answer delays no later call."""
        number, begun_at = self._lanes.get(call.shard, (0, math.inf))
        # In a Cluster, calls that wait for a late call fail together with it, and the shard counts as silent.
        if self.keys.shards == 1 and trio.current_time() > begun_at + LATE_S:
            number += 1
            self._lanes[call.shard] = number, math.inf
        return call.shard, number

    async def _run_together(self, calls: Sequence[ScriptCall]) -> Sequence[Any]:
        """Run scripts of one shard; returns an answer or an error for each."""
        shard = calls[0].shard
        number, _ = self._lanes.get(shard, (0, math.inf))
        self._lanes[shard] = number, trio.current_time()
        try:
            return await self._run_pipeline(shard, calls)
        finally:
            if self._lanes[shard][0] == number:
                self._lanes[shard] = number, math.inf

    async def _run_pipeline(self, shard: int, calls: Sequence[ScriptCall]) -> Sequence[Any]:
        if len(calls) == 1:
            return [await self._call_shard(shard, lambda server: run_script(server, calls[0]))]
        answers: Sequence[Any] = await self._call_shard(shard, lambda server: run_scripts(server, calls))
        return answers

    def joins_durable(self, rows: int) -> bool:
        """Whether a call of a durable transition with this many rows is sent together with other calls."""
        return not self._durable and rows <= FEW_ROWS

    async def prepare_durable(self, shard: int) -> None:
        """Set the key that durable calls need. Raises as `run` does."""
        await self.command("SET", self.keys.key(shard, "synced"), 1, "PX", SYNCED_TTL_MS, shard=shard)

    async def prepare(self, shard: int) -> None:
        """Load the transitions into the server of a shard, see `servers.prepare`. Raises as `run` does."""
        await self._call_shard(shard, lambda server: prepare(server, self._library))

    async def command(self, *words: str | int, shard: int = 0) -> Any:
        """Run a plain command on the keys of `shard`; returns the reply as redis-py parses it.

        Bounded in time and shielded, as all calls are. Raises as `run` does.
        """
        return await self._call_shard(shard, lambda server: server.execute_command(*words))

    async def ping(self, shard: int) -> None:
        """Check that a shard answers. Raises as `run` does."""
        await self.command("EXISTS", self.keys.key(shard, "layout"), shard=shard)

    async def run_on_all(self, script: str, call: Mapping[str, Any]) -> Sequence[Any]:
        """Run a script on all shards; return the answers received. Raises as `ask` does."""
        answers = await self.ask(range(self.keys.shards), lambda shard: self.run(script, shard, call))
        return list(answers.values())

    async def run_rows(
        self, name: str, call: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, durable: bool = False
    ) -> list[Any]:
        """Run a transition for rows, with one call per shard; the script answers with one entry per row.

        Returns the entries in the order of the rows; `None` for rows of shards that did not answer.

        Raises:
            StoreUnavailable: no shard answered.
        """
        places: defaultdict[int, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            places[shard_of(row["id"], self.keys.shards)].append(place)

        async def run(shard: int) -> Sequence[Any]:
            rows_of_shard = [rows[place] for place in places[shard]]
            if durable and len(rows_of_shard) > FEW_ROWS:
                return await self._run_many(name, shard, call, rows_of_shard)
            entries: Sequence[Any] = await self.run(name, shard, call, rows_of_shard, durable=durable)
            return entries

        entries: list[Any] = [None] * len(rows)
        for shard, of_shard in (await self.ask(places, run)).items():
            for place, entry in zip(places[shard], of_shard, strict=True):
                entries[place] = entry
        return entries

    async def _run_many(
        self, name: str, shard: int, call: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> Sequence[Any]:
        """Run a durable transition for many rows in short calls, then wait until all writes are durable.

        If a call gets no answer, no further call is made, and the entries of the remaining rows are `None`.
        """
        entries: list[Any] = []
        try:
            while len(entries) < len(rows):
                async with self._turn(self._many):
                    entries += await self.run(name, shard, call, rows[len(entries) :][:MAX_ROWS])
        except StoreUnavailable:
            if not entries:
                raise
        if self._durable:
            await self.run(name, shard, call, durable=True)
        return [*entries, *[None] * (len(rows) - len(entries))]

    @asynccontextmanager
    async def _turn(self, turns: trio.Semaphore) -> AsyncIterator[None]:
        """Take one of `turns` while the context is open, after a wait as long as a call may take.

        Raises:
            NoAnswer: none was free in time.
        """
        with trio.move_on_after(self._timeout_s) as waiting:
            await turns.acquire()
        if waiting.cancelled_caught:
            raise NoAnswer(self._no_reply)
        try:
            yield
        finally:
            turns.release()

    async def ask(
        self, shards: Collection[int], ask: Callable[[int], Awaitable[A]], *, some: bool = False
    ) -> dict[int, A]:
        """Ask shards at the same time; returns the answers by shard, and logs which shards did not answer.

        Raises:
            StoreUnavailable: no shard answered, and `some` is false (`some`: a shard has answered before).
        """
        if self.keys.shards == 1:
            return {shard: await ask(shard) for shard in shards}
        answers: dict[int, A] = {}
        errors: dict[int, StoreError] = {}

        async def one(shard: int) -> None:
            try:
                answers[shard] = await ask(shard)
            except StoreRefused as error:
                errors[shard] = StoreUnavailable(f"shard {shard}: {error}")
            except StoreUnavailable as error:
                errors[shard] = error

        async with trio.open_nursery() as nursery:
            for shard in shards:
                nursery.start_soon(one, shard)
        if errors and not answers and not some:
            raise next(iter(errors.values()))
        return answers

    def subscribed(
        self, channels: Sequence[str]
    ) -> AbstractAsyncContextManager[Callable[[], Awaitable[tuple[str, str | None]]]]:
        """Subscribe to channels, see `Servers.subscribed`."""
        return self._servers.subscribed(channels)

    async def revive(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Check silent shards every `REVIVE_S` until an answer comes. Runs until cancelled."""
        task_status.started()
        while True:
            await self._fell_silent.wait()
            self._fell_silent = trio.Event()
            while self._silent:
                await trio.sleep(REVIVE_S)
                async with trio.open_nursery() as nursery:
                    for shard in self._silent:
                        nursery.start_soon(self._revive_shard, shard)

    async def _call_shard(self, shard: int, call: Callable[[Any], Any]) -> Any:
        if shard in self._silent:
            raise StoreUnavailable(f"the store does not answer: shard {shard} has not answered lately")
        try:
            return await self._servers.run(shard, call)
        except NoAnswer as error:
            if self.keys.shards > 1:
                if shard not in self._silent:
                    log.warning(Event.STORE_UNAVAILABLE, shard=shard, reason=str(error))
                self._silent.add(shard)
                self._fell_silent.set()
            raise

    async def _revive_shard(self, shard: int) -> None:
        key = self.keys.key(shard, "layout")

        async def exists(server: Any) -> None:
            await server.execute_command("EXISTS", key)

        for ask in (self._servers.run, self._servers.find):
            with suppress(StoreError):
                await ask(shard, exists)
                self._silent.discard(shard)
                log.info(Event.STORE_AVAILABLE, shard=shard)
                return


@asynccontextmanager
async def open_client(
    settings: RedisSettings,
    timed: Timed = lambda _name, _seconds: None,
    *,
    library: Library | None = None,
) -> AsyncIterator[StoreClient]:
    """Connect, and check the server and the layout; closes the client when the context ends.

    Needs a `trio_asyncio` loop around it.

    Raises:
        ConfigError: the URL cannot be read.
        StoreUnavailable: the server is not reachable.
        StoreRefused: the server refuses us, or the layout is of another version or kind.
    """
    servers = servers_for(settings)
    keys = Keys(prefix=settings.key_prefix, shards=shard_count(settings))
    library = library or load_library(cluster=settings.cluster)
    client = StoreClient(servers, keys=keys, settings=settings, library=library, timed=timed)
    try:
        try:
            await check_layout(client)
            await _check_functions(client)
            await _check_durability(client, settings)
            await _check_channels(client)
            await _check_eviction(client)
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"cannot reach the store at {where(settings)}: {_reason(error)}"
            ) from error
        except StoreRefused as error:
            raise StoreRefused(f"{where(settings)}: {error}") from error
        async with client.joined.running(), background(client.revive):
            yield client
    finally:
        await servers.aclose()


def where(settings: RedisSettings) -> str:
    """The store's address for messages, without the password."""
    if settings.sentinel is not None:
        return f"Sentinel {settings.sentinel.master} of {', '.join(settings.sentinel.nodes)}"
    parts = urlsplit(settings.url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def _reason(error: Exception) -> str:
    return re.sub("^the store (does not answer|cannot answer|refuses us|refuses a call): ", "", str(error))


async def check_layout(client: StoreClient) -> bool:
    """Write the layout into an empty store, else compare the layouts; returns whether the store was empty.

    Raises:
        StoreUnavailable: the store does not answer.
        StoreRefused: the stored layout is of another version or kind.
    """
    key = client.keys.key(0, "layout")
    ours = {"version": LAYOUT_VERSION, "shards": client.keys.shards}
    fresh, text = False, await client.command("GET", key)  # a server with full memory refuses SET
    if text is None:
        fresh = await client.command("SET", key, json.dumps(ours), "NX") is not None
        text = await client.command("GET", key)
    if text is None:
        raise StoreUnavailable("the store lost its data while it was asked")
    layout = json.loads(text)
    if layout.get("version") != LAYOUT_VERSION:
        raise StoreRefused(
            f"the store has layout {layout.get('version')} and this version of the service uses"
            f" {LAYOUT_VERSION}"
        )
    if layout.get("shards") != client.keys.shards:
        raise StoreRefused(
            f"the store was set up with {layout.get('shards')} shards and this instance uses"
            f" {client.keys.shards}; is redis.cluster the same everywhere?"
        )
    return fresh


async def _check_functions(client: StoreClient) -> None:
    """Load the transitions into all servers that answer, and check that all can be called.

    Raises:
        StoreRefused: the server has no functions, or no memory for ours, or the user may not use them.
    """
    try:
        await client.prepare(0)
        await client.run("get", 0, {"id": ""})
    except StoreRefused as error:
        reason = _reason(error)
        raise StoreRefused(
            f"functions cannot be used: {reason}; the server must be Redis 7.2 or newer, or Valkey, and its"
            " user needs +fcall and +function"
        ) from error
    except StoreUnavailable as error:
        if "maxmemory" not in str(error):
            raise
        raise StoreRefused(
            "its memory is full, so that the functions of this version cannot be loaded; raise maxmemory, or"
            " let instances of the former version run until jobs have ended"
        ) from error
    await client.ask(range(1, client.keys.shards), client.prepare, some=True)


async def _check_channels(client: StoreClient) -> None:
    """Check that the user may publish: without wake-ups, work would start seconds late.

    Raises:
        StoreRefused: the user may not.
    """
    try:
        await client.command("PUBLISH", client.keys.key(0, "wake", "check"), "")
    except StoreRefused as error:
        raise StoreRefused(
            f"the store's user may not publish; allow it the channels {client.keys.prefix}:*"
            f" (ACL SETUSER <user> '&{client.keys.prefix}:*')"
        ) from error


async def _check_eviction(client: StoreClient) -> None:
    """Check that a full server refuses writes instead of deleting jobs.

    Raises:
        StoreRefused: it deletes keys that have no time to live.
    """
    memory = await client.command("INFO", "memory")
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if not memory.get("maxmemory") or policy == "noeviction":
        return
    if policy.startswith("allkeys-"):
        raise StoreRefused(
            f"maxmemory-policy is {policy}: the server would delete jobs when its memory is full;"
            " set it to noeviction"
        )
    log.warning(Event.STORE_EVICTS, policy=policy)


async def _check_durability(client: StoreClient, settings: RedisSettings) -> None:
    """Check that the server has the configured durability, so that a wrong setting fails at the start."""
    if settings.durability != "memory":
        await client.ask(range(client.keys.shards), client.prepare_durable)
    if settings.durability == "aof":
        try:
            await client.command("WAITAOF", 1, 0, 1)
        except StoreRefused as error:
            raise StoreRefused(f"redis.durability is 'aof', but: {_reason(error)}") from error
