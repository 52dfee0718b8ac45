"""Content-Encoding gzip, decoded as it streams."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable

from downloader.net import BadResponse, CutShort

Read = Callable[[], Awaitable[bytes | bytearray | None]]
"""The next bytes of a body, `None` at its end."""

PIECE_BYTES = 256 * 1024
"""How much is decoded in one step; a megabyte of gzip may contain a gigabyte."""

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
        """Not decoded yet."""
        self._full = False
        """Whether the last piece was full, so that the decoder may hold more."""

    async def read(self) -> bytes | None:
        """The next bytes, at most `PIECE_BYTES`, or `None` at the end.

        Raises:
            CutShort: the gzip has no end.
            BadResponse: it is malformed.
            NetError: the source's.
        """
        while True:
            if self._pending or self._full:
                if piece := self._decode():
                    return piece
                continue
            data = await self._source()
            if data is None:
                if self._begun and not self._member.eof:
                    raise CutShort("unexpected EOF: the response's gzip is cut short")
                return None
            self._begun = True
            self._pending = data

    def _decode(self) -> bytes:
        if self._member.eof:
            if self._pending[:1] != _MAGIC:
                self._pending, self._full = b"", False
                return b""
            self._member = zlib.decompressobj(_GZIP)
        try:
            piece = self._member.decompress(self._pending, PIECE_BYTES)
        except zlib.error as exc:
            raise BadResponse("malformed gzip in the response") from exc
        self._full = len(piece) == PIECE_BYTES and not self._member.eof
        self._pending = self._member.unused_data or self._member.unconsumed_tail
        return piece
