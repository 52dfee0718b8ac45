"""What tests of S3 share: buckets on moto, and a front before it.

A test sets how the front answers each request; the others pass to moto. The front
judges `Content-MD5` as S3 does, and moto does not.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

import trio

from servers.aws import Moto

if TYPE_CHECKING:  # packages of stubs alone, which only type checking has
    from types_boto3_s3.literals import BucketLocationConstraintType

LOCATION: BucketLocationConstraintType = "eu-west-2"
"""The same as `REGION`."""

BLOCK_BYTES = 256 * 1024

_numbers = itertools.count(1)


def new_bucket(moto: Moto, name: str = "") -> str:
    """An empty bucket; its name."""
    name = name or f"bucket-{next(_numbers)}"
    moto.s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": LOCATION})
    return name


def keys(moto: Moto, bucket: str) -> list[str]:
    """The keys of its objects."""
    return [one["Key"] for one in moto.s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


def uploads(moto: Moto, bucket: str) -> list[str]:
    """Keys of the uploads that have neither been completed nor aborted."""
    return [one["Key"] for one in moto.s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


def digest(moto: Moto, bucket: str, key: str) -> str:
    """SHA-256 of an object, as boto3 reads it back."""
    found = hashlib.sha256()
    for block in moto.s3.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(1024 * 1024):
        found.update(block)
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    operation: str
    """Such as `UploadPart`."""
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    """Lower-case names."""


@dataclass
class Exchange:
    """One request, and the means to answer it or not."""

    asked: Asked
    head: bytes
    stream: trio.SocketStream
    rest: bytes
    """The part of the body that came with the head."""
    moto: Moto
    at_moto: set[int]
    """The requests that moto works on."""

    async def body(self) -> bytes:
        """The whole body."""
        if self.asked.headers.get("expect") == "100-continue":
            await self.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        left = int(self.asked.headers.get("content-length", 0)) - len(self.rest)
        blocks = [self.rest]
        while left > 0:
            block = await self.stream.receive_some(min(left, BLOCK_BYTES))
            if not block:
                raise trio.BrokenResourceError
            blocks.append(block)
            left -= len(block)
        return b"".join(blocks)

    async def ask_moto(self, body: bytes) -> bytes:
        """Pass the request on; the whole response."""
        line, _, fields = self.head.partition(b"\r\n")
        kept = [
            one for one in fields.split(b"\r\n") if not one.lower().startswith((b"expect:", b"connection:"))
        ]
        self.at_moto.add(id(self))
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self.moto.port) as server:
                await server.send_all(b"\r\n".join([line, *kept, b"Connection: close", b"", b""]) + body)
                return b"".join([bytes(block) async for block in server])
        finally:
            self.at_moto.discard(id(self))

    async def send(self, response: bytes) -> None:
        head, _, body = response.partition(b"\r\n\r\n")
        await self.stream.send_all(head + b"\r\nConnection: close\r\n\r\n" + body)

    def reset(self) -> None:
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


Rule = Callable[[Exchange], Awaitable[None]]


def response(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A response as it stands on the wire."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Content-Type: application/xml"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def error(status: int, code: str) -> bytes:
    """An error in S3's form: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"""
    text = f"<Error><Code>{code}</Code><Message>said the front</Message><Resource>x</Resource></Error>"
    return response(status, b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode())


def answer(whole: bytes) -> Rule:
    """Answer this when the body has arrived, without asking moto."""

    async def rule(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.send(whole)

    return rule


async def forward(exchange: Exchange) -> None:
    """Pass the request to moto, and answer as moto does."""
    await _forward(exchange, await exchange.body())


async def _forward(exchange: Exchange, body: bytes) -> None:
    wanted = exchange.asked.headers.get("content-md5")
    if wanted is not None and base64.b64encode(hashlib.md5(body).digest()).decode() != wanted:
        await exchange.send(error(400, "BadDigest"))
    else:
        await exchange.send(await exchange.ask_moto(body))


async def flip(exchange: Exchange) -> None:
    """Change one bit of the body."""
    body = bytearray(await exchange.body())
    body[len(body) // 2] ^= 1
    await _forward(exchange, bytes(body))


async def lose_answer(exchange: Exchange) -> None:
    """Have moto carry it out, and reset the connection instead of answering."""
    await exchange.ask_moto(await exchange.body())
    exchange.reset()


async def hang(exchange: Exchange) -> None:
    """Read the body and answer nothing."""
    await exchange.body()
    await trio.sleep_forever()


async def deaf(exchange: Exchange) -> None:
    """Do not even read the body."""
    await exchange.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
    await trio.sleep_forever()


async def cut(exchange: Exchange) -> None:
    """Reset the connection in the middle of the body."""
    await exchange.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
    await exchange.stream.receive_some(BLOCK_BYTES)
    exchange.reset()


@dataclass
class _Scripted:
    rule: Rule
    skip: int
    times: int | None


@dataclass
class Front:
    """The running front."""

    moto: Moto
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    at_moto: set[int] = field(default_factory=set)
    _rules: dict[tuple[str, str], _Scripted] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def counts(self) -> Counter[str]:
        """Requests by operation."""
        return Counter(one.operation for one in self.asked)

    def on(
        self, operation: str, rule: Rule, *, folder: str = "", skip: int = 0, times: int | None = None
    ) -> None:
        """From now on this becomes of such requests: of the first `times`, after `skip` that pass.

        With a `folder`, only of those whose key begins with it.
        """
        self._rules[operation, folder] = _Scripted(rule, skip, times)

    def heal(self) -> None:
        """Let all requests pass from now on."""
        self._rules.clear()

    async def settled(self) -> None:
        """Wait until moto has carried out what it was asked, also by clients that have given up since."""
        with trio.fail_after(60):
            while self.at_moto:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.01)

    async def seen(self, operation: str, count: int = 1, *, seconds: float = 20.0) -> Asked:
        """Wait for the `count`-th such request."""
        with trio.fail_after(seconds):
            while self.counts[operation] < count:
                await self._changed.wait()
        return [one for one in self.asked if one.operation == operation][count - 1]

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            data = b""
            while b"\r\n\r\n" not in data:
                more = await stream.receive_some(BLOCK_BYTES)
                if not more:
                    return
                data += more
            head, _, rest = data.partition(b"\r\n\r\n")
            exchange = Exchange(_parse(head), head, stream, rest, self.moto, self.at_moto)
            await self._rule(exchange.asked)(exchange)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    def _rule(self, asked: Asked) -> Rule:
        self.asked.append(asked)
        self._changed.set()
        self._changed = trio.Event()
        folder = asked.key.partition("/")[0]
        scripted = self._rules.get((asked.operation, folder)) or self._rules.get((asked.operation, ""))
        if scripted is None:
            return forward
        if scripted.skip:
            scripted.skip -= 1
            return forward
        if scripted.times is not None:
            if not scripted.times:
                return forward
            scripted.times -= 1
        return scripted.rule


def _parse(head: bytes) -> Asked:
    line, *fields = head.decode("latin-1").split("\r\n")
    method, target, _ = line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in fields)}
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    key = unquote(parts.path).partition("/")[2].partition("/")[2]
    return Asked(_operation(method, key, query), key, query, headers)


def _operation(method: str, key: str, query: dict[str, str]) -> str:
    whole = {
        ("GET", "uploads"): "ListMultipartUploads",
        ("POST", "uploads"): "CreateMultipartUpload",
        ("PUT", "uploadId"): "UploadPart",
        ("POST", "uploadId"): "CompleteMultipartUpload",
        ("DELETE", "uploadId"): "AbortMultipartUpload",
    }
    for (verb, name), operation in whole.items():
        if verb == method and name in query:
            return operation
    return {"PUT": "PutObject", "DELETE": "DeleteObject"}.get(method, method) if key else f"{method} bucket"


@asynccontextmanager
async def open_front(moto: Moto) -> AsyncIterator[Front]:
    """A front on 127.0.0.1."""
    front = Front(moto)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        front.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, front.serve, listeners)
        try:
            yield front
        finally:
            nursery.cancel_scope.cancel()
