"""Checks of a file against the job's bounds, size and digest and the origin's digests. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from downloader.fetch.errors import FetchError, Treatment
from downloader.fetch.headers import Field
from downloader.model import ErrorCode, JobSpec

_FIELDS = {b"content-digest": "Content-Digest", b"repr-digest": "Repr-Digest"}
"""Response fields of RFC 9530 by lower-case name. Both mean the same in a 200, which is the whole file."""

_ALGORITHMS = {b"sha-256": "sha256", b"sha-512": "sha512"}
"""hashlib's names of the algorithms of RFC 9530. Other registered algorithms are not safe, and are
ignored."""

_DIGEST_BYTES = {"sha256": 32, "sha512": 64}

_KEY = rb"[a-z*][a-z0-9_.*-]*"
_ITEM = (
    rb'(?:"(?:[ !#-\[\]-~]|\\["\\])*"|:[A-Za-z0-9+/=]*:|\?[01]|[A-Za-z*0-9-][!#$%&\'*+.^_`|~:/A-Za-z0-9-]*)'
)
_MEMBER = re.compile(rb"(%b)=:([A-Za-z0-9+/=]*):(?:; *%b(?:=%b)?)*[ \t]*" % (_KEY, _KEY, _ITEM))
_COMMA = re.compile(rb",[ \t]*")


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest of the content, declared by the response."""

    field: str
    """Name of the response field, as spelled in RFC 9530."""
    algorithm: str
    """hashlib's name."""
    hexadecimal: str
    """Lower case."""


def declared_digests(fields: Iterable[Field]) -> list[Digest]:
    """The digests in `Content-Digest` and `Repr-Digest` that can be checked.

    A field that is no dictionary of byte sequences (RFC 9651) is ignored as a whole. Other algorithms, and
    digests of a wrong length, are ignored one by one.
    """
    lines: dict[str, list[bytes]] = {}
    for name, value in fields:
        if spelling := _FIELDS.get(name.lower()):
            lines.setdefault(spelling, []).append(value)
    digests: list[Digest] = []
    for spelling, values in lines.items():
        members = _dictionary(b",".join(value.strip(b" \t") for value in values))
        for key, text in members.items():
            algorithm = _ALGORITHMS.get(key, "")
            if algorithm and len(text) == _DIGEST_BYTES[algorithm]:
                digests.append(Digest(spelling, algorithm, text.hex()))
    return digests


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Requirements on a file."""

    max_size: int
    """Most bytes: the smaller of the job's `max_size` and the configured one."""
    min_size: int
    """Least bytes."""
    size: int | None
    """Exact size in bytes; `None`: any."""
    sha256: str
    """Lower-case hexadecimal; empty: any, as for `md5`."""
    md5: str
    min_width: int
    """Least width of the image in pixels; 0: any, as for the next two."""
    min_height: int
    max_pixels: int

    @classmethod
    def of(cls, spec: JobSpec, max_size: int) -> Self:
        """The requirements of a job; `max_size` in bytes is the configured one."""
        return cls(
            max_size=max_size if spec.max_size is None else min(spec.max_size, max_size),
            min_size=spec.min_size,
            size=spec.size,
            sha256=spec.sha256,
            md5=spec.md5,
            min_width=spec.min_width,
            min_height=spec.min_height,
            max_pixels=spec.max_pixels,
        )

    @property
    def bounds_image(self) -> bool:
        """Whether the file must be an image of certain sizes."""
        return bool(self.min_width or self.min_height or self.max_pixels)

    def check_declared(self, length: int | None) -> None:
        """Check the length declared by the response, if any.

        Raises:
            FetchError: the file would have a wrong size.
        """
        if length is None:
            return
        if length > self.max_size:
            text = f"{length} bytes declared, more than max_size ({self.max_size} bytes)"
            raise FetchError(text, ErrorCode.TOO_LARGE)
        self._check_least(length)
        if self.size is not None and length != self.size:
            raise _mismatch("size", self.size, length)

    def check_count(self, received: int) -> None:
        """Check how many bytes have been received so far.

        Raises:
            FetchError: too many.
        """
        if received > self.max_size:
            raise FetchError(f"more than max_size ({self.max_size} bytes)", ErrorCode.TOO_LARGE)
        if self.size is not None and received > self.size:
            raise _mismatch("size", self.size, "more")

    def check_complete(self, size: int, *, digest: Callable[[str], str], declared: Iterable[Digest]) -> None:
        """Check a complete file against the job's size and digest, and against the declared digests.

        `digest` returns the file's digest in hexadecimal, given hashlib's name of the algorithm.

        Raises:
            FetchError: the file differs.
        """
        self._check_least(size)
        if self.size is not None and size != self.size:
            raise _mismatch("size", self.size, size)
        for algorithm, expected in (("sha256", self.sha256), ("md5", self.md5)):
            if expected and digest(algorithm) != expected:
                raise _mismatch(algorithm, expected, digest(algorithm))
        for row in declared:
            if digest(row.algorithm) != row.hexadecimal:
                raise _mismatch(f"{row.field} {row.algorithm}", row.hexadecimal, digest(row.algorithm))

    def check_image(self, size: str) -> None:
        """Check the size of an image, `"WxH"` in pixels, or empty if there is none that can be read.

        Raises:
            FetchError: the image is outside of the job's bounds, or the file is no image.
        """
        if not self.bounds_image:
            return
        if not size:
            raise FetchError("no width and height of an image could be read", ErrorCode.IMAGE_SIZE)
        width, height = map(int, size.split("x"))
        if width < self.min_width or height < self.min_height:
            least = f"min_width {self.min_width}, min_height {self.min_height}"
            raise FetchError(f"image of {size} pixels is too small ({least})", ErrorCode.IMAGE_SIZE)
        if self.max_pixels and width * height > self.max_pixels:
            text = f"image of {size} pixels is too large (max_pixels {self.max_pixels})"
            raise FetchError(text, ErrorCode.IMAGE_SIZE)

    def _check_least(self, size: int) -> None:
        if size < self.min_size:
            text = f"{size} bytes, fewer than min_size ({self.min_size} bytes)"
            raise FetchError(text, ErrorCode.TOO_SMALL)


def _mismatch(subject: str, expected: int | str, actual: int | str) -> FetchError:
    return FetchError(
        f"Expected {subject} to be ({expected}), found ({actual})", ErrorCode.DIGEST, Treatment.RETRY
    )


def _dictionary(text: bytes) -> dict[bytes, bytes]:
    """The members of a dictionary of byte sequences, without parameters; empty if the text is malformed."""
    members: dict[bytes, bytes] = {}
    position = 0
    while match := _MEMBER.match(text, position):
        try:
            members[match[1]] = base64.b64decode(match[2], validate=True)
        except binascii.Error:
            return {}
        position = match.end()
        if position == len(text):
            return members
        comma = _COMMA.match(text, position)
        if comma is None:
            return {}
        position = comma.end()
    return {}
