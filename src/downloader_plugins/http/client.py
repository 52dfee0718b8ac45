"""POSTs over kept connections: h11 speaks the protocol, the guarded network carries it.

Not httpcore2's pools, since they look at every connection on each request and send head and body apart:
measured with 2.16.2, twice the CPU time for each callback. They also take bytes after the end of one
response for the beginning of the next.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import h11
import httpcore2
import trio

Field = tuple[bytes, bytes]

READ_BYTES = 16 * 1024
"""Of one read, which the network is to be opened with."""
_ANSWER_BYTES = 64 * 1024 - READ_BYTES
"""No read is begun beyond this much of an answer, 1xx included, so that 64 KiB is the most that is taken."""
_HEAD_BYTES = 32 * 1024
"""A head still incomplete after this many bytes is refused; it is part of the answer."""
_INFORMATIONAL = 16
"""1xx responses before the real one. Early hints come once or twice; a thousand of them are a flood."""


class BadAnswer(Exception):
    """The peer does not speak HTTP, or hung up instead of answering; the text quotes nothing of it."""


class BadRequest(Exception):
    """What was to be sent cannot be put into HTTP."""


class _Stale(Exception):
    """A kept connection ended before a byte of the answer came: the peer had given it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a request goes."""

    scheme: bytes
    host: str
    """ASCII, without brackets."""
    port: int
    path: bytes
    headers: tuple[Field, ...]
    """Those that are the same for each request that goes there, `Host` included."""

    @property
    def origin(self) -> tuple[bytes, str, int]:
        """What connections go to."""
        return self.scheme, self.host, self.port


@dataclass(frozen=True, slots=True)
class Answer:
    """What is of interest in a response."""

    status: int
    retry_after: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What nobody needs to configure, and tests make small."""

    answer_s: float = 2.0
    """For the rest of an answer whose status has come; it is read only to keep the connection."""
    keepalive_s: float = 4.0
    """Below the 5 s after which the common servers close a silent connection, perhaps just as we use it."""
    idle_s: float = 10.0
    """An origin unused for this long loses its connections."""
    origins: int = 512
    """Origins whose connections are kept; beyond it the longest unused go first."""


class _Connection:
    """An open connection, for one request at a time; owns its stream."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self.stream = stream
        self.kept_at: float | None = None
        """Trio's clock, when it was last put aside; `None` before its first answer."""
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
        self._received = 0

    async def post(self, target: Target, headers: Sequence[Field], body: bytes) -> Answer:
        """Send the request and read the head of the answer; waits are the caller's to bound."""
        self._received = 0
        wire = self._request(target, headers, body)
        try:
            # A peer may answer before it has read all, and close: the answer says more.
            with suppress(httpcore2.WriteError):
                await self.stream.write(wire)
            for _ in range(_INFORMATIONAL):
                event = await self._event()
                if isinstance(event, h11.Response):
                    found = (value for name, value in event.headers if name == b"retry-after")
                    return Answer(event.status_code, next(found, None))
        except httpcore2.ReadError:
            if self.kept_at is not None and not self._received:
                raise _Stale from None
            raise
        raise BadAnswer("no end of informational responses")

    async def finish(self, patience_s: float) -> bool:
        """Read the rest of the answer, in bounds; whether the connection can be used again.

        Nothing that happens here changes what the answer's status has said.
        """
        try:
            if not self._ended():
                with trio.move_on_after(patience_s):
                    while not isinstance(await self._event(), h11.EndOfMessage):
                        pass
        except (httpcore2.NetworkError, BadAnswer):
            return False
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        if self._h11.trailing_data[0]:
            return False  # nobody asked for it, so the peer has lost count
        self._h11.start_next_cycle()
        self.kept_at = trio.current_time()
        return True

    def _ended(self) -> bool:
        """Whether all of the answer has arrived with its head, as most do that have nothing to say."""
        try:
            while self._h11.their_state is h11.SEND_BODY:
                if self._h11.next_event() is h11.NEED_DATA:
                    return False
        except h11.RemoteProtocolError as exc:
            raise BadAnswer("not HTTP") from exc
        return True

    def usable(self, keepalive_s: float) -> bool:
        """Whether it is fresh, and the peer has sent nothing, not even a goodbye, in the meantime."""
        fresh = self.kept_at is not None and trio.current_time() - self.kept_at < keepalive_s
        return fresh and not self.stream.get_extra_info("is_readable")

    async def close(self) -> None:
        """Close; waits for nobody, so it is done under a cancel too."""
        with trio.CancelScope(shield=True):
            await self.stream.aclose()

    def _request(self, target: Target, headers: Sequence[Field], body: bytes) -> bytes:
        fields = [*target.headers, (b"Content-Length", b"%d" % len(body)), *headers]
        try:
            request = h11.Request(method=b"POST", target=target.path, headers=fields)
        except h11.LocalProtocolError as exc:
            raise BadRequest(str(exc)) from exc
        parts = (self._h11.send(request), self._h11.send(h11.Data(body)), self._h11.send(h11.EndOfMessage()))
        return b"".join(part for part in parts if part)

    async def _event(self) -> h11.Event:
        ended = False
        while True:
            try:
                event = self._h11.next_event()
                if isinstance(event, h11.Event):
                    return event
                if event is h11.PAUSED:
                    raise BadAnswer("it switches to another protocol")
                if self._received > _ANSWER_BYTES:
                    raise BadAnswer("more than 64 KiB of it")
                data = await self.stream.read(READ_BYTES)
                if not data and not self._received:
                    if self.kept_at is not None:
                        raise _Stale
                    raise BadAnswer("the connection was closed without an answer")
                ended = not data
                self._received += len(data)
                self._h11.receive_data(data)
            except h11.RemoteProtocolError as exc:
                # h11's words quote the peer's, which may be our own headers, secrets among them.
                raise BadAnswer("cut short" if ended else "not HTTP") from exc


@dataclass(slots=True)
class _Peer:
    """The connections to one origin; `users` requests are using it."""

    slots: trio.Semaphore
    kept: list[_Connection] = field(default_factory=list)
    """Those not in use, the last used last."""
    users: int = 0
    used_at: float = 0.0


@dataclass(slots=True, kw_only=True)
class Client:
    """Connections by origin, so that one's troubles are not another's; `close` ends them all.

    `peers` is in order of use, the longest unused first.
    """

    network: httpcore2.AsyncNetworkBackend
    tls: ssl.SSLContext
    """One for all connections: to build one takes milliseconds."""
    connect_s: float
    max_connections: int
    """To one origin."""
    limits: Limits
    peers: dict[tuple[bytes, str, int], _Peer] = field(default_factory=dict)

    async def post(self, target: Target, headers: Sequence[Field], body: bytes) -> Answer:
        """POST once and answer the peer's verdict; waits are the caller's to bound.

        A connection that the peer gave up while it was idle is replaced once. After a cancel or an
        exception the connection is closed.

        Raises:
            BadAnswer, BadRequest: see there.
            Exception: whatever the network raises.
        """
        peer = self._enter(target.origin)
        try:
            await self._make_room()
            async with peer.slots:
                kept = await self._take(peer)
                if kept is not None:
                    with suppress(_Stale):
                        return await self._exchange(peer, kept, target, headers, body)
                    older, peer.kept = peer.kept, []
                    for connection in older:
                        await connection.close()
                fresh = _Connection(await self._connect(target))
                return await self._exchange(peer, fresh, target, headers, body)
        finally:
            peer.users -= 1
            peer.used_at = trio.current_time()

    async def drop_idle(self) -> None:
        """Close what nobody uses, for ever."""
        while True:
            await trio.sleep(self.limits.idle_s / 2)
            horizon = trio.current_time() - self.limits.idle_s
            for origin in list(self.peers):
                # Closing is a checkpoint: a later one may have come into use since the list was made.
                peer = self.peers.get(origin)
                if peer is not None and not peer.users and peer.used_at < horizon:
                    await self._drop(origin)

    async def close(self) -> None:
        """Close all connections that are not in use; requests under way close theirs themselves."""
        for origin in list(self.peers):
            await self._drop(origin)

    async def _exchange(
        self, peer: _Peer, connection: _Connection, target: Target, headers: Sequence[Field], body: bytes
    ) -> Answer:
        keep = False
        try:
            answer = await connection.post(target, headers, body)
            keep = await connection.finish(self.limits.answer_s)
        finally:
            if keep:
                peer.kept.append(connection)
            else:
                await connection.close()
        return answer

    async def _take(self, peer: _Peer) -> _Connection | None:
        while peer.kept:
            connection = peer.kept.pop()
            if connection.usable(self.limits.keepalive_s):
                return connection
            await connection.close()
        return None

    async def _connect(self, target: Target) -> httpcore2.AsyncNetworkStream:
        stream = await self.network.connect_tcp(target.host, target.port, timeout=self.connect_s)
        if target.scheme == b"https":
            # Closes the stream itself when it fails.
            stream = await stream.start_tls(self.tls, target.host, timeout=self.connect_s)
        return stream

    def _enter(self, origin: tuple[bytes, str, int]) -> _Peer:
        # Without a checkpoint, so that no two tasks make a peer for one origin.
        peer = self.peers.pop(origin, None) or _Peer(trio.Semaphore(self.max_connections))
        self.peers[origin] = peer
        peer.users += 1
        return peer

    async def _make_room(self) -> None:
        if len(self.peers) > self.limits.origins:
            unused = (origin for origin, peer in self.peers.items() if not peer.users)
            for origin in list(islice(unused, 1)):
                await self._drop(origin)

    async def _drop(self, origin: tuple[bytes, str, int]) -> None:
        # Out of the table first: closing is a checkpoint, and meanwhile nobody may take it up.
        peer = self.peers.pop(origin, None)
        while peer is not None and peer.kept:
            await peer.kept.pop().close()
