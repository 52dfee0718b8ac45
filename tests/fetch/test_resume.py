"""Files whose download was cut: continued by the next attempt, and never with the bytes of another file."""

from __future__ import annotations

import gzip
import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from downloader.fetch.partial import SLACK_S, PartialFiles
from downloader.model import ErrorCode, Lease, Outcome, Verdict
from servers.lab import Lab, lease, open_lab, small
from servers.origin import PNG, Exchange, Handler, Origin, body_of, gate, raw, respond

MIB = 1024 * 1024
BODY = PNG + body_of(3 * MIB)
OTHER = PNG + body_of(3 * MIB, "other")
CUT = 11 * MIB // 4
"""So late that a second buffer has been handed over, which waits until the first has been written."""

ANY_DISK = 1e-6
"""Percent: every disk is fuller."""

ETAG = ("ETag", '"v1"')
DATES = [
    ("Date", "Fri, 27 Nov 2026 12:01:00 GMT"),
    ("Last-Modified", "Fri, 27 Nov 2026 12:00:00 GMT"),
]
Fields = Sequence[tuple[str, str]]


def head(status: int, length: int | None, fields: Fields) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields)]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def cut(body: bytes = BODY, fields: Fields = (ETAG,), *, at: int = CUT) -> Handler:
    """The whole file, but not to its end."""
    return raw(head(200, len(body), fields) + body[:at])


def rest(body: bytes = BODY, fields: Fields = (ETAG,), *, at: int | None = None) -> Handler:
    """What a 206 to a `Range` has, up to `at`."""

    async def handler(exchange: Exchange) -> None:
        start = offset(exchange)
        ranges = ("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        await raw(head(206, len(body) - start, [*fields, ranges]) + body[start:at])(exchange)

    return handler


def offset(exchange: Exchange) -> int:
    return int(exchange.request.headers["range"].removeprefix("bytes=").removesuffix("-"))


def script(origin: Origin, *handlers: Handler, path: str = "/x") -> str:
    """Respond to the path's requests in turn; the last response is repeated."""

    async def handler(exchange: Exchange) -> None:
        await handlers[min(len(origin.asked(path)), len(handlers)) - 1](exchange)

    return origin.on(path, handler)


async def attempt(lab: Lab, job: Lease, number: int = 0) -> Outcome:
    return await lab.fetcher.attempt(
        replace(job, attempts=number, generation=number + 1), still_ours=lambda: True
    )


async def twice(lab: Lab, url: str, *, kept: bool = True, **spec: Any) -> Outcome:
    """The second of two attempts at a job."""
    job = lease(url, **spec)
    first = await attempt(lab, job)
    assert first.verdict is Verdict.RETRY
    assert len(lab.spooled()) == kept
    return await attempt(lab, job, 1)


def ranges(origin: Origin, path: str = "/x") -> list[bool]:
    """For each request, whether the request asked for a part."""
    return ["range" in request.headers for request in origin.asked(path)]


@pytest.mark.parametrize("fields", [[ETAG], DATES, [*DATES, ETAG]], ids=["tag", "date", "both"])
async def test_a_cut_file_is_continued(lab: Lab, origin: Origin, fields: Fields) -> None:
    named = [*fields, ("Content-Disposition", "attachment; filename=a.png")]
    url = script(origin, cut(fields=named), rest(fields=fields))
    expected: dict[str, Any] = {"size": len(BODY), "md5": hashlib.md5(BODY).hexdigest()}
    outcome = await twice(lab, url, mime_type="image/png", extract_image_size=True, **expected)
    assert (outcome.verdict, outcome.error) == (Verdict.SUCCEEDED, "")
    assert outcome.response_code == 200, "it is what the file's own response had"
    assert outcome.file.sha256 == hashlib.sha256(BODY).hexdigest()
    assert (outcome.file.size, outcome.file.image_size) == (len(BODY), "2x3")
    assert outcome.file.filename == "a.png"
    assert outcome.response.etag == dict(fields).get("ETag", "")
    assert lab.stored() == BODY
    [_, second] = origin.asked("/x")
    start = int(second.headers["range"][6:-1])
    assert MIB <= start <= CUT
    assert second.headers["if-range"] == dict(fields)["ETag" if ETAG in fields else "Last-Modified"]
    assert second.headers["accept-encoding"] == "identity"


async def test_a_file_is_continued_after_each_cut(lab: Lab, origin: Origin) -> None:
    body = body_of(8 * MIB)
    url = script(origin, cut(body, at=3 * MIB), rest(body, at=6 * MIB), respond(503), rest(body))
    job = lease(url, max_retries=9)
    for number in range(3):
        assert (await attempt(lab, job, number)).verdict is Verdict.RETRY
        assert len(lab.spooled()) == 1
    assert (await attempt(lab, job, 3)).verdict is Verdict.SUCCEEDED
    assert lab.stored() == body
    starts = [int(request.headers["range"][6:-1]) for request in origin.asked("/x")[1:]]
    assert starts == sorted(starts)
    assert starts[0] < starts[1] == starts[2]


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [("ETag", 'W/"v1"')],
        [("ETag", 'W/"v1"'), *DATES],
        [("ETag", '""')],
        [("ETag", "v1")],
        [ETAG, ("ETag", '"v2"')],
        DATES[:1],
        DATES[1:],
        [("Date", "Fri, 27 Nov 2026 12:00:59 GMT"), DATES[1]],
        [("Date", "Fri, 27 Nov 2026 11:00:00 GMT"), DATES[1]],
        [DATES[0], ("Last-Modified", "yesterday")],
        [ETAG, ("Accept-Ranges", "none")],
        [ETAG, ("Content-Encoding", "br")],
    ],
    ids=str,
)
async def test_a_file_without_a_strong_validator_starts_over(
    lab: Lab, origin: Origin, fields: Fields
) -> None:
    url = script(origin, cut(fields=fields), respond(200, OTHER))
    assert (await twice(lab, url, kept=False)).verdict is Verdict.SUCCEEDED
    assert lab.stored() == OTHER
    assert ranges(origin) == [False, False]


async def test_a_file_of_unknown_length_starts_over(lab: Lab, origin: Origin) -> None:
    start = head(200, None, [ETAG, ("Transfer-Encoding", "chunked")])
    url = script(origin, raw(start + b"%x\r\n" % len(BODY) + BODY[:CUT]), respond(200, BODY))
    assert (await twice(lab, url, kept=False)).verdict is Verdict.SUCCEEDED
    assert lab.stored() == BODY


async def test_decoded_gzip_starts_over(lab: Lab, origin: Origin) -> None:
    packed = gzip.compress(BODY, 0)
    fields = [ETAG, ("Content-Encoding", "gzip")]
    url = script(origin, cut(packed, fields), respond(200, packed, fields))
    assert (await twice(lab, url, kept=False)).verdict is Verdict.SUCCEEDED
    assert lab.stored() == BODY


async def test_a_small_file_starts_over(lab: Lab, origin: Origin) -> None:
    url = script(origin, cut(at=1000), respond(200, BODY))
    assert (await twice(lab, url, kept=False)).verdict is Verdict.SUCCEEDED
    assert ranges(origin) == [False, False]


def answer_206(content_range: str | None, *fields: tuple[str, str], more: int = 0) -> Handler:
    """A 206 that is not what was asked for; `{0}` is the asked offset, `{1}` the last, `{2}` the total."""

    async def handler(exchange: Exchange) -> None:
        start, total = offset(exchange), len(OTHER)
        found = list(fields)
        if content_range is not None:
            found.append(("Content-Range", content_range.format(start, total - 1, total)))
        await raw(head(206, total - start + more, found) + OTHER[start:] + b"x" * more)(exchange)

    return handler


RIGHT = "bytes {0}-{1}/{2}"


@pytest.mark.parametrize(
    "answer",
    [
        answer_206(RIGHT, ("ETag", '"v2"')),
        answer_206(RIGHT, ("ETag", 'W/"v1"')),
        answer_206(RIGHT, ETAG, ("ETag", '"v2"')),
        answer_206(RIGHT),
        answer_206(None, ETAG),
        answer_206("bytes 0-{1}/{2}", ETAG),
        answer_206("bytes 1{0}-{1}/{2}", ETAG),
        answer_206("bytes {0}-{0}/{2}", ETAG),
        answer_206("bytes {0}-{1}/1{2}", ETAG),
        answer_206("bytes {0}-{1}/*", ETAG),
        answer_206("bytes */{2}", ETAG),
        answer_206("octets {0}-{1}/{2}", ETAG),
        answer_206(RIGHT, ETAG, ("Content-Range", "bytes 0-1/2")),
        answer_206(RIGHT, ETAG, more=1),
        answer_206(RIGHT, ETAG, more=-1),
        answer_206(RIGHT, ETAG, ("Content-Encoding", "gzip")),
        answer_206(RIGHT, ETAG, ("Content-Type", "multipart/byteranges; boundary=x")),
        answer_206(None, ETAG, ("Content-Type", "Multipart/Byteranges; boundary=x")),
        respond(416, b"", [("Content-Range", "bytes */7")]),
    ],
    ids=range(19),
)
async def test_any_other_answer_than_the_rest_starts_over(lab: Lab, origin: Origin, answer: Handler) -> None:
    url = script(origin, cut(), answer, respond(200, OTHER[:-7]))
    outcome = await twice(lab, url)
    assert (outcome.verdict, outcome.file.size) == (Verdict.SUCCEEDED, len(OTHER) - 7)
    assert lab.stored() == OTHER[:-7]
    assert ranges(origin) == [False, True, False]


async def test_a_206_in_chunks_starts_over(lab: Lab, origin: Origin) -> None:
    async def chunked(exchange: Exchange) -> None:
        start = offset(exchange)
        fields = [ETAG, ("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")]
        chunk = b"3\r\nabc\r\n0\r\n\r\n"
        await raw(head(206, None, [*fields, ("Transfer-Encoding", "chunked")]) + chunk)(exchange)

    url = script(origin, cut(), chunked, respond(200, BODY))
    assert (await twice(lab, url)).verdict is Verdict.SUCCEEDED
    assert lab.stored() == BODY


@pytest.mark.parametrize("size", [0, 1000, len(OTHER)])
async def test_a_200_replaces_what_was_received(lab: Lab, origin: Origin, size: int) -> None:
    url = script(origin, cut(), respond(200, OTHER[:size], [("ETag", '"v2"')]))
    outcome = await twice(lab, url)
    assert (outcome.verdict, outcome.file.size) == (Verdict.SUCCEEDED, size)
    assert outcome.file.sha256 == hashlib.sha256(OTHER[:size]).hexdigest()
    assert lab.stored() == OTHER[:size]
    assert ranges(origin) == [False, True]


async def test_a_206_that_is_cut_after_a_200_is_cut_of_the_newer_file(lab: Lab, origin: Origin) -> None:
    newer = [("ETag", '"v2"')]
    url = script(origin, cut(), cut(OTHER, newer), rest(OTHER, newer))
    job = lease(url)
    for number in range(2):
        assert (await attempt(lab, job, number)).verdict is Verdict.RETRY
    assert (await attempt(lab, job, 2)).verdict is Verdict.SUCCEEDED
    assert lab.stored() == OTHER
    assert origin.asked("/x")[2].headers["if-range"] == '"v2"'


async def test_an_unrequested_206_is_final(lab: Lab, origin: Origin) -> None:
    fields = [ETAG, ("Content-Range", f"bytes 0-{len(BODY) - 1}/{len(BODY)}")]
    outcome = await lab.fetch(origin.on("/x", respond(206, BODY, fields)))
    assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.HTTP_STATUS)


@pytest.mark.parametrize(
    ("answer", "code"),
    [(respond(404), ErrorCode.HTTP_STATUS), (raw(b"HTTP/1.1 304 X\r\n\r\n"), ErrorCode.NOT_MODIFIED)],
)
async def test_the_part_goes_with_the_job(lab: Lab, origin: Origin, answer: Handler, code: str) -> None:
    headers = {"If-None-Match": '"v1"', "If-Range": '"mine"'}
    outcome = await twice(lab, script(origin, cut(), answer), request_headers=headers)
    assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, code)
    assert origin.asked("/x")[1].headers["if-range"] == '"v1"'
    assert lab.spooled() == []


async def test_the_last_attempt_leaves_no_part(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(script(origin, cut()), attempts=2)
    assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.TRUNCATED)
    assert lab.spooled() == []


@pytest.mark.parametrize("last", [MIB, len(BODY)], ids=["lost", "whole"])
async def test_a_continued_file_has_the_digest_of_its_first_response(
    lab: Lab, origin: Origin, last: int
) -> None:
    value = b64encode(hashlib.sha512(BODY).digest()).decode()
    fields = [ETAG, ("Repr-Digest", f"sha-512=:{value}:")]
    other = BODY[:-1] + b"?"
    url = script(origin, cut(fields=fields), rest(BODY if last > MIB else other), respond(200, BODY))
    outcome = await twice(lab, url)
    if last > MIB:
        assert outcome.verdict is Verdict.SUCCEEDED
        return
    assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.DIGEST)
    assert lab.spooled() == [], "the next attempt starts from the beginning"


async def test_a_redirect_to_another_url_starts_over(lab: Lab, origin: Origin) -> None:
    origin.on("/a", cut())
    origin.on("/b", respond(200, OTHER))
    url = script(
        origin,
        respond(302, headers=[("Location", "/a")]),
        respond(302, headers=[("Location", "/b")]),
        path="/to",
    )
    assert (await twice(lab, url)).verdict is Verdict.SUCCEEDED
    assert lab.stored() == OTHER
    assert ranges(origin, "/to") == [False, False]
    assert ranges(origin, "/b") == [False]


async def test_a_redirect_to_the_same_url_is_continued(lab: Lab, origin: Origin) -> None:
    script(origin, cut(), rest(), path="/a")
    url = origin.on("/to", respond(302, headers=[("Location", "/a")]))
    assert (await twice(lab, url)).verdict is Verdict.SUCCEEDED
    assert lab.stored() == BODY
    assert ranges(origin, "/a") == [False, True]


@pytest.mark.parametrize("size", [None, MIB // 2, 4 * MIB])
async def test_a_part_that_is_damaged_on_the_disk(lab: Lab, origin: Origin, size: int | None) -> None:
    job = lease(script(origin, cut(), respond(200, BODY)))
    await attempt(lab, job)
    [path] = lab.spooled()
    if size is None:
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.truncate(min(size, path.stat().st_size - 1))
    assert (await attempt(lab, job, 1)).verdict is Verdict.SUCCEEDED
    assert lab.stored() == BODY
    assert ranges(origin) == [False, False]


async def test_bytes_behind_the_part_are_dropped(lab: Lab, origin: Origin) -> None:
    job = lease(script(origin, cut(), rest()))
    await attempt(lab, job)
    [path] = lab.spooled()
    with path.open("ab") as file:
        file.write(BODY)  # more than is still to come
    assert (await attempt(lab, job, 1)).verdict is Verdict.SUCCEEDED
    assert lab.stored() == BODY


async def test_no_part_is_kept_on_a_full_disk(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(tmp_path, disk_low=ANY_DISK) as lab:
        assert (await lab.fetch(script(origin, cut()))).verdict is Verdict.RETRY
        assert lab.spooled() == []


@pytest.mark.slow
async def test_a_file_that_stalled_is_continued(tmp_path: Path, origin: Origin) -> None:
    start = head(200, len(BODY), [ETAG]) + BODY[:CUT]
    async with open_lab(tmp_path, limits=small(stall_s=1.0)) as lab:
        outcome = await twice(lab, script(origin, raw(start, then="hang"), rest()))
        assert outcome.verdict is Verdict.SUCCEEDED
        assert lab.stored() == BODY


async def test_a_cancelled_attempt_leaves_no_part(lab: Lab, origin: Origin) -> None:
    job = lease(origin.on("/x", raw(head(200, len(BODY), [ETAG]) + BODY[:CUT], then="hang")))
    await _cancelled(lab, job)
    assert lab.spooled() == []


async def _cancelled(lab: Lab, job: Lease) -> None:
    """Cancel an attempt that has spooled something."""
    with trio.CancelScope() as scope:

        def seen(received: int, _: int | None) -> None:
            if received >= 5 * MIB // 2:
                scope.cancel()

        await lab.fetcher.attempt(job, still_ours=lambda: True, on_progress=seen)
    assert scope.cancelled_caught


# What is kept, and for how long.


@pytest.fixture
async def kept(lab: Lab, origin: Origin) -> Lease:
    """A job with a part."""
    job = lease(script(origin, cut(), rest()))
    await attempt(lab, job)
    assert len(lab.spooled()) == 1
    return job


async def _swept(parts: PartialFiles, lab: Lab, left: int) -> None:
    """Sweep until so many files are left."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.sweep, 0.0)
        with trio.fail_after(20):
            while len(lab.spooled()) > left:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_an_expired_part_is_deleted(lab: Lab, origin: Origin, kept: Lease) -> None:
    other = lease(script(origin, cut(), path="/y"))
    await attempt(lab, other)
    parts = lab.fetcher.partials
    await parts.expect(other.id, -SLACK_S)
    await _swept(parts, lab, left=1)
    assert parts.take(other.id) is None
    assert (await attempt(lab, kept, 1)).verdict is Verdict.SUCCEEDED
    assert ranges(origin) == [False, True]


async def test_parts_go_when_the_disk_fills_up(lab: Lab, kept: Lease) -> None:
    part = lab.fetcher.partials.take(kept.id)
    assert part is not None
    full = PartialFiles(lab.fetcher.tools.spool, disk_low=ANY_DISK)
    full.add(kept.id, part)
    await _swept(full, lab, left=0)
    assert full.take(kept.id) is None


async def test_two_runs_of_one_job_do_not_share_a_part(lab: Lab, origin: Origin, kept: Lease) -> None:
    release = trio.Event()
    origin.on("/x", gate(release, respond(200, BODY)))
    outcomes: list[Outcome] = []

    async def run() -> None:
        outcomes.append(await attempt(lab, kept, 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(run)
        await origin.seen("/x", 3)
        release.set()
    assert sorted(ranges(origin)) == [False, False, True]
    assert [outcome.file.size for outcome in outcomes] == [len(BODY)] * 2
