"""One attempt at a download, from the first connection to the stored file."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import trio

from downloader.config import ProcessorSettings
from downloader.content import MAX_PATTERN_CHARS, SNIFF_BYTES, MimePatterns, image_size, sniff_mime
from downloader.errors import StorageError, StorageRefused
from downloader.fetch.connection import Connection, Head
from downloader.fetch.errors import (
    DestinationRefused,
    FetchError,
    LocalFault,
    RedirectRefused,
    StatusForNow,
    StatusRefused,
    TimedOut,
    TooLarge,
    WrongMimeType,
)
from downloader.fetch.request import (
    REDIRECTS,
    HeaderMap,
    abroad,
    job_headers,
    parse_target,
    redirect_target,
    wire_headers,
)
from downloader.fetch.retry import decide, parse_retry_after
from downloader.fetch.sink import Sealed, Sink
from downloader.fetch.spool import Spool
from downloader.fetch.transport import Leased, Route, Transport
from downloader.fetch.watch import Watch
from downloader.model import FileFacts, JobSpec, Lease, Outcome, Verdict
from downloader.observe import failpoint
from downloader.storage import Body, Storage

BucketOpener = Callable[[str, str], Awaitable[Storage]]
"""`(bucket, region)` of a job that brings its own to a storage that writes there, kept by its opener.

Raises `StorageError` or `StorageRefused`.
"""

MAX_ERROR_CHARS = MAX_PATTERN_CHARS + 200
"""Of an outcome's `error`, which is stored, sent and shown; the sentence on an unexpected type fits in."""

MAX_PLUGIN_CHARS = 500
"""Of a storage plugin's words, which may have any shape."""

STORE_S = 120.0
"""For storing a file of any size; more than a storage's own time-outs, which can say what is wrong."""

STORE_BYTES_PER_S = 64 * 1024
"""Storing may take a second more for each so many bytes; slower than this, another attempt may do better."""

OnProgress = Callable[[int, int | None], None]
"""`(bytes received, bytes declared)`, for somebody who watches; called for each piece of the body."""

_RETRIED_4XX = frozenset({408, 425, 429})
_PARTIAL_CONTENT = 206


@dataclass(slots=True)
class _Progress:
    """What is known of an attempt however it ends."""

    status: int = 0
    told: OnProgress = lambda *_: None


@dataclass(slots=True)
class _Intake:
    """A body on its way from a connection into a sink."""

    connection: Connection
    sink: Sink
    watch: Watch
    limit: int
    """Bytes."""
    length: int | None
    """As declared."""
    patterns: MimePatterns | None
    told: OnProgress
    mime: str = ""
    """Once it had to be known."""

    async def run(self) -> bool:
        """Take bytes in until the sink is full (true) or the body ends (false)."""
        sink = self.sink
        while (chunk := await self.connection.read()) is not None:
            if not sink.size:
                failpoint("first-byte")
            sink.add(chunk)
            self.watch.flow(sink.size)
            self.told(sink.size, self.length)
            if sink.size > self.limit:
                raise TooLarge(f"more than max_size ({self.limit} bytes)")
            if self.patterns is not None and not self.mime and sink.size >= SNIFF_BYTES:
                self.mime = _checked_mime(sink.head, self.length, self.patterns)
            if sink.full:
                return True
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Carries out attempts; any number at once. Owns nothing: `open_fetcher` does."""

    settings: ProcessorSettings
    base: HeaderMap
    """The configured request headers."""
    transport: Transport
    spool: Spool
    storage: Storage
    own_bucket: BucketOpener | None
    rng: random.Random
    store_s: float
    """See `STORE_S`."""

    async def attempt(
        self, lease: Lease, *, still_ours: Callable[[], bool], on_progress: OnProgress = lambda *_: None
    ) -> Outcome:
        """Download the job's file and store it; the outcome says what is to become of the job.

        Whatever a peer, the disk or a storage does ends in an outcome. A cancel passes through, and
        leaves no file, connection or task behind; whether the file is stored by then is not known.

        Args:
            lease: of a download.
            still_ours: asked, from any thread, right before the file is published.
            on_progress: told how far the body is; must not block.
        """
        progress = _Progress(told=on_progress)
        try:
            facts = await self._download(lease, progress, still_ours)
        except FetchError as exc:
            return self._failure(lease, exc, progress)
        except OSError as exc:
            fault = LocalFault(f"our own disk: {os.strerror(exc.errno) if exc.errno else exc}")
            return self._failure(lease, fault, progress)
        return Outcome(verdict=Verdict.SUCCEEDED, response_code=progress.status, file=facts)

    async def close_idle(self, group: str) -> None:
        """Close the connections that are kept for an aggregation; for one that has no more work."""
        await self.transport.close_idle(group)

    def _failure(self, lease: Lease, error: FetchError, progress: _Progress) -> Outcome:
        own = lease.spec.max_retries
        verdict, delay = decide(
            error.treatment,
            attempts=lease.attempts,
            max_retries=self.settings.max_retries if own is None else own,
            backoff_s=self.settings.retry_backoff,
            retry_after_s=error.retry_after_s,
            rng=self.rng,
        )
        return Outcome(
            verdict=verdict,
            error=str(error)[:MAX_ERROR_CHARS],
            error_code=error.code,
            response_code=progress.status,
            retry_after_s=delay,
        )

    async def _download(self, lease: Lease, progress: _Progress, still_ours: Callable[[], bool]) -> FileFacts:
        spec = lease.spec
        patterns = _patterns(spec.mime_type)
        sink = Sink(self.spool, head_bytes=SNIFF_BYTES)
        try:
            with trio.CancelScope() as scope:
                watch = Watch(scope, total_s=spec.download_timeout)
                leased, head = await self._follow(lease, watch, progress)
                try:
                    mime = await self._receive(
                        leased, head, sink, patterns=patterns, watch=watch, progress=progress
                    )
                except BaseException:
                    await leased.connection.aclose()
                    raise
            if scope.cancelled_caught:
                raise TimedOut(watch.reason)
            await self.transport.release(leased)
            sealed = await sink.seal()
            mime = mime or _checked_mime(sink.head, sealed.size, patterns)
            pixels = await _pixels(mime, sealed) if spec.extract_image_size else ""
            await self._store(spec, sealed, mime, still_ours)
        finally:
            await sink.discard()
        return FileFacts(size=sealed.size, sha256=sealed.sha256, mime_type=mime, image_size=pixels)

    async def _follow(self, lease: Lease, watch: Watch, progress: _Progress) -> tuple[Leased, Head]:
        """Ask, and go where redirects lead; answers with a response that is a success."""
        spec = lease.spec
        route = Route(group=lease.group, proxy=lease.proxy, keep=lease.limit)
        target = parse_target(spec.url)
        headers = job_headers(self.base, user_agent=spec.user_agent, headers=spec.request_headers)
        basic = target.basic
        for _ in range(self.settings.max_redirects + 1):
            leased, head = await self.transport.get(
                route, target, wire_headers(target, headers, basic), watch=watch
            )
            progress.status = head.status
            if head.status in range(200, 300) and head.status != _PARTIAL_CONTENT:
                return leased, head
            leased.connection.skip_body()
            await self.transport.release(leased)
            if head.status not in REDIRECTS:
                raise _refused(head)
            following = redirect_target(target, head.get(b"location"))
            if following.origin != target.origin:
                headers, basic = abroad(headers), b""
            target, basic = following, following.basic or basic
        raise RedirectRefused(f"more than {self.settings.max_redirects} redirects")

    async def _receive(
        self,
        leased: Leased,
        head: Head,
        sink: Sink,
        *,
        patterns: MimePatterns | None,
        watch: Watch,
        progress: _Progress,
    ) -> str:
        """Take the body in; answers its type if it had to be known before the end."""
        limit = int(self.settings.max_size)
        if (head.length or 0) > limit:
            raise TooLarge(f"{head.length} bytes declared, more than max_size ({limit} bytes)")
        watch.expect_flow(self.settings.stall_rate, self.settings.stall_timeout)
        intake = _Intake(leased.connection, sink, watch, limit, head.length, patterns, progress.told)
        if await intake.run():
            leased.connection.expect_bulk()
            async with sink.writing_behind() as hand_over:
                more = True
                while more:
                    with watch.excused():
                        await hand_over()
                    more = await intake.run()
        return intake.mime

    async def _store(self, spec: JobSpec, sealed: Sealed, mime: str, still_ours: Callable[[], bool]) -> None:
        if sealed.data is not None:
            failpoint("before-fsync")
        try:
            with trio.move_on_after(self.store_s + sealed.size / STORE_BYTES_PER_S) as bound:
                storage = await self._storage_of(spec)
                await storage.put(
                    spec.storage_key,
                    Body(
                        size=sealed.size,
                        sha256=sealed.sha256,
                        mime_type=mime,
                        data=sealed.data,
                        path=sealed.path,
                        metadata=_metadata(spec.extra) if spec.s3_bucket else {},
                        still_ours=still_ours,
                    ),
                )
        except FetchError:
            raise
        except StorageRefused as exc:
            raise DestinationRefused(_one_line(exc)) from exc
        except StorageError as exc:
            raise LocalFault(_one_line(exc)) from exc
        except Exception as exc:  # a storage plugin is a stranger's code, and may raise anything
            raise LocalFault(f"the storage failed with {type(exc).__name__}") from exc
        if bound.cancelled_caught:
            raise LocalFault("the storage did not take the file in time")
        failpoint("after-rename")

    async def _storage_of(self, spec: JobSpec) -> Storage:
        if not spec.s3_bucket:
            return self.storage
        if self.own_bucket is None:
            raise DestinationRefused("this service cannot store in a bucket of the caller's (s3_bucket)")
        return await self.own_bucket(spec.s3_bucket, spec.s3_region)


def _one_line(exc: StorageError) -> str:
    return " ".join(str(exc).split())[:MAX_PLUGIN_CHARS]


def _refused(head: Head) -> FetchError:
    status = head.status
    if status not in _RETRIED_4XX and status not in range(500, 600):
        return StatusRefused(status)
    wish = head.get(b"retry-after")
    return StatusForNow(
        status, retry_after_s=None if wish is None else parse_retry_after(wish, datetime.now(UTC))
    )


def _patterns(text: str) -> MimePatterns | None:
    if not text:
        return None
    try:
        return MimePatterns.parse(text)
    except ValueError as exc:
        raise WrongMimeType("the job's mime_type is malformed") from exc


def _checked_mime(head: bytes, size: int | None, patterns: MimePatterns | None) -> str:
    mime = sniff_mime(head, size=size)
    mismatch = None if patterns is None else patterns.mismatch(mime)
    if mismatch is not None:
        raise WrongMimeType(mismatch)
    return mime


async def _pixels(mime: str, sealed: Sealed) -> str:
    if sealed.path is not None:
        return await trio.to_thread.run_sync(image_size, mime, sealed.path)
    assert sealed.data is not None
    return image_size(mime, sealed.data)


def _metadata(extra: str) -> Mapping[str, str]:
    """Object metadata: strings and numbers of a JSON object, numbers as they are written; else nothing."""
    try:
        # A constant (NaN, Infinity) is no JSON number; numbers stay text, so that none loses a digit.
        found: Any = json.loads(extra, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}
