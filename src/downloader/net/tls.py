"""TLS handshakes of a client, with the sessions of earlier connections."""

from __future__ import annotations

import ssl

import trio

from downloader.net.errors import ConnectFailed, TimedOut, TlsFailed
from downloader.net.stream import Stream, StreamBroken, TlsStream, tls_reason
from downloader.net.url import Origin

Peer = tuple[str, str, Origin, ssl.SSLContext]
"""Aggregation and proxy (both empty without a proxy), origin, authorities."""

_AT_ONCE = 8
"""Steps of handshakes in one pass of the event loop. A step takes 0.1 to 0.4 ms, so a burst of handshakes
delays the other tasks by 3 ms at a time."""

MAX_SESSIONS = 512
"""Most sessions of a transport. A session takes about 13 KiB, because it has the peer's certificates."""


class ResumptionFailed(TlsFailed):
    """The handshake failed, perhaps because a session was to be resumed. The peer's sessions are dropped."""


class Sessions:
    """The sessions of a transport's earlier connections, in memory.

    Each session is used once, because a ticket that is used twice shows that both connections are of one
    client (RFC 8446, C.4).
    """

    def __init__(self) -> None:
        self.by_peer: dict[Peer, list[ssl.SSLSession]] = {}
        """The peer with the newest session is the last one."""
        self._count = 0

    def take(self, peer: Peer) -> ssl.SSLSession | None:
        """Remove and return the newest session of a peer; `None` if there is none."""
        return self._remove(peer, -1) if peer in self.by_peer else None

    def keep(self, peer: Peer, session: ssl.SSLSession) -> None:
        """Add a session; if there are too many, the peer without a new session for longest loses one."""
        sessions = self.by_peer.pop(peer, [])
        self.by_peer[peer] = sessions
        sessions.append(session)
        self._count += 1
        if self._count > MAX_SESSIONS:
            self._remove(next(iter(self.by_peer)), 0)

    def drop(self, peer: Peer) -> None:
        """Remove all sessions of a peer."""
        self._count -= len(self.by_peer.pop(peer, []))

    def _remove(self, peer: Peer, index: int) -> ssl.SSLSession:
        sessions = self.by_peer[peer]
        session = sessions.pop(index)
        self._count -= 1
        if not sessions:
            del self.by_peer[peer]
        return session


class Handshakes:
    """Makes the handshakes of a transport. A peer that accepts no session makes a full handshake instead."""

    def __init__(self, sessions: Sessions) -> None:
        self._turns = trio.CapacityLimiter(_AT_ONCE)
        self._sessions = sessions

    async def start_tls(self, stream: Stream, peer: Peer, *, within_s: float, resume: bool = True) -> Stream:
        """Make a handshake, with the host of the peer's origin for SNI and verification.

        With `resume`, a kept session of the peer is used. After any failure the stream is closed.

        Raises:
            TlsFailed: the certificate, the version or an alert; the text is the reason.
            ResumptionFailed: the handshake with a kept session failed; only with `resume`.
            ConnectFailed: the connection broke.
            TimedOut: the handshake took longer than `within_s`.
        """
        _, _, origin, context = peer
        session = self._sessions.take(peer) if resume else None
        try:
            try:
                with trio.fail_after(within_s):
                    secure = TlsStream(
                        stream,
                        context,
                        origin.host.removesuffix("."),
                        session=session,
                        share=lambda session: self._sessions.keep(peer, session),
                    )
                    await secure.do_handshake(self._turns)
            except BaseException:
                stream.close()
                raise
        except trio.TooSlowError as exc:
            raise TimedOut(f"no TLS handshake within {within_s:g} s") from exc
        except (ssl.SSLError, StreamBroken) as exc:
            reason = tls_reason(exc)
            if session is not None:
                self._sessions.drop(peer)
                raise ResumptionFailed(reason or "closed while a session was resumed") from exc
            raise (TlsFailed(reason) if reason else _lost_in_handshake(exc)) from exc
        except ValueError as exc:
            # The ssl module raises ValueError for a name that is invalid in SNI.
            raise TlsFailed(f"no host name to verify: {exc}") from exc
        return secure


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """A client's context: TLS 1.2 or later, HTTP/1.1, the system's authorities unless a PEM file is given.

    Building a context takes milliseconds: share it.

    Raises:
        OSError: the file cannot be used.
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _lost_in_handshake(cause: BaseException | None) -> ConnectFailed:
    while cause is not None:
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno:
            return ConnectFailed(
                f"{(cause.strerror or '').lower()} during the TLS handshake", errno=cause.errno
            )
        cause = cause.__cause__
    return ConnectFailed("closed during the TLS handshake")
