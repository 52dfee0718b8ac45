"""A proxy in front of a Kafka broker that knows its requests and answers.

It can refuse what the broker takes, lose answers, ask for a password, and speak TLS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import ssl
import struct
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio

PRODUCE, METADATA, SASL_HANDSHAKE, SASL_AUTHENTICATE = 0, 3, 17, 36
NOT_LEADER, MESSAGE_TOO_LARGE, NOT_ENOUGH_REPLICAS = 6, 10, 19
TOPIC_AUTHORIZATION_FAILED, SASL_AUTHENTICATION_FAILED = 29, 58
ITERATIONS = 4096

BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@dataclass
class KafkaProxy:
    """What goes wrong from now on."""

    upstream: int
    """The broker's port."""
    port: int = 0
    users: Mapping[str, str] = field(default_factory=dict)
    """Names and passwords; with none, nobody is asked."""
    produce_errors: deque[int] = field(default_factory=deque)
    """Each is the answer to one record batch, whatever the broker says; 0 leaves it alone."""
    produce_error: int = 0
    """The error code in all other answers; 0 for none."""
    largest: int = 0
    """Bytes; a larger produce request is answered with MESSAGE_TOO_LARGE without the broker. 0: any."""
    deaf: bool = False
    """Whether answers are lost."""
    no_new_topics: bool = False
    """A topic that is not there is not made either."""
    asked: Counter[int] = field(default_factory=Counter)
    """Requests by API key."""
    _scopes: set[trio.CancelScope] = field(default_factory=set)

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def drop(self) -> None:
        """Every connection ends."""
        for scope in self._scopes:
            scope.cancel()

    async def serve(self, client: trio.abc.Stream) -> None:
        scope = trio.CancelScope()
        self._scopes.add(scope)
        try:
            with scope:
                server = await trio.open_tcp_stream("127.0.0.1", self.upstream)
                async with server, trio.open_nursery() as nursery:
                    link = _Link(self, client, server)
                    nursery.start_soon(link.requests, nursery.cancel_scope)
                    nursery.start_soon(link.answers, nursery.cancel_scope)
        except OSError:
            return
        finally:
            self._scopes.discard(scope)
            await trio.aclose_forcefully(client)


@dataclass
class _Link:
    proxy: KafkaProxy
    client: trio.abc.Stream
    server: trio.abc.Stream
    pending: dict[int, tuple[int, int]] = field(default_factory=dict)
    """API key, and size of the request, by correlation id."""
    let_in: bool = False
    scram: _Scram | None = None
    mechanism: str = ""

    async def requests(self, scope: trio.CancelScope) -> None:
        with suppress(*BROKEN):
            async with aclosing(_frames(self.client)) as frames:
                async for frame in frames:
                    if not await self._request(frame):
                        break
        scope.cancel()

    async def _request(self, frame: bytes) -> bool:
        """Pass a request on; false: the connection is over."""
        key, version, correlation = struct.unpack_from(">hhi", frame)
        self.proxy.asked[key] += 1
        if key in (SASL_HANDSHAKE, SASL_AUTHENTICATE):
            await _send(self.client, frame[4:8] + self._sasl(key, version, frame))
            return True
        if self.proxy.users and not self.let_in and key in (PRODUCE, METADATA):
            return False
        self.pending[correlation] = (key, len(frame))
        # allow_auto_topic_creation is the last field.
        closed = self.proxy.no_new_topics and key == METADATA and version in (4, 5)
        await _send(self.server, frame[:-1] + b"\0" if closed else frame)
        return True

    async def answers(self, scope: trio.CancelScope) -> None:
        with suppress(*BROKEN):
            async with aclosing(_frames(self.server)) as frames:
                async for frame in frames:
                    key, size = self.pending.pop(*struct.unpack_from(">i", frame))
                    if not self.proxy.deaf:
                        await _send(self.client, self._judged(frame, size) if key == PRODUCE else frame)
        scope.cancel()

    def _judged(self, frame: bytes, size: int) -> bytes:
        """The answer to a produce request, with another verdict on its one batch."""
        queued = self.proxy.produce_errors
        code = queued.popleft() if queued else self.proxy.produce_error
        if self.proxy.largest and size > self.proxy.largest:
            code = MESSAGE_TOO_LARGE
        if not code:
            return frame
        topics, name = struct.unpack_from(">ih", frame, 4)
        (partitions,) = struct.unpack_from(">i", frame, 10 + name)
        assert (topics, partitions) == (1, 1), "judges requests of one batch only"
        at = 18 + name
        return frame[:at] + struct.pack(">h", code) + frame[at + 2 :]

    def _sasl(self, key: int, version: int, frame: bytes) -> bytes:
        (client_id,) = struct.unpack_from(">h", frame, 8)
        body = frame[10 + max(client_id, 0) :]
        if key == SASL_HANDSHAKE:
            self.mechanism = body[2:].decode()
            offered = [b"PLAIN", b"SCRAM-SHA-256"]
            known = self.mechanism.encode() in offered
            listed = b"".join(struct.pack(">h", len(name)) + name for name in offered)
            return struct.pack(">hi", 0 if known else 33, len(offered)) + listed
        answer = self._authenticate(body[4:])
        lifetime = struct.pack(">q", 0) if version else b""
        if answer is None:
            return struct.pack(">hhi", SASL_AUTHENTICATION_FAILED, -1, 0) + lifetime
        return struct.pack(">hhi", 0, -1, len(answer)) + answer + lifetime

    def _authenticate(self, said: bytes) -> bytes | None:
        """The server's answer; `None` if it refuses the client."""
        if self.mechanism == "PLAIN":
            _, user, password = said.decode().split("\0")
            self.let_in = self.proxy.users.get(user) == password
            return b"" if self.let_in else None
        if self.scram is None:
            self.scram = _Scram(said.decode().removeprefix("n,,"), self.proxy.users)
            return self.scram.first()
        answer = self.scram.final(said.decode())
        self.let_in = answer is not None
        return answer


class _Scram:
    """The server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), without channel binding."""

    def __init__(self, client_first: str, users: Mapping[str, str]) -> None:
        self._client_first = client_first
        fields = dict(part.split("=", 1) for part in client_first.split(","))
        self._password = users.get(fields["n"], "")
        self._salt = secrets.token_bytes(16)
        nonce = fields["r"] + secrets.token_hex(8)
        self._server_first = f"r={nonce},s={base64.b64encode(self._salt).decode()},i={ITERATIONS}"
        if not self._password:
            self._server_first = "e=unknown-user"

    def first(self) -> bytes:
        return self._server_first.encode()

    def final(self, said: str) -> bytes | None:
        without_proof, _, proof = said.rpartition(",p=")
        message = f"{self._client_first},{self._server_first},{without_proof}".encode()
        salted = hashlib.pbkdf2_hmac("sha256", self._password.encode(), self._salt, ITERATIONS)
        stored = hashlib.sha256(_hmac(salted, b"Client Key")).digest()
        signature = _hmac(stored, message)
        key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), signature, strict=True))
        if hashlib.sha256(key).digest() != stored:
            return None
        return b"v=" + base64.b64encode(_hmac(_hmac(salted, b"Server Key"), message))


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


async def _frames(stream: trio.abc.Stream) -> AsyncGenerator[bytes, None]:
    buffer = bytearray()
    while True:
        while len(buffer) < 4 or len(buffer) < 4 + int.from_bytes(buffer[:4]):
            data = await stream.receive_some(65536)
            if not data:
                return
            buffer += data
        end = 4 + int.from_bytes(buffer[:4])
        yield bytes(buffer[4:end])
        del buffer[:end]


async def _send(stream: trio.abc.Stream, frame: bytes) -> None:
    await stream.send_all(len(frame).to_bytes(4) + frame)


@asynccontextmanager
async def open_kafka_proxy(
    upstream: int, *, tls: ssl.SSLContext | None = None, users: Mapping[str, str] | None = None
) -> AsyncIterator[KafkaProxy]:
    """A proxy on 127.0.0.1 to a broker's port; the broker has to advertise the proxy's."""
    proxy = KafkaProxy(upstream, users=users or {})

    async def serve(stream: trio.SocketStream) -> None:
        await proxy.serve(trio.SSLStream(stream, tls, server_side=True) if tls is not None else stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
