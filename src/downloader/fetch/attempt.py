"""One attempt at a download, from the first connection to the stored file."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from downloader.config import ProcessorSettings
from downloader.content import MAX_PATTERN_CHARS, SNIFF_BYTES, MimePatterns, image_size, sniff_mime
from downloader.errors import StorageError, StorageRefused
from downloader.fetch.answer import REDIRECTS, Answer, continuation, failure, redirect, success
from downloader.fetch.errors import FetchError, Treatment, explain, own_fault
from downloader.fetch.expected import Expected
from downloader.fetch.headers import HeaderMap, job_headers, may_keep, without_secrets
from downloader.fetch.lasting import LastingParts
from downloader.fetch.parts import Part, Parts, Source
from downloader.fetch.retry import cooldown, decide
from downloader.fetch.robots import Robots
from downloader.fetch.sink import CompleteBody, Sink
from downloader.fetch.spool import Spool
from downloader.fetch.watch import Watch
from downloader.model import ErrorCode, FileFacts, JobSpec, Lease, Outcome, Verdict, now_ms
from downloader.net import (
    NetError,
    NetLimits,
    ResponseBody,
    Route,
    Transport,
    Url,
    UrlError,
    Use,
    build_request,
)
from downloader.observe import failpoint
from downloader.storage import Body


class Destination(Protocol):
    """The part of a `Storage` that an attempt needs."""

    async def put(self, key: str, body: Body) -> None:
        """See `Storage.put`. An `OSError` counts as a failure of our own disk."""


BucketOpener = Callable[[str, str], Awaitable[Destination]]
"""`(bucket, region)` that a job names -> a storage that writes to that bucket. The caller does not close it.

Raises `StorageError` or `StorageRefused`.
"""

MAX_ERROR_CHARS = MAX_PATTERN_CHARS + 200
"""Longest `error` of an outcome. The sentence on an unexpected MIME type fits in."""

STORE_BYTES_PER_S = 64 * 1024
"""Storing may take one more second for each so many bytes."""

CUT_OFF_S = 0.5
"""How long after a job's deadline its attempt is cut off. The deadline has then passed, so the job fails."""

OnProgress = Callable[[int, int | None], None]
"""`(bytes received, bytes declared)`; called for each piece of the body."""

_OK = 200
_PARTIAL_CONTENT = 206
_NO_PART = frozenset({_PARTIAL_CONTENT, 416})
"""Statuses of a response that does not continue a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Bounds of an attempt; constants of the service, which tests make small."""

    net: NetLimits = field(default_factory=NetLimits)
    stall_s: float = 30.0
    """Seconds below `stall_bytes_per_s` after which an attempt is given up."""
    stall_bytes_per_s: int = 1024
    redirects: int = 10
    store_s: float = 120.0
    """For storing a file of any size; longer than the storages' own time-outs, whose errors have a reason."""


@dataclass(slots=True)
class _Progress:
    """Facts about an attempt, for its outcome."""

    status: int = 0
    report: OnProgress = lambda *_: None
    part: Part | None = None
    """The part of an earlier attempt, to be continued; `None` once that is known to be impossible."""
    answer: Answer | None = None
    """The answer whose body is being received."""

    def source(self) -> Source | None:
        """The source of the bytes in the sink, if they can be continued."""
        if self.answer is not None:
            return self.answer.source()
        return None if self.part is None else self.part.source


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Carries out attempts; any number at once. Owns nothing: `open_fetcher` does."""

    settings: ProcessorSettings
    base: HeaderMap
    """The configured request headers."""
    transport: Transport
    parts: Parts
    spool: Spool
    storage: Destination
    own_bucket: BucketOpener | None
    robots: Robots | None = None
    """`None`: robots.txt is not asked."""
    rng: random.Random
    limits: FetchLimits

    async def attempt(
        self, lease: Lease, *, still_ours: Callable[[], bool], on_progress: OnProgress = lambda *_: None
    ) -> Outcome:
        """Download the job's file and store it; the outcome has the verdict for the job.

        All failures of a peer, the disk or a storage become outcomes. The received part of a file is kept in
        `parts`, if the job has another attempt and its origin may continue the file. A cancel leaves no
        spool file, connection or task behind; whether the file was stored by then is unknown.

        Args:
            lease: of a download.
            still_ours: whether the lease is valid. Called in any thread right before the file is published.
            on_progress: see `OnProgress`; must not block.
        """
        progress = _Progress(report=on_progress)
        try:
            facts = await self._download(lease, progress, still_ours)
        except FetchError as exc:
            error = exc
        except OSError as exc:
            error = own_fault(f"our own disk: {os.strerror(exc.errno) if exc.errno else exc}")
        else:
            return Outcome(verdict=Verdict.SUCCEEDED, response_code=progress.status, file=facts)
        outcome = self._failure(lease, error, progress)
        await self.parts.expect(lease.id, outcome.retry_after_s)
        return outcome

    def _failure(self, lease: Lease, error: FetchError, progress: _Progress) -> Outcome:
        own = lease.spec.max_retries
        cools = error.treatment is Treatment.COOL_DOWN
        pause = cooldown(error.retry_after_s, self.rng) if cools else None
        verdict, delay = decide(
            error.treatment,
            attempts=lease.attempts,
            throttled=lease.throttled,
            max_retries=self.settings.max_retries if own is None else own,
            backoff_s=self.settings.retry_backoff,
            retry_after_s=pause.seconds if pause else error.retry_after_s,
            rng=self.rng,
        )
        return Outcome(
            verdict=verdict,
            error=str(error)[:MAX_ERROR_CHARS],
            error_code=error.code,
            response_code=progress.status,
            retry_after_s=delay,
            cooldown=pause,
        )

    async def _download(self, lease: Lease, progress: _Progress, still_ours: Callable[[], bool]) -> FileFacts:
        spec = lease.spec
        patterns = _patterns(spec.mime_type)
        expected = Expected(max_size=int(self.settings.max_size), size=spec.size, sha256=spec.sha256)
        part = progress.part = self.parts.take(lease.id)
        name = self.parts.name_of(spec.url)
        sink = Sink(self.spool, head_bytes=SNIFF_BYTES, name=name)
        keep = self.parts.lasting
        try:
            with trio.CancelScope() as scope:
                watch = Watch(scope, total_s=self._total_s(spec))
                if part is not None and not await part.load_into(sink):
                    progress.part = None
                answer = progress.answer = await self._follow(lease, watch, progress)
                if part is not None and answer.part is None:
                    await sink.discard()
                    sink = Sink(self.spool, head_bytes=SNIFF_BYTES, name=name)
                try:
                    if isinstance(self.parts, LastingParts):
                        await self.parts.note(spec, answer)
                    mime = await self._receive(
                        answer, sink, expected=expected, patterns=patterns, watch=watch, progress=progress
                    )
                finally:
                    await answer.body.aclose()
                progress.answer = progress.part = None
                watch.expect("", math.inf)
                body = await sink.complete()
                expected.check_complete(body.size, digest=sink.digest, declared=answer.digests)
                mime = mime or _checked_mime(sink.head, body.size, patterns)
                pixels = await _pixels(mime, body) if spec.extract_image_size else ""
                await self._store(spec, body, mime, still_ours)
                return FileFacts(
                    size=body.size,
                    sha256=body.sha256,
                    mime_type=mime,
                    image_size=pixels,
                    filename=answer.filename,
                )
            keep = True
        except NetError as exc:
            error = explain(exc)
            keep = self._may_continue(error, progress)
            raise error from exc
        except FetchError as exc:
            keep = self._may_continue(exc, progress)
            raise
        finally:
            if keep:
                await self.parts.keep(lease.id, sink, progress.source())
            await sink.discard()
        raise FetchError(watch.reason, ErrorCode.TIMEOUT, Treatment.RETRY)

    def _may_continue(self, error: FetchError, progress: _Progress) -> bool:
        """Whether another attempt, or another run with lasting parts, may continue the file."""
        return error.treatment is not Treatment.FINAL or (self.parts.lasting and progress.answer is None)

    def _total_s(self, spec: JobSpec) -> float:
        wanted = spec.download_timeout or self.settings.download_timeout
        left_s = max(0.0, spec.left_s(now_ms())) + CUT_OFF_S
        return min(wanted, self.settings.max_download_timeout, left_s)

    async def _follow(self, lease: Lease, watch: Watch, progress: _Progress) -> Answer:
        """Send the request and follow redirects; returns a response that is a success."""
        spec = lease.spec
        url = _parse(spec.url, "download", "the job's URL")
        proxy = _parse(lease.proxy, "proxy", "the URL of the aggregation's proxy") if lease.proxy else None
        headers = job_headers(self.base, user_agent=spec.user_agent, headers=spec.request_headers)
        for _ in range(self.limits.redirects + 1):
            if self.robots is not None:
                watch.expect("", math.inf)  # the bound of the response before is over
                await self.robots.check(url, aggregation=lease.group, proxy=proxy)
            route = Route(
                url=url, aggregation=lease.group, proxy=proxy, keep=lease.limit, expect=watch.expect
            )
            part = progress.part
            if part is not None and part.source.url != url.text:
                part = None
            request = build_request("GET", route, [*(headers | part.condition if part else headers).values()])
            response = await self.transport.handle_async_request(request)
            status = progress.status = response.status_code
            fields, body = response.headers.raw, response.stream
            assert isinstance(body, ResponseBody)
            if status in range(200, 300) and status != _PARTIAL_CONTENT:
                return success(status, url, body, fields, headers)
            if part is not None and status == _PARTIAL_CONTENT and part.is_continued_by(fields, body.length):
                progress.status = _OK
                return continuation(part, body)
            await body.aclose()
            if part is not None and status in _NO_PART:
                progress.part = None  # from the beginning
                continue
            if status not in REDIRECTS:
                raise failure(status, fields, headers)
            following = redirect(url, fields)
            if not may_keep(url.origin, following.origin):
                headers = without_secrets(headers)
            elif url.basic and not following.basic:
                headers.setdefault(b"authorization", (b"Authorization", url.basic))
            url = following
        raise FetchError(f"more than {self.limits.redirects} redirects", ErrorCode.REDIRECTS)

    async def _receive(
        self,
        answer: Answer,
        sink: Sink,
        *,
        expected: Expected,
        patterns: MimePatterns | None,
        watch: Watch,
        progress: _Progress,
    ) -> str:
        """Read the body into the sink; returns its type if that had to be known before the end."""
        if answer.length is not None:
            expected.check_declared(answer.length)
        for digest in answer.digests:
            sink.hash_with(digest.algorithm)
        watch.expect_flow(self.limits.stall_bytes_per_s, self.limits.stall_s, received=sink.size)
        mime = ""

        async def fill() -> bool:
            """Read until the sink is full (true) or the body ends (false)."""
            nonlocal mime
            while (chunk := await answer.read()) is not None:
                if not sink.size:
                    failpoint("first-byte")
                sink.add(chunk)
                watch.flow(sink.size)
                progress.report(sink.size, answer.length)
                expected.check_count(sink.size)
                if patterns is not None and not mime and sink.size >= SNIFF_BYTES:
                    mime = _checked_mime(sink.head, answer.length, patterns)
                if sink.full:
                    return True
            return False

        if await fill():
            async with sink.writing_behind() as hand_over:
                more = True
                while more:
                    with watch.excused():
                        await hand_over()
                    more = await fill()
        return mime

    async def _store(
        self, spec: JobSpec, body: CompleteBody, mime: str, still_ours: Callable[[], bool]
    ) -> None:
        if body.data is not None:
            failpoint("before-fsync")
        try:
            with trio.move_on_after(self.limits.store_s + body.size / STORE_BYTES_PER_S) as bound:
                storage = await self._storage_of(spec)
                await storage.put(
                    spec.storage_key,
                    Body(
                        size=body.size,
                        sha256=body.sha256,
                        mime_type=mime,
                        data=body.data,
                        path=body.path,
                        metadata=_metadata(spec.extra) if spec.s3_bucket else {},
                        still_ours=still_ours,
                    ),
                )
        except StorageRefused as exc:
            raise FetchError(str(exc), ErrorCode.STORAGE) from exc
        except StorageError as exc:
            raise own_fault(str(exc)) from exc
        if bound.cancelled_caught:
            raise own_fault("the storage did not take the file in time")
        failpoint("after-rename")

    async def _storage_of(self, spec: JobSpec) -> Destination:
        if not spec.s3_bucket:
            return self.storage
        if self.own_bucket is None:
            raise FetchError("this service cannot store in buckets of jobs (s3_bucket)", ErrorCode.STORAGE)
        return await self.own_bucket(spec.s3_bucket, spec.s3_region)


def _parse(text: str, use: Use, what: str) -> Url:
    try:
        return Url.parse(text, use)
    except UrlError as exc:  # the API refuses such jobs, but an older version may have accepted this one
        raise FetchError(f"{what} {exc.detail}", ErrorCode.PROTOCOL) from exc


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
    if body.path is not None:
        return await trio.to_thread.run_sync(image_size, mime, body.path)
    assert body.data is not None
    return image_size(mime, body.data)


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
