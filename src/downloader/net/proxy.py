"""Connections through a proxy: CONNECT (RFC 9110, 9.3.6) and SOCKS5 (RFC 1928, with RFC 1929)."""

from __future__ import annotations

import socksio
from socksio import (
    SOCKS5AuthMethod,
    SOCKS5AuthMethodsRequest,
    SOCKS5AuthReply,
    SOCKS5Command,
    SOCKS5CommandRequest,
    SOCKS5Reply,
    SOCKS5ReplyCode,
    SOCKS5UsernamePasswordRequest,
)

from downloader.net.connection import Connection
from downloader.net.errors import ConnectionLost, CutShort, ProxyRefused
from downloader.net.stream import Stream, StreamBroken
from downloader.net.url import Origin, Url

_MAX_FIELD_BYTES = 255
"""A length is a single byte (RFC 1928, RFC 1929)."""

_ADDRESS_BYTES = {b"\x01": 4, b"\x04": 16}
_NAME = b"\x03"


async def connect_tunnel(stream: Stream, origin: Origin, proxy: Url) -> None:
    """Ask an HTTP proxy to connect the stream to the origin.

    Raises:
        ProxyRefused: the proxy does not connect.
        BadResponse: the proxy does not speak HTTP.
    """
    fields = [(b"Host", origin.host_port)]
    if basic := proxy.basic:
        fields.append((b"Proxy-Authorization", basic))
    connection = Connection(stream)
    try:
        head = await connection.request(b"CONNECT", origin.host_port, fields)
    except (ConnectionLost, CutShort) as exc:
        raise ProxyRefused("the proxy closed the connection") from exc
    if head.status // 100 != 2:  # noqa: PLR2004 - 2xx
        raise ProxyRefused(f"the proxy answered {head.status} to CONNECT")
    if connection.has_more:
        raise ProxyRefused("the proxy sent more than an answer")


async def connect_socks(stream: Stream, origin: Origin, proxy: Url) -> None:
    """Ask a SOCKS5 proxy, which resolves the name, to connect the stream to the origin.

    Raises:
        ProxyRefused: the proxy does not connect.
    """
    try:
        await _authenticate(stream, *proxy.credentials)
        await _command(stream, origin)
    except socksio.ProtocolError as exc:
        raise ProxyRefused("the proxy does not speak SOCKS5") from exc
    except StreamBroken as exc:
        raise ProxyRefused("the proxy closed the connection") from exc


async def _authenticate(stream: Stream, user: bytes, password: bytes) -> None:
    method = SOCKS5AuthMethod.USERNAME_PASSWORD if user else SOCKS5AuthMethod.NO_AUTH_REQUIRED
    await stream.send(SOCKS5AuthMethodsRequest([method]).dumps())
    if SOCKS5AuthReply.loads(await _exactly(stream, 2)).method != method:
        raise ProxyRefused("the proxy wants another kind of authentication")
    if user:
        if max(len(user), len(password)) > _MAX_FIELD_BYTES:
            raise ProxyRefused("user or password too long for a SOCKS5 proxy")
        await stream.send(SOCKS5UsernamePasswordRequest(user, password).dumps())
        if (await _exactly(stream, 2))[1:] != b"\x00":
            raise ProxyRefused("the proxy refused user and password")


async def _command(stream: Stream, origin: Origin) -> None:
    command = SOCKS5CommandRequest.from_address(SOCKS5Command.CONNECT, (origin.host, origin.port))
    await stream.send(command.dumps())
    head = await _exactly(stream, 4)
    if head[3:] == _NAME:
        head += await _exactly(stream, 1)
        address_bytes: int | None = head[-1]
    else:
        address_bytes = _ADDRESS_BYTES.get(head[3:])
    if address_bytes is None:
        raise socksio.ProtocolError("unknown address type")
    reply = SOCKS5Reply.loads(head + await _exactly(stream, address_bytes + 2))
    if reply.reply_code is not SOCKS5ReplyCode.SUCCEEDED:
        raise ProxyRefused(f"the proxy could not connect: {reply.reply_code.name.lower().replace('_', ' ')}")


async def _exactly(stream: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive(count - len(data))
        if not more:
            raise ProxyRefused("the proxy closed the connection")
        data += more
    return data
