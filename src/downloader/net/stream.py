"""The byte stream of a connection: a socket, perhaps with TLS, and the mapping of errors."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TypeVar

import trio

from downloader import sockets
from downloader.net.errors import TlsFailed

T = TypeVar("T")

_RECORD_BYTES = 16 * 1024
"""Most bytes of content in a TLS record (RFC 8446, 5.1)."""

_OVERHEAD_BYTES = 1024
"""Received beyond what is asked for, so that a record is complete in spite of the headers and tags before."""


class StreamBroken(Exception):
    """The connection was reset, or closed by us. The caller converts this to a `NetError`."""


class Stream:
    """A connected socket; owns the socket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket below TLS."""
        return self._stream.socket

    @property
    def address(self) -> str:
        """The peer's address; empty if the peer has closed the connection already."""
        try:
            return str(self.socket.getpeername()[0])
        except OSError:
            return ""

    async def receive(self, max_bytes: int) -> bytes:
        """Receive at most `max_bytes`; empty at the end.

        Raises:
            StreamBroken: the connection was reset.
            TlsFailed: the peer refused the handshake belatedly, as TLS 1.3 allows.
        """
        try:
            return await sockets.receive(self._stream, max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise StreamBroken from exc

    async def send(self, data: bytes) -> None:
        """Send all bytes.

        Raises:
            StreamBroken: the connection was reset.
        """
        try:
            await sockets.send(self._stream, data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise StreamBroken from exc

    def is_readable(self) -> bool:
        """Whether bytes or the end can be received at once."""
        return self.socket.is_readable()

    def share_session(self) -> None:
        """Let a later connection resume the TLS session, if there is one; call after a response."""

    def close(self) -> None:
        """Close at once, without a TLS close_notify."""
        self.socket.close()


class TlsStream(Stream):
    """TLS over another stream, which is closed together with this one; for one task at a time.

    A read decrypts all records that one system call has received. Trio's `SSLStream` returns each record
    alone: a response of 100 KB came in seven pieces, each at the cost of a task switch.

    Args:
        below: connected; no byte was sent or received for TLS yet.
        context: of the client.
        host: for SNI and verification.
        session: of an earlier connection to the same peer, to be resumed.
        share: gets the session of this connection, once, if a response came.
    """

    def __init__(
        self,
        below: Stream,
        context: ssl.SSLContext,
        host: str,
        *,
        session: ssl.SSLSession | None = None,
        share: Callable[[ssl.SSLSession], None] = lambda _: None,
    ) -> None:
        self._below = below
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        # The name as bytes, because for text Python applies an IDNA codec that raises on long labels.
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=host.encode("ascii"), session=session
        )
        self._share: Callable[[ssl.SSLSession], None] | None = share
        self._silent = True
        """Whether no data came yet: a TLS 1.3 server may still send an alert that ends the handshake."""

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket below TLS."""
        return self._below.socket

    async def do_handshake(self, turns: trio.CapacityLimiter) -> None:
        """Shake hands; holds one of `turns` during each computation, and none while waiting for the peer.

        Raises:
            ssl.SSLError, StreamBroken: the handshake failed.
        """
        while True:
            async with turns:
                try:
                    self.tls.do_handshake()
                    is_complete = True
                except ssl.SSLWantReadError:
                    is_complete = False
            await self._flush()
            if is_complete:
                return
            await self._fill(_RECORD_BYTES)

    async def receive(self, max_bytes: int) -> bytes:
        """See `Stream.receive`."""
        pieces: list[bytes] = []
        left = max_bytes
        try:
            while left > 0 and (self._incoming.pending or not pieces):
                try:
                    piece = self.tls.read(min(left, _RECORD_BYTES))
                except ssl.SSLWantReadError:
                    if pieces:
                        break
                    await self._flush()  # the answer to an update of keys
                    await self._fill(max_bytes)
                    continue
                if not piece:
                    break
                pieces.append(piece)
                left -= len(piece)
        except ssl.SSLError as exc:
            if self._silent and (reason := tls_reason(exc)):
                raise TlsFailed(reason) from exc
            if not _is_eof(exc):
                raise StreamBroken from exc
        self._silent = False
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def send(self, data: bytes) -> None:
        """See `Stream.send`."""
        try:
            self.tls.write(data)
        except ssl.SSLError as exc:
            raise StreamBroken from exc
        await self._flush()

    def is_readable(self) -> bool:
        """See `Stream.is_readable`."""
        return bool(self._incoming.pending or self.tls.pending()) or self._below.is_readable()

    def share_session(self) -> None:
        """See `Stream.share_session`."""
        share, self._share = self._share, None
        if share is not None and (session := self.tls.session) is not None:
            share(session)
        self._below.share_session()

    def close(self) -> None:
        """See `Stream.close`."""
        self._below.close()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._below.send(self._outgoing.read())

    async def _fill(self, content_bytes: int) -> None:
        data = await self._below.receive(content_bytes + _OVERHEAD_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


def tls_reason(cause: BaseException | None) -> str:
    """The reason of a TLS error on one line; empty for any other error."""
    if not isinstance(cause, ssl.SSLError) or _is_eof(cause):
        return ""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {cause.verify_message}".rstrip(".")
    if cause.reason:
        return cause.reason.lower().replace("_", " ")
    return str(cause) or "handshake failed"


def _is_eof(cause: BaseException | None) -> bool:
    if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        return True
    # OpenSSL 3 has a separate code for this, which not every build of Python maps to SSLEOFError.
    return isinstance(cause, ssl.SSLError) and cause.reason == "UNEXPECTED_EOF_WHILE_READING"
