"""Requests and responses of an attempt: redirects, the meaning of a response, and the decoding of gzip."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import trio

from downloader.backoff import parse_retry_after
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
from downloader.fetch.partial import PartialFile, Source, source_of
from downloader.model import ErrorCode, ResponseMetadata
from downloader.net import BadResponse, CutShort, ResponseBody, Url, UrlError
from downloader.paths import disposition_name

REDIRECTS = frozenset({301, 302, 303, 307, 308})
"""Statuses of redirects. All of them keep the method GET (RFC 9110, 15.4)."""

_OK = 200
MAX_METADATA_CHARS = 256
"""Longest value of a response field that is kept with the job, in the store's memory."""

_GZIP_NAMES = frozenset({b"gzip", b"x-gzip"})

Read = Callable[[], Awaitable[bytes | bytearray | None]]
"""The next bytes of a body; `None` at the end."""

PIECE_BYTES = 256 * 1024
"""Most decoded bytes of one step; a megabyte of gzip may contain a gigabyte."""

FED_BYTES = 16 * 1024
"""Most bytes given to the decoder in one step. At the end of a member the decoder copies the remaining
bytes, so larger steps would be slow for tiny members."""

MAX_OVERHEAD_BYTES = 256 * 1024
"""Most overhead of a body: refused once more than `MAX_OVERHEAD_BYTES` plus 1.5 times the decoded bytes have
been received. Millions of tiny members would cost CPU without giving data."""

_GZIP = 16 + zlib.MAX_WBITS
_MAGIC = b"\x1f"


class Gunzip:
    """Decoder of a body in gzip (RFC 1952) of one or several members.

    An empty body is an empty file. Bytes after the last member are ignored, as browsers do.
    """

    def __init__(self, source: Read) -> None:
        self._source = source
        self._member = zlib.decompressobj(_GZIP)
        self._begun = False
        self._pending: bytes | bytearray = b""
        """Received bytes; not decoded yet from `_at` on."""
        self._at = 0
        self._full = False
        """Whether the last piece was full, so that the decoder may hold more output."""
        self._received = self._decoded = 0

    async def read(self) -> bytes | None:
        """The next bytes, at most `PIECE_BYTES`, or `None` at the end.

        Raises:
            CutShort: the gzip is incomplete.
            BadResponse: the gzip is malformed, or has too little content for its length.
            NetError: reading from the source failed.
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
    """The URL and headers of one request of an attempt; a redirect leads to another hop."""

    url: Url
    headers: HeaderMap
    redirected: bool = False
    """Whether the hop follows a redirect."""

    def following(self, fields: Sequence[Field]) -> Hop:
        """The next request after a redirect with the given response fields.

        Another origin gets neither the job's own headers nor credentials.

        Raises:
            FetchError: the redirect has no location, or one that must not be followed.
        """
        url = redirect(self.url, fields)
        if not may_keep(self.url.origin, url.origin):
            return Hop(url, without_secrets(self.headers), redirected=True)
        if self.url.userinfo and not url.userinfo:
            headers = {b"authorization": (b"Authorization", self.url.basic), **self.headers}
            return Hop(url, headers, redirected=True)
        return Hop(url, self.headers, redirected=True)


@dataclass(slots=True)
class FileResponse:
    """A successful response with an unread body."""

    body: ResponseBody
    read: Read
    """Returns the bytes to store, decoded if necessary."""
    length: int | None
    """Declared length of the file as stored; `None` if unknown."""
    digests: Sequence[Digest] = ()
    """Digests of the whole file, declared by the response."""
    url: str = ""
    """The URL of the last request, after redirects."""
    fields: Sequence[Field] = ()
    """The response's fields, for `source`; empty if an interrupted body cannot be continued."""
    partial: PartialFile | None = None
    """The partial file that the body continues."""
    filename: str = ""
    """The file's name from `Content-Disposition`."""

    def source(self) -> Source | None:
        """The source for a partial file; `None` if an interrupted body cannot be continued."""
        if self.partial is not None:
            return self.partial.source
        return source_of(self.url, self.fields, self.length, digests=self.digests, filename=self.filename)


def metadata_of(fields: Sequence[Field], hop: Hop, *, not_modified: bool = False) -> ResponseMetadata:
    """Metadata of the file from the fields of a success or a 304, which answered `hop`."""
    by_name = first_fields(fields)
    return ResponseMetadata(
        etag=_text(by_name.get(b"etag")),
        last_modified=_text(by_name.get(b"last-modified")),
        content_type=_text(by_name.get(b"content-type")),
        final_url=hop.url.requested if hop.redirected else "",
        not_modified=not_modified,
    )


def _text(value: bytes | None) -> str:
    """A field's value as text; empty for a value that is absent, too long to keep, or not printable."""
    text = (value or b"").decode("latin-1").strip()
    return text if len(text) <= MAX_METADATA_CHARS and text.isprintable() else ""


def first_fields(fields: Sequence[Field]) -> Mapping[bytes, bytes]:
    """The first field of each name, by lower-case name. httpx2's own look-up decodes all fields each time."""
    return {name.lower(): value for name, value in reversed(fields)}


def success(
    status: int, url: Url, body: ResponseBody, fields: Sequence[Field], request: HeaderMap
) -> FileResponse:
    """The response for a 2xx; a body in gzip is decoded if the request did not accept gzip.

    The declared digests are of the encoded bytes, so a decoded body is not compared with them. gzip has a
    checksum.
    """
    by_name = first_fields(fields)
    disposition = by_name.get(b"content-disposition")
    filename = disposition_name(disposition) if disposition else ""
    encoding = by_name.get(b"content-encoding", b"").strip().lower()
    if encoding in _GZIP_NAMES and not asks_for_gzip(request):
        return FileResponse(body, Gunzip(body.read).read, None, filename=filename)
    if status != _OK:
        return FileResponse(body, body.read, body.length, filename=filename)
    digests: Sequence[Digest] = ()
    if b"content-digest" in by_name or b"repr-digest" in by_name:
        digests = declared_digests(fields)
    return FileResponse(body, body.read, body.length, digests, url.text, fields, filename=filename)


def continuation(partial: PartialFile, body: ResponseBody) -> FileResponse:
    """The response for a 206 that continues a partial file."""
    source = partial.source
    return FileResponse(
        body, body.read, source.total, source.digests, partial=partial, filename=source.filename
    )


def redirect(url: Url, fields: Sequence[Field]) -> Url:
    """The target of a redirect from `url`.

    Raises:
        FetchError: the redirect has no location, or one that must not be followed.
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
