"""The byte stream of a connection: a socket, perhaps with TLS, and the mapping of errors."""

from __future__ import annotations

import ssl
from typing import Any

import trio

from downloader.net.errors import ConnectFailed, TimedOut, TlsFailed


class StreamBroken(Exception):
    """The connection was reset, or closed by us. The caller converts this to a `NetError`."""


class Stream:
    """A connected socket, perhaps with TLS; owns the socket."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[Any]) -> None:
        self._stream = stream
        self._silent_tls = isinstance(stream, trio.SSLStream)
        """TLS without received data: a TLS 1.3 server may still send an alert that ends the handshake."""

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket below TLS."""
        stream: Any = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        sock: trio.socket.SocketType = stream.socket
        return sock

    async def receive(self, max_bytes: int) -> bytes | bytearray:
        """Receive at most `max_bytes`; empty at the end.

        Raises:
            StreamBroken: the connection was reset.
            TlsFailed: the peer refused the handshake belatedly, as TLS 1.3 allows.
        """
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            if self._silent_tls and (reason := tls_reason(exc.__cause__)):
                raise TlsFailed(reason) from exc
            raise StreamBroken from exc
        self._silent_tls = False
        return data

    async def send(self, data: bytes) -> None:
        """Send all bytes.

        Raises:
            StreamBroken: the connection was reset.
        """
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise StreamBroken from exc

    def is_readable(self) -> bool:
        """Whether bytes or the end can be received at once."""
        return self.socket.is_readable()

    async def aclose(self) -> None:
        """Close at once, without a TLS close_notify; a cancel does not keep the socket open."""
        await trio.aclose_forcefully(self._stream)

    async def start_tls(self, context: ssl.SSLContext, host: str, *, within_s: float) -> Stream:
        """Make a TLS handshake, with `host` for SNI and verification.

        After any failure the stream is closed.

        Raises:
            TlsFailed: the certificate, the version or an alert; the text is the reason.
            ConnectFailed: the connection broke.
            TimedOut: the handshake took longer than `within_s`.
        """
        try:
            with trio.fail_after(within_s):
                stream = trio.SSLStream[Any](
                    self._stream, context, server_hostname=host.removesuffix("."), https_compatible=True
                )
                await stream.do_handshake()
        except BaseException as exc:
            with trio.CancelScope(shield=True):  # a forceful close does not wait for the peer
                await trio.aclose_forcefully(self._stream)
            if isinstance(exc, trio.TooSlowError):
                raise TimedOut(f"no TLS handshake within {within_s:g} s") from exc
            if isinstance(exc, trio.BrokenResourceError):
                if reason := tls_reason(exc.__cause__):
                    raise TlsFailed(reason) from exc
                raise _lost_in_handshake(exc.__cause__) from exc
            if isinstance(exc, ValueError):
                # The ssl module raises ValueError for a name that is invalid in SNI.
                raise TlsFailed(f"no host name to verify: {exc}") from exc
            raise
        return Stream(stream)


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


def _lost_in_handshake(cause: BaseException | None) -> ConnectFailed:
    while cause is not None:
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno:
            return ConnectFailed(
                f"{(cause.strerror or '').lower()} during the TLS handshake", errno=cause.errno
            )
        cause = cause.__cause__
    return ConnectFailed("closed during the TLS handshake")
