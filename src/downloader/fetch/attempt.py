"""One attempt at a download, from the first connection to the stored file."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from downloader.content import SNIFF_BYTES, MimePatterns, image_size, sniff_mime
from downloader.errors import KeyTaken, StorageError, StorageRefused
from downloader.fetch.errors import FetchError, Treatment, explain, own_fault
from downloader.fetch.expected import Expected
from downloader.fetch.headers import HeaderMap, conditions, job_headers
from downloader.fetch.memory import BodyMemory
from downloader.fetch.pace import Pace
from downloader.fetch.partial import PartialFile, PartialFiles, Source
from downloader.fetch.response import (
    REDIRECTS,
    FileResponse,
    Hop,
    continuation,
    failure,
    metadata_of,
    success,
)
from downloader.fetch.robots import Robots
from downloader.fetch.settings import FetchLimits, FetchSettings
from downloader.fetch.sink import LOOP_BYTES, CompleteBody, Sink
from downloader.fetch.spool import Spool
from downloader.fetch.watch import Watch
from downloader.model import ErrorCode, FileFacts, JobSpec, Lease, ResponseMetadata, now_ms
from downloader.net import NetError, Route, Transport, Url, UrlError, Use, redact_url
from downloader.phases import Phases
from downloader.signals import failpoint

StoreFile = Callable[[JobSpec, CompleteBody, str, Callable[[], bool]], Awaitable[None]]
"""`(job, file, MIME type, still_ours)` -> stores the file where the job's files go.

`still_ours` tells whether the lease is valid; any thread may call it, right before the file is published.
Raises `StorageError`, `StorageRefused` (final) or `OSError`.
"""

STORE_BYTES_PER_S = 64 * 1024
"""The time limit of syncing and storing grows by one second for each 64 KiB."""

CUT_OFF_S = 0.5
"""Time between a job's deadline and the end of a running attempt, so that the failure comes after the
deadline."""

OnProgress = Callable[[int, int | None], None]
"""`(bytes received, bytes declared)`; called for each chunk of the body."""

_NOT_TAKEN = "the storage did not take the file in time"

_OK = 200
_PARTIAL_CONTENT = 206
_NOT_MODIFIED = 304
_NOT_CONTINUED = frozenset({_PARTIAL_CONTENT, 416})
"""Statuses that reject a partial file: another range than requested, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Resources and settings shared by all attempts of a fetcher."""

    settings: FetchSettings
    limits: FetchLimits
    base: HeaderMap
    """The configured request headers."""
    transport: Transport
    partials: PartialFiles
    spool: Spool
    memory: BodyMemory
    store: StoreFile
    robots: Robots | None = None
    """`None`: robots.txt is ignored."""
    pace: Pace | None = None
    """`None`: any number of bytes per second."""


class Attempt:
    """One attempt at one job: `run` resumes, requests, receives, verifies and stores the file."""

    def __init__(
        self, tools: Tools, lease: Lease, *, still_ours: Callable[[], bool], on_progress: OnProgress
    ) -> None:
        self.status = 0
        """The status of the last response; 0 without a response."""
        self.metadata = ResponseMetadata()
        """Metadata of the file from the last successful response."""
        self.phases = Phases({} if lease.waited_s is None else {"queue": lease.waited_s})
        self._tools = tools
        self._lease = lease
        self._spec = lease.spec
        self._still_ours = still_ours
        self._on_progress = on_progress
        self._sink: Sink | None = None
        """The bytes of the file so far."""
        self._partial: PartialFile | None = None
        """The partial file of an earlier attempt, while continuable; the bytes are in the sink."""
        self._conditions = conditions(lease.spec)
        self._response: FileResponse | None = None
        """The response while the body is being received."""
        self._mime = ""
        """The file's media type, once detected and accepted."""

    async def run(self) -> FileFacts:
        """Download and store the file; a failed attempt keeps the received bytes for the next attempt.

        If the origin says that the file is not modified, nothing is stored.

        Raises:
            FetchError: the attempt failed.
            OSError: the local disk failed.
        """
        resumable = self._tools.partials.resumable
        keep = resumable  # also after a cancel
        try:
            return await self._run()
        except FetchError as exc:
            refused = exc.treatment is Treatment.FINAL
            keep = not refused or (resumable and self._response is None)
            raise
        finally:
            self.phases.begin("")
            if self._sink is not None:
                if keep:
                    await self._tools.partials.keep(self._lease.id, self._sink, self._source())
                await self._sink.discard()

    async def _run(self) -> FileFacts:
        patterns = _patterns(self._spec.mime_type)
        settings = self._tools.settings
        expected = Expected.of(self._spec, settings.max_size)
        try:
            watch = Watch(total_s=self._total_s())
            with watch.scope:
                await self._resume()
                response = await self._request(watch)
                if response is None:
                    return FileFacts()
                sink = await self._begin(response, watch)
                try:
                    await self._receive(response, sink, watch, expected, patterns)
                finally:
                    await response.body.aclose()
                self.phases.begin("store")
                self._response = self._partial = None  # the body is complete: nothing to continue
                watch.expect(_NOT_TAKEN, self._tools.limits.store_s + sink.size / STORE_BYTES_PER_S)
                body = await sink.complete()
                expected.check_complete(body.size, digest=sink.digest, declared=response.digests)
                mime = self._mime or _checked_mime(sink.head, body.size, patterns)
                measured = self._spec.extract_image_size or expected.bounds_image
                pixels = await _pixels(mime, body) if measured else ""
                expected.check_image(pixels)
                await self._store(body, mime)
                return FileFacts(
                    size=body.size,
                    sha256=body.sha256,
                    mime_type=mime,
                    image_size=pixels if self._spec.extract_image_size else "",
                    filename=response.filename,
                )
        except NetError as exc:
            raise explain(exc) from exc
        if watch.reason == _NOT_TAKEN:
            raise own_fault(_NOT_TAKEN)
        raise FetchError(watch.reason, ErrorCode.TIMEOUT, Treatment.RETRY)

    def _total_s(self) -> float:
        settings = self._tools.settings
        timeout_s = self._spec.download_timeout or settings.download_timeout
        left_s = max(0.0, self._spec.left_s(now_ms())) + CUT_OFF_S
        return min(timeout_s, settings.max_download_timeout, left_s)

    def _source(self) -> Source | None:
        """The source of the bytes in the sink; `None` if the download cannot be continued."""
        if self._response is not None:
            return self._response.source()
        return None if self._partial is None else self._partial.source

    async def _resume(self) -> None:
        """Load the partial file of an earlier attempt, if any."""
        self._partial = self._tools.partials.take(self._lease.id)
        if self._partial is not None:
            self._sink = self._new_sink()
            if not await self._partial.load_into(self._sink):
                self._partial = None

    async def _request(self, watch: Watch) -> FileResponse | None:
        """Send the request, follow redirects, and return a successful response; `None` if not modified."""
        spec, proxy = self._spec, self._lease.proxy
        via = _parse(proxy, "proxy", "the URL of the aggregation's proxy") if proxy else None
        hop = Hop(
            _parse(spec.url, "download", "the job's URL"),
            job_headers(self._tools.base, user_agent=spec.user_agent, headers=spec.request_headers),
        )
        own_origin = hop.url.origin
        for _ in range(self._tools.limits.redirects + 1):
            is_own_host = hop.url.origin == own_origin
            try:
                following = await self._send(hop, via, watch, is_own_host=is_own_host)
            except FetchError as exc:
                exc.from_host = is_own_host and via is None
                raise
            if not isinstance(following, Hop):
                return following
            if following is not hop:
                self.phases.redirects.append((self.status, redact_url(following.url.text)))
            hop = following
        raise FetchError(f"more than {self._tools.limits.redirects} redirects", ErrorCode.REDIRECTS)

    async def _send(
        self, hop: Hop, proxy: Url | None, watch: Watch, *, is_own_host: bool
    ) -> FileResponse | Hop | None:
        """Send one request; return a successful response, or the next hop (redirect, or restart).

        Returns `None` if the file is not modified.
        """
        tools, url = self._tools, hop.url
        headers = hop.headers | self._conditions
        if tools.robots is not None:
            watch.expect("", math.inf)  # end the time limit of the previous response
            self.phases.begin("robots")
            await tools.robots.check(url, aggregation=self._lease.queue, proxy=proxy, is_own_host=is_own_host)
        route = Route(
            url=url,
            aggregation=self._lease.queue,
            proxy=proxy,
            keep=self._lease.limit,
            response_s=max(tools.settings.response_timeout, self._spec.download_timeout or 0),
            expect=watch.expect,
            phases=self.phases,
        )
        partial = self._partial
        if partial is not None and partial.source.url != url.text:
            partial = None
        requested = headers | partial.condition if partial else headers
        response = await tools.transport.send("GET", route, [*requested.values()])
        status = self.status = response.status
        fields, body = response.fields, response.body
        if status in range(200, 300) and status != _PARTIAL_CONTENT:
            self.metadata = metadata_of(fields, hop)
            return success(status, url, body, fields, headers)
        if (
            partial is not None
            and status == _PARTIAL_CONTENT
            and partial.is_continued_by(fields, body.length)
        ):
            self.status = _OK
            self.metadata = metadata_of(fields, hop)
            return continuation(partial, body)
        await body.aclose()
        if status == _NOT_MODIFIED and self._conditions:
            self.metadata = metadata_of(fields, hop, not_modified=True)
            return None
        if partial is not None and status in _NOT_CONTINUED:
            self._partial = None
            return hop  # again, now from the beginning of the file
        if status not in REDIRECTS:
            raise failure(status, fields, headers)
        return hop.following(fields)

    async def _begin(self, response: FileResponse, watch: Watch) -> Sink:
        """The sink for the body: the partial file's if the response continues the file, else a new sink."""
        self._response = response
        if self._tools.pace is not None:
            response.read = partial(self._tools.pace.read, response.read, watch)
        if self._sink is not None:
            if response.partial is not None:
                return self._sink
            await self._sink.discard()
        partials = self._tools.partials
        name = await partials.begin(self._lease.id, response.source()) if partials.resumable else ""
        self._sink = self._new_sink(name)
        return self._sink

    def _new_sink(self, name: str = "") -> Sink:
        tools = self._tools
        sink = Sink(tools.spool, tools.memory, self._lease.queue, head_bytes=SNIFF_BYTES, name=name)
        if self._spec.md5:
            sink.hash_with("md5")
        return sink

    async def _receive(
        self,
        response: FileResponse,
        sink: Sink,
        watch: Watch,
        expected: Expected,
        patterns: MimePatterns | None,
    ) -> None:
        """Read the body into the sink; stop as soon as the file is known to be refused."""
        expected.check_declared(response.length)
        for digest in response.digests:
            sink.hash_with(digest.algorithm)
        limits = self._tools.limits
        self.phases.begin("body")
        watch.expect_flow(limits.stall_bytes_per_s, limits.stall_s, received=sink.size)

        if sink.needs_room(response.length):
            with watch.paused():
                await sink.reserve(response.length, within_s=limits.room_s)

        async def fill() -> bool:
            """Read until the sink is full (true) or the body ends (false)."""
            while (chunk := await response.read()) is not None:
                if not sink.size:
                    failpoint("first-byte")
                sink.add(chunk)
                watch.flow(sink.size)
                self._on_progress(sink.size, response.length)
                expected.check_count(sink.size)
                if patterns is not None and not self._mime and sink.size >= SNIFF_BYTES:
                    self._mime = _checked_mime(sink.head, response.length, patterns)
                if sink.full:
                    return True
            return False

        if await fill():
            async with sink.writing_behind() as hand_over:
                more = True
                while more:
                    with watch.paused():
                        await hand_over()
                    more = await fill()

    async def _store(self, body: CompleteBody, mime: str) -> None:
        if body.data is not None:
            failpoint("before-fsync")
        try:
            await self._tools.store(self._spec, body, mime, self._still_ours)
        except StorageRefused as exc:
            code = ErrorCode.KEY_EXISTS if isinstance(exc, KeyTaken) else ErrorCode.STORAGE
            raise FetchError(str(exc), code) from exc
        except StorageError as exc:
            raise own_fault(str(exc)) from exc
        failpoint("after-rename")


def _parse(text: str, use: Use, subject: str) -> Url:
    try:
        return Url.parse(text, use)
    except UrlError as exc:  # the API refuses such jobs, but an older version may have accepted this one
        raise FetchError(f"{subject} {exc.detail}", ErrorCode.PROTOCOL) from exc


def _patterns(text: str) -> MimePatterns | None:
    if not text:
        return None
    try:
        return MimePatterns.parse(text)
    except ValueError as exc:
        raise FetchError("the job's mime_type is malformed", ErrorCode.MIME_TYPE) from exc


def _checked_mime(head: bytes, size: int | None, patterns: MimePatterns | None) -> str:
    mime = sniff_mime(head, size=size)
    mismatch = None if patterns is None else patterns.mismatch(mime)
    if mismatch is not None:
        raise FetchError(mismatch, ErrorCode.MIME_TYPE)
    return mime


async def _pixels(mime: str, body: CompleteBody) -> str:
    source = body.path if body.data is None else body.data
    assert source is not None
    if body.size <= LOOP_BYTES:
        return image_size(mime, source)
    return await trio.to_thread.run_sync(image_size, mime, source)
