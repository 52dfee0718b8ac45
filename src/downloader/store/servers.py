"""redis-py's clients for the servers of the store, and the mapping of redis-py's errors.

No other module of the core imports redis or trio-asyncio. redis-py uses asyncio, so every call runs in the
asyncio loop that the service has opened (`asyncio_loop`). Calls are shielded from cancellation and bounded in
time instead: a cancelled call would cost a connection, and might have been applied or not.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis.asyncio as aioredis
import trio
import trio_asyncio
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialWithJitterBackoff
from trio_asyncio import aio_as_trio

from downloader.config import RedisSettings
from downloader.errors import ConfigError, StoreError, StoreRefused, StoreUnavailable
from downloader.store.scripts import FAMILY, Library

T = TypeVar("T")

Call = Callable[[Any], Awaitable[T]]
"""Makes an asyncio call with a redis-py client."""

RETRIES = 3
"""Repetitions of a call after a lost reply or connection. Every script may be repeated."""

RETRY_BASE_S, RETRY_CAP_S = 0.02, 0.5

SYNCED_TTL_MS = 24 * 3600 * 1000
"""Time to live of the key `synced`, which each durable call writes."""

LOADS = 3
"""Most times that a call loads the library, which an instance of another version may delete meanwhile."""

MOVES = 3
"""Most times that a call follows a shard to another node."""

CALLS = 80
"""Calls at the same time, each on a separate connection; further calls wait. redis-py's pool raises above
100."""

ENCODING_ERRORS = "backslashreplace"
"""Applies to lone surrogates and damaged texts. An exception would fail the call, and again each later one; a
replaced text is at worst invalid JSON."""

CALLBACKS = 64
"""Callbacks of asyncio that are called before other tasks of Trio get a turn; a round trip has about nine."""

SILENCES = 2
"""After this many times `redis.timeout` without a message, a subscription is checked with a PING."""

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
"""Temporary errors: a later call may succeed."""
_NOT_NOW_CODES = ("MISCONF", "NOREPLICAS", "BUSY", "UNKILLABLE", "UNBLOCKED")
"""First words of further temporary error replies, for which redis-py has no exception types."""


@asynccontextmanager
async def asyncio_loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """Run an asyncio loop while the context is open; an exception that no task catches ends the context."""
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_on_error)
        _speed_up(loop)
        yield loop


def _speed_up(loop: Any) -> None:
    """Halve the CPU of a round trip to the store by changing two methods of trio-asyncio 0.16.

    trio-asyncio enters a cancel scope and lets all tasks run before each callback; the new method calls all
    ready callbacks in a row, as asyncio's own loop does. The check of each callback, which asyncio does in
    debug mode only, is left out.
    """
    call_next = loop._main_loop_one  # noqa: SLF001  # a test notices when a later version has it no more

    async def call_ready(no_wait: bool = False) -> None:  # noqa: FBT001, FBT002  # the library's signature
        await call_next(no_wait)
        with suppress(trio.WouldBlock):
            for _ in range(CALLBACKS):
                await call_next(no_wait=True)

    loop._main_loop_one = call_ready  # noqa: SLF001
    loop._check_callback = lambda _callback, _method: None  # noqa: SLF001


def _on_error(loop: Any, context: dict[str, Any]) -> None:
    if not _is_harmless(context):
        loop.default_exception_handler(context)


def _is_harmless(context: dict[str, Any]) -> bool:
    """Whether an error that ends the process in trio-asyncio 0.16 would be harmless in asyncio's own loop."""
    error = context.get("exception")
    if not isinstance(error, OSError):
        return False
    # When a connection attempt is abandoned (a time-out, a stop, a dead server), asyncio closes the socket
    # first and unregisters it later. Between the two, trio-asyncio may wait for the closed socket.
    if error.errno == errno.EBADF:
        return True
    # The error of a lost connection has been raised by the calls already, and is kept in a future for
    # `wait_closed`. The garbage collector may report the future before `StreamReaderProtocol.__del__` reads
    # it.
    future = context.get("future")
    return future is not None and not isinstance(future, asyncio.Task)


class NoAnswer(StoreUnavailable):
    """No reply came in time, or no connection could be opened. The next call may take the same time."""


def as_store_error(error: Exception) -> StoreError:
    """The `StoreError` for an exception of redis-py, with the reason and no secret in the text."""
    # While connecting, redis-py raises an exception with the error of AUTH as its cause.
    if isinstance(error, _REFUSED) or isinstance(error.__cause__, _REFUSED):
        return StoreRefused(f"the store refuses us: {error}")
    if isinstance(error, exceptions.ResponseError) and not isinstance(error, exceptions.ClusterDownError):
        text = str(error)
        if isinstance(error, _NOT_NOW) or text.split(" ", 1)[0] in _NOT_NOW_CODES:
            return StoreUnavailable(f"the store cannot answer: {text}")
        return StoreRefused(f"the store refuses a call: {text}")
    return NoAnswer(f"the store does not answer: {str(error) or type(error).__name__}")


class Servers:
    """Clients for all known servers, and the bounds of calls.

    redis-py's own client for a Cluster is not used. When a node fails, that client stops all calls without a
    time limit until a random node has answered with the topology, and then opens all connections again. So a
    dead node and a frozen node block the calls to all nodes. Here a call goes to the server that had the
    shard (which is one slot) last, or to the seeds in turn, and follows MOVED. It does not follow ASK: while
    the keys of a slot are on two nodes, a script would not see the keys on the other node.

    `seeds` are the clients of the configured servers. `open_node` opens a client for a host (empty: the
    seeds') and a port. `sentinel`, which tells the seed the address of the primary, is closed with the
    clients.
    """

    def __init__(
        self,
        seeds: Sequence[Any],
        open_node: Callable[[str, int], Any],
        *,
        timeout_s: float,
        sentinel: Any = None,
    ) -> None:
        self._seeds = seeds
        self._sentinel = sentinel
        self._open_node = open_node
        self._timeout_s = timeout_s
        self._room = trio.Semaphore(CALLS)
        self._nodes: dict[tuple[str, int], Any] = {}
        self._of_shard: dict[int, Any] = {}

    async def run(self, shard: int, call: Call[T]) -> T:
        """Make a call to the server of a shard. Seeds share the time limit, as some of them may be dead.

        Raises:
            StoreUnavailable, StoreRefused: see `as_store_error`; `NoAnswer` after the time limit.
        """
        *others, last = [self._of_shard[shard]] if shard in self._of_shard else self._seeds
        deadline = trio.current_time() + self._timeout_s
        for left, client in zip(range(len(others) + 1, 1, -1), others, strict=True):
            share_s = max(0, deadline - trio.current_time()) / left
            with suppress(NoAnswer):
                return await self._bounded(partial(self._follow, shard, client, call), share_s)
        left_s = max(0, deadline - trio.current_time())
        return await self._bounded(partial(self._follow, shard, last, call), left_s)

    async def find(self, shard: int, call: Call[T]) -> T:
        """Make a call for a shard at a random server: a replica may have replaced the last server."""
        return await self._bounded(partial(self._follow, shard, self._any(), call))

    @asynccontextmanager
    async def subscribed(
        self, channels: Sequence[str]
    ) -> AsyncIterator[Callable[[], Awaitable[tuple[str, str | None]]]]:
        """Subscribe to channels; yields a coroutine function that waits for the next message.

        The function returns the channel and the message; `None` as the message stands for a (re)subscription,
        before which messages may have been missed. The function raises `StoreError` when the connection is
        lost for good.
        """
        pubsub = self._any().pubsub()

        async def receive() -> tuple[str, str | None]:
            try:
                message: tuple[str, str | None] = await aio_as_trio(_next_message)(pubsub, self._timeout_s)
            except (exceptions.RedisError, OSError) as error:
                raise as_store_error(error) from error
            return message

        try:
            await self._bounded(partial(pubsub.subscribe, *channels))
            yield receive
        finally:
            await self._bounded(pubsub.aclose)

    async def aclose(self) -> None:
        """Close all clients within the time limit of a call."""
        with trio.move_on_after(self._timeout_s, shield=True):
            await aio_as_trio(self._close_all)()

    async def _bounded(self, call: Callable[[], Awaitable[T]], timeout_s: float | None = None) -> T:
        """Make an asyncio call, shielded from cancellation and bounded in time; maps exceptions."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            with trio.move_on_after(timeout_s, shield=True):
                try:
                    self._room.acquire_nowait()  # `acquire` would give all other tasks a turn first
                except trio.WouldBlock:
                    await self._room.acquire()
                try:
                    result: T = await aio_as_trio(call)()
                    return result
                finally:
                    self._room.release()
        except (exceptions.RedisError, OSError) as error:
            raise as_store_error(error) from error
        except TypeError as error:
            # asyncio of Python 3.13: a transport whose connection is lost calls `None` in `writelines`.
            if str(error) != "'NoneType' object is not callable":
                raise
            raise NoAnswer("the store does not answer: the connection is lost") from error
        except asyncio.CancelledError as error:
            # Two calls closed one connection, and the first ran out of time: that cancels what both wait for.
            raise NoAnswer("the store does not answer: the connection is being closed") from error
        raise NoAnswer(f"the store does not answer: no reply within {timeout_s:g} s")

    # The methods below run in the asyncio loop

    def _any(self) -> Any:
        """A client, at random."""
        return random.choice([*self._seeds, *self._nodes.values()])  # noqa: S311  # no secret

    async def _close_all(self) -> None:
        for client in (*self._seeds, *self._nodes.values()):
            await client.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def _follow(self, shard: int, client: Any, call: Call[T]) -> T:
        moves = 0
        while True:
            try:
                result = await call(client)
            except exceptions.MovedError as error:
                address = error.host, error.port
                client = self._nodes.get(address)
                if client is None:
                    client = self._nodes[address] = self._open_node(*address)
                self._of_shard[shard] = client
                moves += 1
                if moves > MOVES:
                    raise
            except exceptions.ReadOnlyError:
                # After a failover the address may lead to a new server, which open connections do not notice.
                await client.connection_pool.disconnect(inuse_connections=False)
                moves += 1
                if moves > 1:
                    raise
            else:
                self._of_shard[shard] = client
                return result


async def _next_message(pubsub: Any, timeout_s: float) -> tuple[str, str | None]:
    pinged = False
    while True:
        # After a lost connection redis-py subscribes again by itself; only the reply to SUBSCRIBE shows this.
        message = await pubsub.get_message(timeout=SILENCES * timeout_s)
        if message is None:
            # There were no messages, or a firewall has dropped the connection silently.
            if pinged:
                raise exceptions.TimeoutError("the subscription has gone silent")
            await pubsub.ping()
            pinged = True
            continue
        pinged = False
        if message["type"] in ("message", "subscribe"):
            text = str(message["data"]) if message["type"] == "message" else None
            return str(message["channel"]), text


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """A call of a transition on the keys of a shard."""

    library: Library
    name: str
    shard: int
    base: str
    """The first part of the shard's keys."""
    arguments: Sequence[bytes]
    """Encoded here, because redis-py looks at each argument first to find the type."""

    def command(self) -> tuple[str | int | bytes, ...]:
        """The command; the server must have the library."""
        return "FCALL", self.library.function(self.name), 1, self.base, *self.arguments


async def prepare(server: Any, library: Library) -> None:
    """Load the library into a server. If it was missing, delete the libraries of other versions.

    An asyncio call. Instances of another version that still run load their library again at the next call,
    at the cost of a round trip, and delete nothing. So a server keeps few libraries.
    """
    rows = await server.execute_command("FUNCTION", "LIST", "LIBRARYNAME", f"{FAMILY}*")
    names = {dict(zip(row[::2], row[1::2], strict=True))["library_name"] for row in rows}
    if library.name in names:
        return
    await _load(server, library)
    for name in names:
        with _ignored("Library not found"):  # another instance was faster
            await server.execute_command("FUNCTION", "DELETE", name)


async def run_script(server: Any, call: ScriptCall) -> Any:
    """Run a transition on a server; an asyncio call."""
    return await _with_library(server, call.library, lambda: server.execute_command(*call.command()))


async def run_scripts(server: Any, calls: Sequence[ScriptCall]) -> list[Any]:
    """Run transitions one after the other in one round trip; returns an answer or a `StoreError` for each.

    An asyncio call. If the server lacks the library, the first call that failed for this reason and all later
    ones are repeated in order, because later calls may depend on earlier ones.
    """
    answers: list[Any] = []

    async def run_rest() -> None:
        pipeline = server.pipeline(transaction=False)
        for call in calls[len(answers) :]:
            pipeline.execute_command(*call.command())
        for reply in await pipeline.execute(raise_on_error=False):
            if isinstance(reply, exceptions.MovedError | exceptions.ReadOnlyError) or _lacks_library(reply):
                raise reply
            answers.append(as_store_error(reply) if isinstance(reply, Exception) else reply)

    await _with_library(server, calls[0].library, run_rest)
    return answers


async def run_script_durably(server: Any, call: ScriptCall, *, settings: RedisSettings) -> Any:
    """Run a transition and wait until the writes are as durable as configured; an asyncio call.

    A repeated transition writes nothing, and the writes of the first call may not be durable yet. WAIT and
    WAITAOF only cover writes of the same connection. So each call makes a write of its own, after all earlier
    writes: it sets the time to live of `synced`. A server with full memory accepts this command.
    """
    synced = f"{call.base}synced"
    durable = _durable_command(settings)
    touch = ("PEXPIRE", synced, SYNCED_TTL_MS)
    answer, key_exists, reached = await _with_library(
        server, call.library, lambda: _pipeline(server, call.command(), touch, durable)
    )
    if not key_exists:
        _, reached = await _pipeline(server, ("SET", synced, 1, "PX", SYNCED_TTL_MS), durable)
    if settings.durability == "aof":
        if reached[0] < 1:
            raise exceptions.TimeoutError("not yet in the append-only file")
    elif reached < settings.replicas:
        raise exceptions.TimeoutError(f"on {reached} of {settings.replicas} replicas")
    return answer


async def _with_library(server: Any, library: Library, run: Callable[[], Awaitable[T]]) -> T:
    """Make a call. If the server lacks the library, load the library and repeat the call."""
    for _ in range(LOADS):
        try:
            return await run()
        except exceptions.ResponseError as error:
            if not _lacks_library(error):
                raise
        await _load(server, library)
    return await run()


def _lacks_library(reply: Any) -> bool:
    return isinstance(reply, exceptions.ResponseError) and "Function not found" in str(reply)


async def _load(server: Any, library: Library) -> None:
    with _ignored("already exists"):  # another call was faster
        await server.execute_command("FUNCTION", "LOAD", library.text)


@contextmanager
def _ignored(part: str) -> Iterator[None]:
    """Ignore error replies that contain `part`."""
    try:
        yield
    except exceptions.ResponseError as error:
        if part not in str(error):
            raise


def _durable_command(settings: RedisSettings) -> tuple[str | int, ...]:
    wait_ms = int(settings.timeout * 1000 * 0.8)
    return (
        ("WAITAOF", 1, 0, wait_ms) if settings.durability == "aof" else ("WAIT", settings.replicas, wait_ms)
    )


async def _pipeline(server: Any, *commands: tuple[str | int | bytes, ...]) -> list[Any]:
    """Send commands in one pipeline on a connection; raise the first error reply unchanged."""
    pipeline = server.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    replies: list[Any] = await pipeline.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def servers_for(settings: RedisSettings) -> Servers:
    """Clients for the configured servers; the first call opens the connection.

    Raises:
        ConfigError: the URL cannot be read.
    """
    options, open_node = _options(settings), partial(_node_client, settings)
    try:
        if settings.sentinel is None:
            seed = aioredis.Redis.from_url(settings.url, **options)
            others = [open_node(*_host_port(node)) for node in settings.nodes]
            return Servers([seed, *others], open_node, timeout_s=settings.timeout)
        password = settings.sentinel.password
        sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has not annotated it
            [_host_port(node) for node in settings.sentinel.nodes],
            sentinel_kwargs={
                "password": password.get_secret_value() if password else None,
                "socket_connect_timeout": settings.timeout,
                "socket_timeout": settings.timeout,
            },
            **(_url_options(settings.url) | options),
        )
        seed = sentinel.master_for(settings.sentinel.master)
        return Servers([seed], open_node, timeout_s=settings.timeout, sentinel=sentinel)
    except (ValueError, exceptions.RedisError) as error:
        raise ConfigError(f"redis.url: {error}") from error


def _node_client(settings: RedisSettings, host: str, port: int) -> Any:
    """A client for another node of the configured Cluster."""
    parts = urlsplit(settings.url)
    userinfo, at, _ = parts.netloc.rpartition("@")
    name = host or parts.hostname or "localhost"
    name = f"[{name}]" if ":" in name else name
    url = parts._replace(netloc=f"{userinfo}{at}{name}:{port}").geturl()
    return aioredis.Redis.from_url(url, **_options(settings))


def _options(settings: RedisSettings) -> dict[str, Any]:
    return {
        "decode_responses": True,
        "encoding_errors": ENCODING_ERRORS,
        # `Servers` bounds each call; a timer of the client for each read and write would cost CPU.
        "socket_timeout": None,
        "socket_connect_timeout": settings.timeout,
        "retry": Retry(ExponentialWithJitterBackoff(base=RETRY_BASE_S, cap=RETRY_CAP_S), RETRIES),
        # Nothing here needs RESP3, and its maintenance notifications cost a round trip per connection.
        "protocol": 2,
    }


def _url_options(url: str) -> dict[str, Any]:
    """User, password, database and TLS from the URL; Sentinel gives the primary's address."""
    if not url.startswith(("redis://", "rediss://")):
        return {}
    options: dict[str, Any] = dict(aioredis.ConnectionPool.from_url(url).connection_kwargs)
    options = {name: options[name] for name in ("username", "password", "db") if name in options}
    if url.startswith("rediss://"):
        options["ssl"] = True
    return options


def _host_port(node: str) -> tuple[str, int]:
    host, _, port = node.rpartition(":")
    return host.strip("[]"), int(port)
