"""What a response says about its file, conditional jobs, and a job's own bounds, on real sockets."""

from __future__ import annotations

from typing import Any

import pytest

from downloader.model import ErrorCode, FileFacts, ResponseMetadata, Verdict
from servers.lab import Lab
from servers.origin import PNG, Origin, raw, respond

DATE = "Fri, 27 Nov 2026 21:00:00 GMT"
PIXELS = 2 * 3
"""Of `PNG`."""


async def test_the_metadata_of_a_response(lab: Lab, origin: Origin) -> None:
    fields = [("ETag", '"33a"'), ("Last-Modified", DATE), ("Content-Type", "image/x; a=b")]
    outcome = await lab.fetch(origin.on("/x", respond(200, PNG, fields)))
    assert outcome.response == ResponseMetadata(etag='"33a"', last_modified=DATE, content_type="image/x; a=b")
    assert (await lab.fetch(origin.on("/y", respond(200, PNG)))).response == ResponseMetadata()


@pytest.mark.parametrize("value", ["x" * 257, "\x80", "\u202e"], ids=["long", "control", "invisible"])
async def test_a_value_that_is_not_fit_to_be_kept(lab: Lab, origin: Origin, value: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nETag: {value}\r\nContent-Length: 0\r\n\r\n".encode()
    outcome = await lab.fetch(origin.on("/x", raw(head, "keep")))
    assert (outcome.verdict, outcome.response) == (Verdict.SUCCEEDED, ResponseMetadata())


async def test_the_final_url_has_neither_user_nor_fragment(lab: Lab, origin: Origin) -> None:
    origin.on("/end", respond(200, PNG))
    target = origin.url("/end?a b=c#d", userinfo="user:secret@")
    outcome = await lab.fetch(origin.on("/x", respond(302, b"", [("Location", target)])))
    assert outcome.response.final_url == origin.url("/end?a%20b=c")


async def test_a_file_that_is_not_modified(lab: Lab, origin: Origin) -> None:
    head = f'HTTP/1.1 304 Not Modified\r\nETag: "33a"\r\nLast-Modified: {DATE}\r\n\r\n'
    url = origin.on("/x", raw(head.encode(), "keep"))
    outcome = await lab.fetch(url, if_none_match='"33a", W/"b"', if_modified_since=DATE, sha256="ab" * 32)
    assert (outcome.verdict, outcome.error, outcome.response_code) == (Verdict.SUCCEEDED, "", 304)
    assert (outcome.file, outcome.has_file) == (FileFacts(), False)
    assert outcome.response == ResponseMetadata(etag='"33a"', last_modified=DATE, not_modified=True)
    assert lab.files() == []
    [request] = origin.asked("/x")
    assert request.headers["if-none-match"] == '"33a", W/"b"'
    assert request.headers["if-modified-since"] == DATE


async def test_a_modified_file_is_stored(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.on("/x", respond(200, PNG)), if_none_match='"33a"')
    assert outcome.has_file
    assert lab.stored() == PNG


async def test_a_condition_of_the_job_wins_over_its_header(lab: Lab, origin: Origin) -> None:
    url = origin.on("/x", respond(200, PNG))
    await lab.fetch(url, if_none_match='"new"', request_headers={"if-none-match": '"old"'})
    [request] = origin.asked("/x")
    assert request.raw.lower().count(b"if-none-match") == 1
    assert request.headers["if-none-match"] == '"new"'


async def test_a_condition_follows_a_redirect_to_another_origin(lab: Lab, origin: Origin) -> None:
    target = origin.url("/end", host="localhost")
    url = origin.on("/x", respond(302, b"", [("Location", target)]))
    origin.on("/end", raw(b"HTTP/1.1 304 Not Modified\r\n\r\n", "keep"))
    outcome = await lab.fetch(url, if_none_match='"33a"')
    assert outcome.response == ResponseMetadata(final_url=target, not_modified=True)


REFUSED = [
    ({"max_size": len(PNG) - 1}, ErrorCode.TOO_LARGE),
    ({"min_size": len(PNG) + 1}, ErrorCode.TOO_SMALL),
    ({"min_width": 3}, ErrorCode.IMAGE_SIZE),
    ({"min_height": 4}, ErrorCode.IMAGE_SIZE),
    ({"max_pixels": PIXELS - 1}, ErrorCode.IMAGE_SIZE),
]


@pytest.mark.parametrize("length", [b"Content-Length: %d" % len(PNG), b"X: y"], ids=["declared", "counted"])
@pytest.mark.parametrize(("bounds", "code"), REFUSED)
async def test_a_file_outside_of_the_bounds_is_refused_for_good(
    lab: Lab, origin: Origin, bounds: dict[str, Any], code: ErrorCode, length: bytes
) -> None:
    url = origin.on("/x", raw(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (length, PNG)))
    outcome = await lab.fetch(url, **bounds)
    assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, code)
    assert lab.files() == []


async def test_another_file_under_the_key_fails_the_job_for_good(lab: Lab, origin: Origin) -> None:
    for path, content in (("/x", PNG), ("/y", b"other")):
        origin.on(path, respond(200, content))
    key: dict[str, Any] = {"key": "a/b", "key_exists": "fail"}
    for _ in range(2):  # of an attempt that has stored the file, and died before it said so
        assert (await lab.fetch(origin.url("/x"), **key)).verdict is Verdict.SUCCEEDED
    outcome = await lab.fetch(origin.url("/y"), **key)
    assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.KEY_EXISTS)
    assert outcome.error == "file 'a/b': another file has this key"
    assert lab.files() == [lab.root / "a/b"]
    assert (lab.root / "a/b").read_bytes() == PNG


async def test_equal_files_under_their_digest_are_stored_once(lab: Lab, origin: Origin) -> None:
    for path in ("/x", "/y"):
        outcome = await lab.fetch(origin.on(path, respond(200, PNG)), key="{sha256}.png")
    assert lab.files() == [lab.root / f"{outcome.file.sha256}.png"]


async def test_a_file_at_its_bounds_is_stored(lab: Lab, origin: Origin) -> None:
    bounds: dict[str, Any] = {"max_size": len(PNG), "min_size": len(PNG), "min_width": 2, "min_height": 3}
    outcome = await lab.fetch(origin.on("/x", respond(200, PNG)), **bounds, max_pixels=PIXELS)
    assert (outcome.verdict, outcome.file.image_size) == (Verdict.SUCCEEDED, "")


async def test_a_file_without_pixels_has_no_size_to_bound(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.on("/x", respond(200, b"text")), max_pixels=10)
    assert outcome.error_code is ErrorCode.IMAGE_SIZE


async def test_a_job_cannot_raise_the_configured_bound(lab: Lab, origin: Origin) -> None:
    most = lab.fetcher.settings.max_size
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (most + 1)
    outcome = await lab.fetch(origin.on("/x", raw(head)), max_size=most + 1)
    assert outcome.error_code is ErrorCode.TOO_LARGE
