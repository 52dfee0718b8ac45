"""Files that differ from what the job or the origin declares, and files that have not changed."""

from __future__ import annotations

import gzip
import hashlib
from base64 import b64encode

import pytest

from downloader.fetch.expected import declared_digests
from downloader.model import ErrorCode, Outcome, Verdict
from servers.lab import Lab
from servers.origin import Origin, body_of, raw, respond

BODY = b"hello world"
SHA256, SHA512 = hashlib.sha256(BODY), hashlib.sha512(BODY)
OTHER = hashlib.sha256(b"other")
REPR, CONTENT = "Repr-Digest", "Content-Digest"
DIGEST = (Verdict.RETRY, ErrorCode.DIGEST)


def end(outcome: Outcome) -> tuple[Verdict, str]:
    return outcome.verdict, outcome.error_code


def member(algorithm: str, value: bytes) -> str:
    return f"{algorithm}=:{b64encode(value).decode()}:"


GOOD_256, BAD_256 = member("sha-256", SHA256.digest()), member("sha-256", OTHER.digest())
GOOD_512, BAD_512 = member("sha-512", SHA512.digest()), member("sha-512", bytes(64))


@pytest.mark.parametrize("size", [11, 3_000_000])
async def test_the_expected_file_is_stored(lab: Lab, origin: Origin, size: int) -> None:
    sha256 = hashlib.sha256(body_of(size)).hexdigest()
    outcome = await lab.fetch(origin.url(f"/bytes/{size}"), sha256=sha256, size=size)
    assert end(outcome) == (Verdict.SUCCEEDED, "")
    assert lab.stored() == body_of(size)


@pytest.mark.parametrize("size", [11, 3_000_000])
async def test_another_sha256_is_retried_and_not_stored(lab: Lab, origin: Origin, size: int) -> None:
    found, wanted = hashlib.sha256(body_of(size)).hexdigest(), OTHER.hexdigest()
    outcome = await lab.fetch(origin.url(f"/bytes/{size}"), sha256=wanted)
    assert end(outcome) == DIGEST
    assert outcome.error == f"Expected sha256 to be ({wanted}), found ({found})"
    assert outcome.response_code == 200
    last = await lab.fetch(origin.url(f"/bytes/{size}"), sha256=wanted, attempts=2)
    assert end(last) == (Verdict.FAILED, ErrorCode.DIGEST)
    assert lab.files() == []


@pytest.mark.parametrize("size", [11, 3_000_000])
async def test_the_md5_is_checked(lab: Lab, origin: Origin, size: int) -> None:
    found, wanted = hashlib.md5(body_of(size)).hexdigest(), hashlib.md5(b"other").hexdigest()
    outcome = await lab.fetch(origin.url(f"/bytes/{size}"), md5=wanted)
    assert end(outcome) == DIGEST
    assert outcome.error == f"Expected md5 to be ({wanted}), found ({found})"
    assert lab.files() == []
    outcome = await lab.fetch(origin.url(f"/bytes/{size}"), md5=found)
    assert end(outcome) == (Verdict.SUCCEEDED, "")


@pytest.mark.parametrize(("wanted", "found"), [(10, "11"), (12, "11"), (0, "11")])
async def test_another_declared_size_is_not_received(
    lab: Lab, origin: Origin, wanted: int, found: str
) -> None:
    # The body never comes, so whoever waits for it learns nothing.
    origin.on("/x", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n", "hang"))
    outcome = await lab.fetch(origin.url("/x"), size=wanted)
    assert end(outcome) == DIGEST
    assert outcome.error == f"Expected size to be ({wanted}), found ({found})"


@pytest.mark.parametrize(("wanted", "found"), [(10, "more"), (12, "11")])
async def test_another_counted_size(lab: Lab, origin: Origin, wanted: int, found: str) -> None:
    origin.on("/x", raw(b"HTTP/1.1 200 OK\r\n\r\n" + BODY))
    outcome = await lab.fetch(origin.url("/x"), size=wanted)
    assert end(outcome) == DIGEST
    assert outcome.error == f"Expected size to be ({wanted}), found ({found})"
    assert lab.files() == []


async def test_size_and_digest_are_those_of_the_decoded_file(lab: Lab, origin: Origin) -> None:
    packed = gzip.compress(BODY)
    # The digest of what is sent is another, and is not compared.
    fields = [("Content-Encoding", "gzip"), (REPR, BAD_256)]
    origin.on("/x", respond(200, packed, fields))
    outcome = await lab.fetch(origin.url("/x"), sha256=SHA256.hexdigest(), size=len(BODY))
    assert end(outcome) == (Verdict.SUCCEEDED, "")
    assert lab.stored() == BODY


@pytest.mark.parametrize("field", [REPR, CONTENT])
@pytest.mark.parametrize(
    "lines",
    [
        [GOOD_256],
        [f"{GOOD_512}, {GOOD_256}"],
        [GOOD_512, GOOD_256],
        [f'{GOOD_256};q=1.0; note="a, \\"b"; x; y=?1,  {GOOD_512}'],
        [f"{BAD_256}, {GOOD_256}"],  # the last of a key counts
        # Ignored: other algorithms, other lengths, malformed fields.
        [member("md5", bytes(16)) + ", " + member("sha", bytes(20)) + ", " + member("unixsum", b"12")],
        [member("sha-256", bytes(31))],
        [member("sha-512", bytes(32))],
        [BAD_256 + ","],
        [BAD_256 + " x"],
        [BAD_256.replace("=:", ":")],
        [BAD_256.upper()],
        [BAD_256[:-1]],
        [BAD_256 + ", a=1"],
        [BAD_256, "\xff"],
        ["sha-256=:" + "A" * 41 + ":"],
        [""],
    ],
    ids=range(17),
)
async def test_digests_that_agree_or_cannot_be_checked(
    lab: Lab, origin: Origin, field: str, lines: list[str]
) -> None:
    origin.on("/x", respond(200, BODY, [(field, line) for line in lines]))
    assert end(await lab.fetch(origin.url("/x"))) == (Verdict.SUCCEEDED, "")
    assert lab.stored() == BODY


@pytest.mark.parametrize("field", [REPR, CONTENT])
@pytest.mark.parametrize(
    ("lines", "algorithm"),
    [
        ([BAD_256], "sha256"),
        ([f"{GOOD_256}, {BAD_512}"], "sha512"),
        ([GOOD_256, BAD_512], "sha512"),
        ([f"a=::,{BAD_256};p={GOOD_256[8:]}"], "sha256"),
        ([f'{BAD_256};p=", {GOOD_256}"'], "sha256"),
    ],
)
async def test_a_digest_that_differs_is_retried(
    lab: Lab, origin: Origin, field: str, lines: list[str], algorithm: str
) -> None:
    origin.on("/x", respond(200, BODY, [(field.upper(), line) for line in lines]))
    outcome = await lab.fetch(origin.url("/x"))
    assert end(outcome) == DIGEST
    assert outcome.error.startswith(f"Expected {field} {algorithm} to be (")
    assert hashlib.new(algorithm, BODY).hexdigest() in outcome.error
    assert lab.files() == []


async def test_a_large_file_has_its_sha512(lab: Lab, origin: Origin) -> None:
    body = body_of(3_000_000)
    origin.on("/good", respond(200, body, [(REPR, member("sha-512", hashlib.sha512(body).digest()))]))
    origin.on("/bad", respond(200, body, [(REPR, BAD_512)]))
    assert end(await lab.fetch(origin.url("/bad"))) == DIGEST
    assert end(await lab.fetch(origin.url("/good"))) == (Verdict.SUCCEEDED, "")


async def test_only_a_200_is_the_whole_file(lab: Lab, origin: Origin) -> None:
    origin.on("/x", respond(203, BODY, [(REPR, BAD_256)]))
    assert end(await lab.fetch(origin.url("/x"))) == (Verdict.SUCCEEDED, "")


async def test_a_long_field_takes_no_time() -> None:
    for text in (b"a=::;" * 10_000, b"a=::;b=" + b'"' * 50_000, b"a" * 64_000, b"a=:" + b"A" * 64_000):
        assert declared_digests([(b"repr-digest", text)]) == []


# conditional requests


@pytest.mark.parametrize("name", ["If-None-Match", "if-modified-since"])
async def test_a_file_that_has_not_changed(lab: Lab, origin: Origin, name: str) -> None:
    origin.on("/x", raw(b"HTTP/1.1 304 Not Modified\r\n\r\n", "keep"))
    outcome = await lab.fetch(origin.url("/x"), request_headers={name: '"a"'})
    assert end(outcome) == (Verdict.FAILED, ErrorCode.NOT_MODIFIED)
    assert (outcome.error, outcome.response_code) == ("Received Status code 304 Not Modified", 304)
    assert lab.files() == []


async def test_an_unrequested_304(lab: Lab, origin: Origin) -> None:
    origin.on("/x", respond(304))
    for headers in ({}, {"If-Match": '"a"'}):
        outcome = await lab.fetch(origin.url("/x"), request_headers=headers)
        assert end(outcome) == (Verdict.FAILED, ErrorCode.HTTP_STATUS)


async def test_a_304_to_a_request_without_the_condition(lab: Lab, origin: Origin) -> None:
    origin.on("/x", respond(304))
    origin.on("/to", respond(302, headers=[("Location", origin.url("/x", host="localhost"))]))
    outcome = await lab.fetch(origin.url("/to"), request_headers={"If-None-Match": '"a"'})
    assert end(outcome) == (Verdict.FAILED, ErrorCode.HTTP_STATUS)
