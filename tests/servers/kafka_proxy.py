"""A proxy in front of a Kafka broker that understands requests and responses.

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
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio

from downloader.testing import TcpProxy
from downloader.testing.tcp_proxy import Link, serving

PRODUCE, METADATA, SASL_HANDSHAKE, SASL_AUTHENTICATE = 0, 3, 17, 36
METADATA_VERSION, PRODUCE_VERSION = 12, 10
"""The versions that librdkafka and tansu agree on."""
NOT_LEADER, MESSAGE_TOO_LARGE, NOT_ENOUGH_REPLICAS = 6, 10, 19
TOPIC_AUTHORIZATION_FAILED, SASL_AUTHENTICATION_FAILED = 29, 58
ITERATIONS = 4096


@dataclass(eq=False)
class _Link(Link):
    unread: dict[bool, bytearray] = field(default_factory=lambda: {False: bytearray(), True: bytearray()})
    """The beginning of a frame whose rest is still to come: of a request, and of a response."""
    pending: dict[int, tuple[int, int]] = field(default_factory=dict)
    """API key, and size of the request, by correlation id."""
    let_in: bool = False
    scram: _Scram | None = None
    mechanism: str = ""

    def frames(self, data: bytes, *, is_reply: bool) -> Iterator[bytes]:
        """Whole frames, without the lengths."""
        unread = self.unread[is_reply]
        unread += data
        while len(unread) >= 4 and len(unread) >= (end := 4 + int.from_bytes(unread[:4])):
            yield bytes(unread[4:end])
            del unread[:end]


class KafkaProxy(TcpProxy):
    """What goes wrong from now on."""

    link_type = _Link

    def __init__(self, target: int, *, tls: ssl.SSLContext | None, users: Mapping[str, str]) -> None:
        super().__init__(target, tls=tls)
        self.users = users
        """Names and passwords; with none, nobody is asked."""
        self.produce_errors: deque[int] = deque()
        """Error codes for the next record batches, whatever the broker says; 0 changes nothing."""
        self.produce_error = 0
        """The error code in all other answers; 0 for none."""
        self.largest = 0
        """Bytes; a larger produce request is answered with MESSAGE_TOO_LARGE without the broker. 0: any."""
        self.deaf = False
        """Whether answers are lost."""
        self.no_new_topics = False
        """A topic that is not there is not made either."""
        self.metadata_bytes = 0
        """Size of the last request for metadata."""
        self.asked: Counter[int] = Counter()
        """Requests by API key."""

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def passed(self, link: Link, data: bytes, *, is_reply: bool) -> bytes:
        assert isinstance(link, _Link)
        frames = []
        for frame in link.frames(data, is_reply=is_reply):
            if is_reply:
                frames.append(self._reply(link, frame))
            else:
                frames.append(await self._request(link, frame))
        return b"".join(_framed(frame) for frame in frames if frame)

    async def _request(self, link: _Link, frame: bytes) -> bytes:
        """The request that passes; none if the proxy responds."""
        key, version, correlation = struct.unpack_from(">hhi", frame)
        self.asked[key] += 1
        if key == METADATA:
            self.metadata_bytes = len(frame)
        if key in (SASL_HANDSHAKE, SASL_AUTHENTICATE):
            response = _framed(frame[4:8] + self._sasl(link, key, version, frame))
            with suppress(trio.BusyResourceError):  # the response before is not yet quite sent
                await link.client.send_all(response)
                return b""
            await trio.sleep(0.01)
            await link.client.send_all(response)
            return b""
        if self.users and not link.let_in and key in (PRODUCE, METADATA):
            raise trio.BrokenResourceError
        link.pending[correlation] = (key, len(frame))
        if self.no_new_topics and key == METADATA:
            assert version == METADATA_VERSION
            # allow_auto_topic_creation is followed by one more flag and by no tags.
            return frame[:-3] + b"\0" + frame[-2:]
        assert key != PRODUCE or version == PRODUCE_VERSION
        return frame

    def _reply(self, link: _Link, frame: bytes) -> bytes:
        key, size = link.pending.pop(*struct.unpack_from(">i", frame))
        if self.deaf:
            return b""
        return self._judged(frame, size) if key == PRODUCE else frame

    def _judged(self, frame: bytes, size: int) -> bytes:
        """The response to a produce request, with another error code for the only batch."""
        queued = self.produce_errors
        code = queued.popleft() if queued else self.produce_error
        if self.largest and size > self.largest:
            code = MESSAGE_TOO_LARGE
        if not code:
            return frame
        # Lengths in one byte, plus one: of the topics, of the name, of the partitions.
        name = frame[6] - 1
        assert (frame[5], frame[7 + name]) == (2, 2), "judges requests of one batch only"
        at = 12 + name
        return frame[:at] + struct.pack(">h", code) + frame[at + 2 :]

    def _sasl(self, link: _Link, key: int, version: int, frame: bytes) -> bytes:
        (client_id,) = struct.unpack_from(">h", frame, 8)
        body = frame[10 + max(client_id, 0) :]
        if key == SASL_HANDSHAKE:
            link.mechanism = body[2:].decode()
            offered = [b"PLAIN", b"SCRAM-SHA-256"]
            known = link.mechanism.encode() in offered
            listed = b"".join(struct.pack(">h", len(name)) + name for name in offered)
            return struct.pack(">hi", 0 if known else 33, len(offered)) + listed
        answer = self._authenticate(link, body[4:])
        lifetime = struct.pack(">q", 0) if version else b""
        if answer is None:
            return struct.pack(">hhi", SASL_AUTHENTICATION_FAILED, -1, 0) + lifetime
        return struct.pack(">hhi", 0, -1, len(answer)) + answer + lifetime

    def _authenticate(self, link: _Link, said: bytes) -> bytes | None:
        """The server's response; `None` for a refused client."""
        if link.mechanism == "PLAIN":
            _, user, password = said.decode().split("\0")
            link.let_in = self.users.get(user) == password
            return b"" if link.let_in else None
        if link.scram is None:
            link.scram = _Scram(said.decode().removeprefix("n,,"), self.users)
            return link.scram.first()
        answer = link.scram.final(said.decode())
        link.let_in = answer is not None
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


def _framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4) + frame


@asynccontextmanager
async def open_kafka_proxy(
    broker: int, *, tls: ssl.SSLContext | None = None, users: Mapping[str, str] | None = None
) -> AsyncIterator[KafkaProxy]:
    """A proxy on 127.0.0.1 to a broker's port; the broker has to advertise the proxy's."""
    async with serving(KafkaProxy(broker, tls=tls, users=users or {})) as proxy:
        yield proxy
