"""The byte stream of a connection: a socket, perhaps with TLS, and its errors."""

from __future__ import annotations

import ssl
from typing import Any

import trio

from downloader.net.errors import ConnectFailed, TimedOut, TlsFailed


class StreamBroken(Exception):
    """The connection was reset, or closed by us. The caller raises the error that fits."""


class Stream:
    """A connected socket, perhaps with TLS on it; owns what it wraps."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[Any]) -> None:
        self._stream = stream
        self._silent_tls = isinstance(stream, trio.SSLStream)
        """Nothing was received yet, so a TLS 1.3 server may still send an alert that ends the handshake."""

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket at the bottom."""
        stream: Any = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        sock: trio.socket.SocketType = stream.socket
        return sock

    async def receive(self, max_bytes: int) -> bytes | bytearray:
        """At most `max_bytes`, or none at the end.

        Raises:
            StreamBroken: reset.
            TlsFailed: the peer refused our handshake after all.
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
        """Send all of it.

        Raises:
            StreamBroken: reset.
        """
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise StreamBroken from exc

    def is_readable(self) -> bool:
        """Whether something, perhaps the end, can be received at once."""
        return self.socket.is_readable()

    async def aclose(self) -> None:
        """Close at once, without a TLS close_notify; the socket is closed also when this is cancelled."""
        await trio.aclose_forcefully(self._stream)

    async def start_tls(self, context: ssl.SSLContext, host: str, *, within_s: float) -> Stream:
        """Shake hands, with `host` for SNI and verification.

        When it does not succeed, for whatever reason, this stream is closed.

        Raises:
            TlsFailed: the certificate, the version or an alert; the text is the reason.
            ConnectFailed: the connection broke.
            TimedOut: it took too long.
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
                # The ssl module raises it for a name that SNI cannot carry.
                raise TlsFailed(f"no host name to verify: {exc}") from exc
            raise
        return Stream(stream)


def tls_reason(cause: BaseException | None) -> str:
    """The reason of a TLS error in one line; empty if the connection broke for another reason."""
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
    # OpenSSL 3 has a code of its own for it, which not every build of Python maps to SSLEOFError.
    return isinstance(cause, ssl.SSLError) and cause.reason == "UNEXPECTED_EOF_WHILE_READING"


def _lost_in_handshake(cause: BaseException | None) -> ConnectFailed:
    seen: BaseException | None = cause
    while seen is not None:
        if isinstance(seen, OSError) and not isinstance(seen, ssl.SSLError) and seen.errno:
            return ConnectFailed(
                f"{(seen.strerror or '').lower()} during the TLS handshake", errno=seen.errno
            )
        seen = seen.__cause__
    return ConnectFailed("closed during the TLS handshake")
