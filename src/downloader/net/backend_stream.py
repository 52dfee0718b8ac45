"""The byte stream of a guarded connection.

httpcore2's own stream for Trio has no public name, cannot tell a bad certificate from a lost connection,
and leaves its socket open when a cancel meets the TLS handshake.
"""

from __future__ import annotations

import math
import ssl
from typing import Any

import httpcore2
import trio

from downloader.net.errors import TlsFailed


class GuardedStream(httpcore2.AsyncNetworkStream):
    """A connected socket, perhaps with TLS on it; owns what it wraps.

    A single read takes at most `max_read_bytes`, for callers who count what they take.
    """

    def __init__(
        self,
        stream: trio.SocketStream | trio.SSLStream[Any],
        *,
        tls_timeout_s: float | None = None,
        max_read_bytes: int | None = None,
    ) -> None:
        self._stream = stream
        self._max_read_bytes = max_read_bytes
        self._tls_timeout_s = tls_timeout_s
        self._silent_tls = isinstance(stream, trio.SSLStream)
        """With TLS 1.3 a server's complaint about us arrives after our side of the handshake is over."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore2's interface
        """At most `max_bytes`, or `b""` at the end.

        Raises:
            httpcore2.ReadTimeout, httpcore2.ReadError: as usual.
            TlsFailed: the peer refused our handshake after all.
        """
        if self._max_read_bytes is not None:
            max_bytes = min(max_bytes, self._max_read_bytes)
        try:
            if timeout is None:
                data = await self._stream.receive_some(max_bytes)
            else:
                with trio.fail_after(timeout):
                    data = await self._stream.receive_some(max_bytes)
        except trio.TooSlowError as exc:
            raise httpcore2.ReadTimeout(exc) from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            if self._silent_tls and (reason := tls_reason(exc.__cause__)):
                raise TlsFailed(reason) from exc
            raise httpcore2.ReadError(exc) from exc
        self._silent_tls = False
        return bytes(data)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore2's interface
        """Send all of it.

        Raises:
            httpcore2.WriteTimeout, httpcore2.WriteError: as usual.
        """
        if not buffer:
            return
        try:
            if timeout is None:
                await self._stream.send_all(buffer)
            else:
                with trio.fail_after(timeout):
                    await self._stream.send_all(buffer)
        except trio.TooSlowError as exc:
            raise httpcore2.WriteTimeout(exc) from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise httpcore2.WriteError(exc) from exc

    async def aclose(self) -> None:
        """Close at once, without TLS's goodbye; a cancel leaves no socket behind."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2's interface
    ) -> httpcore2.AsyncNetworkStream:
        """Shake hands. The backend's `tls_timeout_s`, where it has one, replaces `timeout`.

        When it does not succeed, for whatever reason, this stream is closed.

        Raises:
            TlsFailed: the certificate, the version or an alert; the text is the reason.
            httpcore2.ConnectError: the connection broke.
            httpcore2.ConnectTimeout: it took too long.
        """
        limit = timeout if self._tls_timeout_s is None else self._tls_timeout_s
        name = None if server_hostname is None else server_hostname.strip("[]").removesuffix(".")
        try:
            with trio.fail_after(math.inf if limit is None else limit):
                stream = trio.SSLStream[Any](
                    self._stream, ssl_context, server_hostname=name, https_compatible=True
                )
                await stream.do_handshake()
        except BaseException as exc:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)
            if isinstance(exc, trio.TooSlowError):
                raise httpcore2.ConnectTimeout(exc) from exc
            if isinstance(exc, trio.BrokenResourceError):
                if reason := tls_reason(exc.__cause__):
                    raise TlsFailed(reason) from exc
                raise httpcore2.ConnectError(_broken(exc)) from exc
            if isinstance(exc, ValueError):
                # The ssl module's word for a name that SNI cannot carry.
                raise TlsFailed(f"no host name to verify: {exc}") from exc
            raise
        return GuardedStream(stream, tls_timeout_s=self._tls_timeout_s, max_read_bytes=self._max_read_bytes)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore2 asks its streams for; `None` for anything else."""
        if info == "ssl_object":
            # Trio's stream answers the questions of the `ssl.SSLObject` inside it.
            return self._stream if isinstance(self._stream, trio.SSLStream) else None
        stream: Any = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        if info == "client_addr":
            return stream.socket.getsockname()
        if info == "server_addr":
            return stream.socket.getpeername()
        if info == "socket":
            return stream.socket
        if info == "is_readable":
            return stream.socket.is_readable()
        return None


def tls_reason(cause: BaseException | None) -> str:
    """One line on what TLS complained about; empty if the connection broke for another reason."""
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


def _broken(exc: trio.BrokenResourceError) -> str:
    if _is_eof(exc.__cause__):
        return "connection closed during the TLS handshake"
    return f"connection lost during the TLS handshake: {exc.__cause__ or exc}"
