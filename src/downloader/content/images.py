"""The size of a picture, from the header."""

from __future__ import annotations

import io
from pathlib import Path
from struct import unpack_from
from typing import BinaryIO

import imagesize

MEASURED_TYPES = frozenset(("image/jpeg", "image/png", "image/gif", "image/webp", "image/avif"))
"""Types that the service measures."""

_GIF_HEAD_BYTES = 10
"""Signature, width, height."""

_MAX_READ_BYTES = 4 * 1024 * 1024
"""Most bytes read of one file; the items of an AVIF and the markers of a JPEG take far less."""

_MAX_CALLS = 20_000
"""Most reads and seeks on one file. imagesize looks for a JPEG's markers byte by byte: a file with gigabytes
of other data after the first marker would take hours. Real files take some hundred calls."""


class _OverspentError(Exception):
    """The header of a picture takes more reads than allowed."""


class _Reader:
    """A file for imagesize, with limits on bytes and calls."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes_left = _MAX_READ_BYTES
        self._calls_left = _MAX_CALLS

    def read(self, size: int = -1) -> bytes:
        """See `BinaryIO.read`; raises `_OverspentError`."""
        self._spend(size)
        data = self._file.read(size)
        # imagesize 2.0 takes the box `irot` (ISO 23008-12, 6.5.10) for longer than one byte, and so fails on
        # every rotated AVIF. The rotation does not matter here; a box of type `free` is skipped.
        return data[:4] + b"free" if data[4:] == b"irot" else data

    def seek(self, offset: int, whence: int = 0) -> int:
        """See `BinaryIO.seek`; raises `_OverspentError`."""
        self._spend(0)
        return self._file.seek(offset, whence)

    def _spend(self, size: int) -> None:
        self._calls_left -= 1
        self._bytes_left -= size
        if size < 0 or self._calls_left < 0 or self._bytes_left < 0:
            raise _OverspentError


def image_size(mime: str, source: Path | bytes) -> str:
    """The stored size of a picture in pixels, `"WxH"`, before any rotation by metadata.

    Empty for types other than JPEG, PNG, GIF, WebP and AVIF, and for unreadable files. Never raises, and
    reads little of any file.
    """
    if mime not in MEASURED_TYPES:
        return ""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            width, height = _size(file)
    except (OSError, ValueError, _OverspentError):
        return ""
    return f"{width}x{height}" if width > 0 and height > 0 else ""


def _size(file: BinaryIO) -> tuple[int, int]:
    head = file.read(32)
    if head.startswith((b"GIF87a", b"GIF89a")) and len(head) >= _GIF_HEAD_BYTES:
        # imagesize 2.0 reads the two numbers as signed: a width above 32,767 would be negative.
        width, height = unpack_from("<HH", head, 6)
        return width, height
    width, height = imagesize.get(_Reader(file), exif_rotation=False)
    if width > 0 and head[8:16] == b"WEBPVP8 ":
        # imagesize 2.0 includes two bits that ask for upscaling (RFC 6386, 9.1).
        return width & 0x3FFF, height & 0x3FFF
    return width, height
