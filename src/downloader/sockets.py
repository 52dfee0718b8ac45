"""Send and receive on connected sockets, with less than half of the CPU of `trio.SocketStream`.

The methods of `SocketStream` enter two contexts per call, and let all other tasks run at each call, even if
the call has waited. `receive` here lets them run once per call, before the read, `send` only if the call
must wait: after a response the caller waits for the next request anyway.
"""

from __future__ import annotations

import os

import trio


async def receive(stream: trio.SocketStream, max_bytes: int) -> bytes:
    """See `SocketStream.receive_some`."""
    # A peer that sends without a pause must not keep all other tasks waiting. They run before the read,
    # because what the peer sends meanwhile is read at once: a read that fails, and a wait, cost more.
    await trio.lowlevel.checkpoint()
    while True:
        try:
            return os.read(stream.socket.fileno(), max_bytes)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(stream.socket.fileno())
        except OSError as exc:
            raise _error(stream, exc) from exc


def send_now(stream: trio.SocketStream, data: bytes | memoryview) -> int:
    """Send what can be sent without a wait; returns the number of bytes. Raises as `send` does."""
    try:
        return os.write(stream.socket.fileno(), data)
    except BlockingIOError:
        return 0
    except OSError as exc:
        raise _error(stream, exc) from exc


async def send(stream: trio.SocketStream, data: bytes) -> None:
    """See `SocketStream.send_all`; lets other tasks run only if not all bytes can be sent at once."""
    await trio.lowlevel.checkpoint_if_cancelled()
    sent = send_now(stream, data)
    while sent < len(data):
        await trio.lowlevel.wait_writable(stream.socket.fileno())
        sent += send_now(stream, memoryview(data)[sent:])


def _error(stream: trio.SocketStream, exc: OSError) -> Exception:
    closed = stream.socket.fileno() < 0
    return trio.ClosedResourceError("closed") if closed else trio.BrokenResourceError(str(exc))
