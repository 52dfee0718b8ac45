"""Partial files that outlive a fetcher: what the next fetcher continues or deletes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from downloader.model import Lease, Outcome, Verdict
from servers.lab import Lab, lease, open_lab
from servers.origin import PNG, Exchange, Handler, Origin, body_of, raw, respond

MIB = 1024 * 1024
BODY = PNG + body_of(4 * MIB)
TAG = ("ETag", '"v1"')
ENOUGH = 3 * MIB
"""So much that a first buffer has been written."""


def begun(fields: Sequence[tuple[str, str]] = (TAG,)) -> Handler:
    """The first bytes of the file, and then nothing."""
    lines = [f"{name}: {value}" for name, value in [*fields, ("Content-Length", str(len(BODY)))]]
    head = "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode()
    return raw(head + BODY[:ENOUGH], then="hang")


async def rest(exchange: Exchange) -> None:
    """What follows the part; all of it without a `Range`."""
    asked = exchange.request.headers.get("range", "")
    if not asked:
        return await exchange.respond(200, BODY, [TAG])
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    fields = [TAG, ("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")]
    return await exchange.respond(206, BODY[start:], fields)


async def interrupt(lab: Lab, job: Lease) -> None:
    """Begin a download, and cancel the download when a buffer has been written."""
    with trio.CancelScope() as scope:

        def seen(received: int, _: int | None) -> None:
            if received >= ENOUGH:
                scope.cancel()

        await lab.fetcher.attempt(job, still_ours=lambda: True, on_progress=seen)
    assert scope.cancelled_caught


async def resume(lab: Lab, job: Lease) -> Outcome:
    """Download the same URL, as the next run does."""
    return await lab.fetcher.attempt(job, still_ours=lambda: True)


@pytest.fixture
async def job(tmp_path: Path, origin: Origin) -> Lease:
    """Of an interrupted download."""
    begun_job = lease(origin.on("/x", begun()))
    async with open_lab(tmp_path, resumable=True) as lab:
        await interrupt(lab, begun_job)
    assert sorted(path.suffix for path in lab.spooled()) == ["", ".json"]
    origin.on("/x", rest)
    return begun_job


async def test_a_cancelled_download_is_continued(tmp_path: Path, origin: Origin, job: Lease) -> None:
    async with open_lab(tmp_path, resumable=True) as lab:
        outcome = await resume(lab, job)
        assert (outcome.verdict, outcome.error) == (Verdict.SUCCEEDED, "")
        assert outcome.file.sha256 == hashlib.sha256(BODY).hexdigest()
        assert lab.stored() == BODY
    assert lab.spooled() == []
    [_, second] = origin.asked("/x")
    assert int(second.headers["range"][6:-1]) >= MIB
    assert second.headers["if-range"] == '"v1"'


async def test_a_part_that_is_interrupted_at_once_stays(tmp_path: Path, origin: Origin, job: Lease) -> None:
    async with open_lab(tmp_path, resumable=True) as lab:
        before = sorted(lab.spooled())
        with trio.CancelScope() as scope:
            scope.cancel()
            await resume(lab, job)
        assert sorted(lab.spooled()) == before
        assert (await resume(lab, job)).verdict is Verdict.SUCCEEDED
    assert ["range" in request.headers for request in origin.asked("/x")] == [False, True]


@pytest.mark.parametrize("status", [401, 404, 503])
async def test_a_refusal_deletes_no_part(tmp_path: Path, origin: Origin, job: Lease, status: int) -> None:
    origin.on("/x", respond(status))
    async with open_lab(tmp_path, resumable=True, max_retries=0) as lab:
        outcome = await resume(lab, job)
        assert (outcome.verdict, outcome.response_code) == (Verdict.FAILED, status)
    origin.on("/x", rest)
    async with open_lab(tmp_path, resumable=True) as lab:
        assert (await resume(lab, job)).verdict is Verdict.SUCCEEDED
        assert lab.stored() == BODY
    assert ["range" in request.headers for request in origin.asked("/x")] == [False, True, True]


async def test_all_bytes_but_not_the_end_is_a_part_too(tmp_path: Path, origin: Origin, job: Lease) -> None:
    [part] = [path for path in (tmp_path / "spool").iterdir() if not path.suffix]
    part.write_bytes(BODY)
    async with open_lab(tmp_path, resumable=True) as lab:
        assert (await resume(lab, job)).verdict is Verdict.SUCCEEDED
        assert lab.stored() == BODY
    assert origin.asked("/x")[1].headers["range"] == f"bytes={len(BODY) - 1}-"


async def test_a_part_is_replaced_with_its_note_by_another_version(
    tmp_path: Path, origin: Origin, job: Lease
) -> None:
    origin.on("/x", begun([("ETag", '"v2"')]))
    async with open_lab(tmp_path, resumable=True) as lab:
        await interrupt(lab, job)
    [note] = (tmp_path / "spool").glob("*.json")
    assert r'"\"v2\""' in note.read_text()


@pytest.mark.parametrize("fields", [[], [("ETag", 'W/"v1"')], [TAG, ("Accept-Ranges", "none")]])
async def test_a_part_that_cannot_be_continued_is_not_kept(
    tmp_path: Path, origin: Origin, fields: Sequence[tuple[str, str]]
) -> None:
    async with open_lab(tmp_path, resumable=True) as lab:
        await interrupt(lab, lease(origin.on("/x", begun(fields))))
        assert lab.spooled() == []


async def test_a_file_that_is_refused_for_its_content_is_not_kept(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(tmp_path, resumable=True) as lab:
        job = lease(origin.on("/x", respond(200, BODY, [TAG])), mime_type="image/jpeg")
        assert (await resume(lab, job)).error_code == "mime_type"
    assert lab.spooled() == []


@pytest.mark.parametrize(
    "spoiled",
    [
        "note cut off",
        "no note",
        "no part",
        "a folder as the part",
        "a folder as the note",
        "a pipe as the note",
        "another folder",
        {"total": -5},
        {"validator": ["etag", "x\r\nCookie: stolen"]},
        {"validator": [1, 2]},
        {"digests": [["Repr-Digest", "shake_128", "00"]]},
        {"url": 7},
    ],
)
async def test_a_part_without_a_note_is_deleted(
    tmp_path: Path, origin: Origin, job: Lease, spoiled: str | dict[str, object]
) -> None:
    note, part = sorted((tmp_path / "spool").iterdir(), key=lambda path: not path.suffix)
    match spoiled:
        case "note cut off":
            note.write_text(note.read_text()[:-9])
        case "no note":
            note.unlink()
        case "no part":
            part.unlink()
        case "a folder as the part":
            part.unlink()
            (part / "folder").mkdir(parents=True)
        case "a folder as the note":
            note.unlink()
            note.mkdir()
        case "a pipe as the note":
            note.unlink()
            os.mkfifo(note)
        case "another folder":
            note.unlink()
            (part.parent / "folder").mkdir()
        case dict():
            note.write_text(json.dumps(json.loads(note.read_text()) | spoiled))
    async with open_lab(tmp_path, resumable=True) as lab:
        assert lab.spooled() == []
        assert (await resume(lab, job)).verdict is Verdict.SUCCEEDED
        assert lab.stored() == BODY
    assert "range" not in origin.asked("/x")[1].headers
