"""The connection to Kafka: aiokafka's producer in a separate asyncio loop, reconnected after a loss.

Errors in aiokafka's tasks go to the loop's exception handler, and that of the service's loop ends the
process. In the separate loop such an error ends only the connection, which is then opened again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import trio
import trio_asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError

from downloader.backoff import pauses
from downloader.errors import first_leaf
from downloader.notify import Host
from downloader_plugins.kafka.session import BATCH_BYTES, NotConnected, Session, connect_reason
from downloader_plugins.kafka.settings import KafkaSettings, split_server, ssl_context

T = TypeVar("T")

_CONNECT_S = 5.0
"""Time limit for connecting to a broker, and for starting the producer."""

_BACKOFF_S, _MAX_BACKOFF_S = 0.2, 5.0
"""Shortest and longest pause between attempts to connect."""

_FLUSH_S, _END_S = 0.05, 0.1
"""Time limits at the end of a connection, for sending buffered messages and for ending cancelled tasks. They
are short, as little of the grace period remains at a stop."""

_LOOKUPS = 4
"""Threads that resolve names. They cannot be cancelled, so a hung resolver may use up all."""


class Link:
    """Keeper of an open `Session`; start `run` once, and cancel at the end."""

    def __init__(self, settings: KafkaSettings, host: Host) -> None:
        """Prepare; raise `PluginError` if the TLS files cannot be used."""
        self._settings = settings
        self._logger = host.logger
        self._group_commit = host.group_commit
        self._security = _security(settings)
        self.session: Session | None = None
        """The open session; `None` while not connected."""
        self.reason = ""
        """Why no session is open."""
        self._tried = trio.Event()
        """Set after the first attempt to connect, at the start and after each loss."""

    async def ready(self) -> Session | None:
        """Wait for the first attempt to connect; return the open session.

        `None` if not connected; `reason` tells why, and further attempts follow.
        """
        while self.session is None and not self._tried.is_set():
            await self._tried.wait()
        return self.session

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep connected until cancelled; no exception of aiokafka is raised."""
        task_status.started()
        backoff = pauses(_BACKOFF_S, _MAX_BACKOFF_S)
        while True:
            was_open = False
            try:
                async with trio_asyncio.open_loop() as loop:
                    await self._live(loop)
                    was_open = True
            except* NotConnected as group:
                self._fail(str(first_leaf(group)))
            except* Exception as group:  # noqa: BLE001 - a bug in aiokafka ends the connection, not the service
                self._fail(f"the Kafka client failed: {type(first_leaf(group)).__name__}")
            if was_open:
                backoff = pauses(_BACKOFF_S, _MAX_BACKOFF_S)
                continue
            await trio.sleep(next(backoff))

    async def _live(self, loop: Any) -> None:
        """Keep a connection open until the loss."""
        async with (
            _open_producer(loop, self._settings, self._security, self._logger) as producer,
            trio.open_nursery() as nursery,
        ):
            session = Session(self._settings, producer, loop, self._group_commit)
            nursery.start_soon(session.run)
            if self.reason:
                self._logger.warning("connected to Kafka again")
            self.session, self.reason = session, ""
            self._tried.set()
            try:
                await session.lost.wait()
                self._logger.warning("reconnecting to Kafka: %s", session.lost_reason)
            finally:
                self.session, self._tried = None, trio.Event()
                nursery.cancel_scope.cancel()

    def _fail(self, reason: str) -> None:
        if reason != self.reason:
            self._logger.warning("not connected to Kafka: %s", reason)
        self.reason = reason
        self._tried.set()


def _security(settings: KafkaSettings) -> dict[str, Any]:
    """Arguments of a connection besides host and port."""
    return {
        "client_id": settings.client_id,
        "security_protocol": settings.security_protocol,
        "ssl_context": ssl_context(settings),
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_plain_username or None,
        "sasl_plain_password": settings.sasl_plain_password or None,
        "sasl_kerberos_service_name": settings.sasl_kerberos_service_name,
        "sasl_kerberos_domain_name": settings.sasl_kerberos_domain_name or None,
    }


@asynccontextmanager
async def _open_producer(
    loop: Any, settings: KafkaSettings, security: dict[str, Any], logger: logging.Logger
) -> AsyncIterator[AIOKafkaProducer]:
    """Start a producer in the loop. At the end all tasks and connections are closed.

    Raises:
        NotConnected: no broker can be reached, or none accepts the credentials.
    """
    loop.set_exception_handler(partial(_on_error, logger))
    loop.set_default_executor(_Lookups(limiter=trio.CapacityLimiter(_LOOKUPS)))
    transports = _tracked(loop)
    producers: list[AIOKafkaProducer] = []
    try:
        yield await loop.run_aio_coroutine(_start(settings, security, producers.append))
    finally:
        with trio.CancelScope(shield=True):  # `_end` has time limits
            await loop.run_aio_coroutine(_end(producers, transports))


async def _start(
    settings: KafkaSettings, security: dict[str, Any], on_made: Callable[[AIOKafkaProducer], None]
) -> AIOKafkaProducer:
    """In asyncio: make and connect a producer. Before connecting, call `on_made`."""
    server = await _reachable(settings, security)
    producer = AIOKafkaProducer(
        # A broker that `_reachable` has tried: the producer only logs why a broker refuses the connection.
        bootstrap_servers=[server],
        acks="all",
        compression_type=None if settings.compression_type == "none" else settings.compression_type,
        max_batch_size=min(BATCH_BYTES, settings.max_request_size),
        max_request_size=settings.max_request_size,
        request_timeout_ms=settings.request_ms,
        **security,
    )
    on_made(producer)
    try:
        async with asyncio.timeout(_CONNECT_S):
            await producer.start()
    except (KafkaError, OSError) as exc:  # includes TimeoutError
        raise NotConnected(f"{server}: {connect_reason(exc)}") from exc
    return producer


async def _reachable(settings: KafkaSettings, security: dict[str, Any]) -> str:
    """In asyncio: find a broker that accepts a connection."""
    problems = []
    for server in random.sample(settings.bootstrap_servers, len(settings.bootstrap_servers)):
        host, port = split_server(server)
        connect_ms = min(settings.request_ms, int(_CONNECT_S * 1000))
        try:
            connection = await create_conn(host, port, request_timeout_ms=connect_ms, **security)
        except Exception as exc:  # noqa: BLE001 - a peer that is not a Kafka broker can cause any exception
            problems.append(f"{server}: {connect_reason(exc)}")
            continue
        connection.close()
        return server
    raise NotConnected("; ".join(sorted(problems)))


async def _end(producers: list[AIOKafkaProducer], transports: weakref.WeakSet[asyncio.BaseTransport]) -> None:
    """In asyncio: end everything in the loop."""
    for producer in producers:
        with suppress(TimeoutError, KafkaError, OSError):
            async with asyncio.timeout(_FLUSH_S):
                await producer.stop()
    tasks = asyncio.all_tasks(asyncio.get_running_loop()) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_END_S)
    # close() would wait until a frozen broker has received all written data.
    for transport in list(transports):
        assert isinstance(transport, asyncio.WriteTransport)
        transport.abort()


def _tracked(loop: Any) -> weakref.WeakSet[asyncio.BaseTransport]:
    """Record the connections made in the loop from now on."""
    transports: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()
    connect: Callable[..., Coroutine[Any, Any, tuple[Any, Any]]] = loop.create_connection

    async def create_connection(*args: Any, **options: Any) -> tuple[Any, Any]:
        transport, protocol = await connect(*args, **options)
        transports.add(transport)
        return transport, protocol

    loop.create_connection = create_connection
    return transports


class _Lookups(trio_asyncio.TrioExecutor):  # type: ignore[misc]  # the library has no types
    """Executor for the resolver, in threads that are abandoned after a cancel."""

    async def submit(self, function: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter, abandon_on_cancel=True)


def _on_error(logger: logging.Logger, _loop: Any, context: dict[str, Any]) -> None:
    """Log an exception that no task has caught."""
    logger.debug("%s", context.get("message"), exc_info=context.get("exception"))
