"""`serve_http`: an HTTP server for an ASGI application, based on hypercorn's `TCPServer`, with bounded waits.

Supports HTTP/1.0 and 1.1, with and without TLS, but no WebSockets and no lifespan events.
`docs/design/http.md` says why hypercorn's own server is not used.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio
from hypercorn.trio.worker_context import WorkerContext

from downloader.errors import ConfigError
from downloader.observe import Event, get_logger
from downloader.server.asgi import AsgiApp
from downloader.server.connection import Connection, OpenConnections, ServerConfig
from downloader.server.exchange import serve_requests
from downloader.server.limits import Limits

_log = get_logger()

BACKLOG = 1024
"""Connections that wait to be accepted, for example in a burst; the kernel has a separate limit."""


async def serve_http(
    app: AsgiApp,
    *,
    sockets: Sequence[socket.socket],
    stop: Callable[[], Awaitable[object]],
    grace_s: float,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop()` returns, and then at most `grace_s` seconds longer.

    After `stop()` no connection and no request is accepted. Connections without a request are closed at once,
    the others after the response or at the end of `grace_s`. A cancel closes all connections.

    Args:
        app: called for each request; an exception is logged and answered 500.
        sockets: bound stream sockets (TCP or unix), which are listened on, owned and closed by this call.
        stop: for example `wait` of a `trio.Event`; the result is ignored.
        grace_s: time for requests in progress at a stop, in seconds.
        limits: limits for clients.
        tls: from `tls_context`; `None` for plain TCP.
        task_status: started when the sockets listen.
    """
    config = ServerConfig(limits or Limits())
    context = WorkerContext(None)
    open_connections = OpenConnections(config.limits)

    async def handle(stream: Any) -> None:
        try:
            connection = Connection(
                app,
                serve_requests,
                config=config,
                context=context,
                open_connections=open_connections,
                stream=stream,
            )
        except OSError:  # the connection was closed before the address was read
            await trio.aclose_forcefully(stream)
            return
        try:
            await connection
        except Exception:  # noqa: BLE001  an error of a connection must not end the others
            _log.exception(Event.API_FAILED)

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            listeners = [_listener(sock, tls) for sock in sockets]
            await accepting.start(
                partial(trio.serve_listeners, handle, listeners, handler_nursery=connections)
            )
            task_status.started()
            await stop()
            accepting.cancel_scope.cancel()
        await context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + grace_s
        for connection in open_connections.ordinary | open_connections.reserved:
            connection.drain()


def tls_context(certfile: str, keyfile: str) -> ssl.SSLContext:
    """A server context for TLS 1.2 or newer, with HTTP/1.1 by ALPN.

    Raises:
        ConfigError: a file cannot be read, or the files are not a certificate and the unencrypted key.
    """
    for key, name in (("api.certfile", certfile), ("api.keyfile", keyfile)):
        try:
            Path(name).read_bytes()
        except OSError as error:
            raise ConfigError(f"{key}: cannot read {name}: {error.strerror}") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certfile, keyfile, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigError(
            f"api.certfile, api.keyfile: {certfile} and {keyfile} are no certificate and its key ({reason})"
        ) from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _listener(sock: socket.socket, tls: ssl.SSLContext | None) -> trio.abc.Listener[Any]:
    sock.setblocking(False)
    sock.listen(BACKLOG)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    # Most HTTPS clients close without close_notify, so do not wait for it.
    return listener if tls is None else trio.SSLListener(listener, tls, https_compatible=True)
