"""Requests and responses of an attempt: its hops, what a response means, and the decoding of gzip."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import trio

from downloader.fetch.errors import FetchError, bad_status
from downloader.fetch.expected import Digest, declared_digests
from downloader.fetch.headers import (
    Field,
    HeaderMap,
    asks_for_gzip,
    is_conditional,
    may_keep,
    without_secrets,
)
from downloader.fetch.parts import Part, Source, source_of
from downloader.filenames import disposition_name
from downloader.model import ErrorCode
from downloader.net import BadResponse, CutShort, ResponseBody, Url, UrlError, parse_retry_after

REDIRECTS = frozenset({301, 302, 303, 307, 308})
"""All keep the method, as it is GET (RFC 9110, 15.4)."""

_OK = 200
_GZIP_NAMES = frozenset({b"gzip", b"x-gzip"})

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


@dataclass(frozen=True, slots=True)
class Hop:
    """One of the requests of an attempt: where it goes, and its headers."""

    url: Url
    headers: HeaderMap

    def following(self, fields: Sequence[Field]) -> Hop:
        """The next request, after a redirect with these response fields.

        Another origin gets neither the job's own headers nor credentials.

        Raises:
            FetchError: the redirect leads nowhere, or to a URL that is not followed.
        """
        url = redirect(self.url, fields)
        if not may_keep(self.url.origin, url.origin):
            return Hop(url, without_secrets(self.headers))
        if self.url.basic and not url.basic:
            return Hop(url, {b"authorization": (b"Authorization", self.url.basic), **self.headers})
        return Hop(url, self.headers)


@dataclass(slots=True)
class FileResponse:
    """A successful response whose body has not been read."""

    body: ResponseBody
    read: Read
    """The body's bytes as they are to be stored."""
    length: int | None
    """Declared length of the whole file, as it is to be stored."""
    digests: Sequence[Digest] = ()
    """Digests of the whole file that the response declares."""
    url: str = ""
    """The URL that answered, after redirects."""
    fields: Sequence[Field] = ()
    """The response's fields; only if the file can be continued after a cut."""
    part: Part | None = None
    """The part that `read` continues."""
    filename: str = ""
    """The file's name from `Content-Disposition`."""

    def source(self) -> Source | None:
        """The source of a part of this file; `None` if a part could not be continued."""
        if self.part is not None:
            return self.part.source
        return source_of(self.url, self.fields, self.length, digests=self.digests, filename=self.filename)


def first_fields(fields: Sequence[Field]) -> Mapping[bytes, bytes]:
    """The first field of each name, by lower-case name; httpx2's own look-up decodes all of them."""
    return {name.lower(): value for name, value in reversed(fields)}


def success(
    status: int, url: Url, body: ResponseBody, fields: Sequence[Field], request: HeaderMap
) -> FileResponse:
    """A response to store: as sent, or decoded if it is in gzip and the request did not accept gzip.

    A decoded body has a checksum of its own. It is not compared with digests, which are of the sent bytes.
    """
    named = first_fields(fields)
    disposition = named.get(b"content-disposition")
    filename = disposition_name(disposition) if disposition else ""
    encoding = named.get(b"content-encoding", b"").strip().lower()
    if encoding in _GZIP_NAMES and not asks_for_gzip(request):
        return FileResponse(body, Gunzip(body.read).read, None, filename=filename)
    if status != _OK:
        return FileResponse(body, body.read, body.length, filename=filename)
    digests: Sequence[Digest] = ()
    if b"content-digest" in named or b"repr-digest" in named:
        digests = declared_digests(fields)
    return FileResponse(body, body.read, body.length, digests, url.text, fields, filename=filename)


def continuation(part: Part, body: ResponseBody) -> FileResponse:
    """A 206 that continues the part."""
    source = part.source
    return FileResponse(body, body.read, source.total, source.digests, part=part, filename=source.filename)


def redirect(url: Url, fields: Sequence[Field]) -> Url:
    """Where a redirect from `url` leads.

    Raises:
        FetchError: nowhere, or to a URL that is not followed.
    """
    location = first_fields(fields).get(b"location")
    if not location:
        raise FetchError("redirect without a location", ErrorCode.REDIRECTS)
    try:
        following = url.join(location)
    except UrlError as exc:
        raise FetchError(f"redirect to a URL that {exc.detail}", ErrorCode.REDIRECTS) from exc
    if url.origin.scheme == "https" and following.origin.scheme == "http":
        raise FetchError("redirect from https to http", ErrorCode.REDIRECTS)
    return following


def failure(status: int, fields: Sequence[Field], request: HeaderMap) -> FetchError:
    """The failure for a status that is neither a success nor a redirect."""
    value = first_fields(fields).get(b"retry-after", b"").decode("latin-1")
    retry_after_s = parse_retry_after(value, datetime.now(UTC))
    return bad_status(status, retry_after_s=retry_after_s, conditional=is_conditional(request))
