"""`serve`: an HTTP/1.1 server for an ASGI application, h11 on Trio streams, with every wait bounded.

Why not hypercorn 0.18: a trivial POST to a bare ASGI function costs 0.46 ms of CPU on it and 0.16 ms here,
which leaves no room for an intake of 2,500 jobs/s in one process (`docs/design/http.md`). It also sends
under a shield without a deadline, so that a client that does not read holds the process; it switches to
HTTP/2 and WebSocket when asked; and it takes requests that invite smuggling.

Served: HTTP/1.1 and 1.0, keep-alive, pipelining, `Expect: 100-continue`, chunked bodies both ways.
Not served: TLS, HTTP/2, WebSocket, lifespan events; a reverse proxy in front may offer the first two.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from downloader.api.connection import Connection
from downloader.api.problems import unavailable
from downloader.api.shared import AsgiApp, Gone, Limits, Shared
from downloader.observe import Event, get_logger

_log = get_logger()

_CROWDED = unavailable("too_many_connections", "Too many clients are connected; try again.")


async def serve_http(
    app: AsgiApp,
    *,
    sockets: Sequence[socket.socket],
    stop: Callable[[], Awaitable[object]],
    grace_s: float,
    limits: Limits | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop()` returns, then at most `grace_s` seconds more.

    Connections without a request are closed at once, the others when they have answered it or the grace
    is over. A cancel closes them all.

    Args:
        app: called for each request; an exception of its own is answered 500 and logged.
        sockets: bound; this call makes them listen, owns them and closes them.
        stop: waited for; its result is ignored.
        grace_s: seconds.
        limits: what one client may cost.
        task_status: started when the sockets listen.
    """
    shared = Shared(app=app, limits=limits or Limits())
    # At least half of the process's descriptors are for what the requests are about.
    shared.most = min(shared.limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    listeners = [_listener(sock) for sock in sockets]

    async def handle(stream: trio.SocketStream) -> None:
        await _serve_connection(shared, stream)

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            await accepting.start(
                partial(trio.serve_listeners, handle, listeners, handler_nursery=connections)
            )
            task_status.started()
            await stop()
            accepting.cancel_scope.cancel()
        shared.stopping = True
        for scope in shared.idle.values():
            scope.cancel()
        connections.cancel_scope.deadline = trio.current_time() + grace_s


def _listener(sock: socket.socket) -> trio.SocketListener:
    sock.setblocking(False)
    sock.listen(1024)  # a burst of clients; the kernel caps it at its own limit
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def _serve_connection(shared: Shared, stream: trio.SocketStream) -> None:
    shared.connections += 1
    try:
        connection = Connection(shared, stream)
        if shared.connections > shared.most and not shared.close_an_idle_one():
            await connection.refuse(_CROWDED)
        else:
            await connection.serve()
    except (Gone, OSError):  # OSError: it left before it could be asked for its address
        pass
    except Exception:  # noqa: BLE001  one connection's trouble must not take the others down
        _log.exception(Event.API_FAILED)
    finally:
        shared.connections -= 1
        await trio.aclose_forcefully(stream)
