"""Content-Encoding gzip, decoded as it streams."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable

import trio

from downloader.net import BadResponse, CutShort

Read = Callable[[], Awaitable[bytes | bytearray | None]]
"""The next bytes of a body, `None` at its end."""

PIECE_BYTES = 256 * 1024
"""How much is decoded in one step; a megabyte of gzip may contain a gigabyte."""

FED_BYTES = 16 * 1024
"""How much the decoder gets in one step: it copies what is behind the end of a member."""

MAX_OVERHEAD_BYTES = 256 * 1024
"""Most bytes by which the received ones may exceed the decoded ones, beside half of these: members of a few
bytes cost as much CPU as large ones."""

_GZIP = 16 + zlib.MAX_WBITS
_MAGIC = b"\x1f"


class Gunzip:
    """The decoded bytes of a body in gzip (RFC 1952), members one after the other.

    An empty body is an empty file. Bytes behind the last member are ignored, as browsers do.
    """

    def __init__(self, source: Read) -> None:
        self._source = source
        self._member = zlib.decompressobj(_GZIP)
        self._begun = False
        self._pending: bytes | bytearray = b""
        """Received; not decoded yet from `_at` on."""
        self._at = 0
        self._full = False
        """Whether the last piece was full, so that the decoder may hold more."""
        self._received = self._decoded = 0

    async def read(self) -> bytes | None:
        """The next bytes, at most `PIECE_BYTES`, or `None` at the end.

        Raises:
            CutShort: the gzip has no end.
            BadResponse: it is malformed, or there is too little in it.
            NetError: the source's.
        """
        while True:
            if self._at < len(self._pending) or self._full:
                if self._member.eof:
                    await trio.lowlevel.checkpoint()  # thousands of members may have been received at once
                if piece := self._decode():
                    self._decoded += len(piece)
                    return piece
                continue
            data = await self._source()
            if data is None:
                if self._begun and not self._member.eof:
                    raise CutShort("unexpected EOF: the response's gzip is cut short")
                return None
            self._begun = True
            self._pending, self._at = data, 0
            self._received += len(data)
            if self._received - self._decoded > MAX_OVERHEAD_BYTES + self._decoded // 2:
                raise BadResponse("gzip with next to nothing in it")

    def _decode(self) -> bytes:
        fed = self._pending[self._at : self._at + FED_BYTES]
        if self._member.eof:
            if fed[:1] != _MAGIC:
                self._pending, self._at, self._full = b"", 0, False
                return b""
            self._member = zlib.decompressobj(_GZIP)
        try:
            piece = self._member.decompress(fed, PIECE_BYTES)
        except zlib.error as exc:
            raise BadResponse("malformed gzip in the response") from exc
        self._full = len(piece) == PIECE_BYTES and not self._member.eof
        self._at += len(fed) - len(self._member.unused_data or self._member.unconsumed_tail)
        return piece
