"""Media types of contents: agreement with the installed libmagic, and hostile content."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path

import magic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.mime_samples import samples
from downloader.content import SNIFF_BYTES, sniff_mime
from downloader.content.media_types import same_types
from downloader.content.signatures import by_signature

DEVIATIONS = {
    "ppt": ("application/vnd.ms-powerpoint", "libmagic wants the summary stream that this small file lacks"),
    "cab": (
        "application/vnd.ms-cab-compressed",
        "libmagic names no type for a cabinet without known members",
    ),
    "tga": ("application/octet-stream", "TGA has no signature at its start; libmagic guesses"),
    "zlib": (
        "application/octet-stream",
        "a bare zlib stream has no signature; one in 1,000 random files is one",
    ),
}
"""Samples on which we differ from libmagic, with our verdict and why."""


@cache
def libmagic() -> magic.Magic:
    return magic.Magic(mime=True)


def by_libmagic(data: bytes, folder: Path) -> str:
    # From a file, not a buffer: libmagic 5.46 does not know a ZIP archive whose end it cannot seek to.
    path = folder / "sample"
    path.write_bytes(data)
    return libmagic().from_file(str(path)).replace("inode/x-empty", "application/x-empty")


def sniff(data: bytes) -> str:
    """As a download does: the head and the size of the whole."""
    return sniff_mime(data[:SNIFF_BYTES], size=len(data))


@pytest.mark.slow
def test_every_sample_has_libmagics_type(tmp_path: Path) -> None:
    differences = []
    for name, data in samples().items():
        ours, theirs = sniff(data), by_libmagic(data, tmp_path)
        agree = theirs.lower() in same_types(ours)
        if name in DEVIATIONS:
            if agree or ours != DEVIATIONS[name][0]:
                differences.append(f"{name}: {ours}, libmagic {theirs}, no longer as in DEVIATIONS")
        elif not agree:
            differences.append(f"{name}: {ours}, libmagic {theirs}")
    assert not differences, "\n".join(differences)
    assert len(samples()) >= 250
    assert len({sniff(data) for data in samples().values()}) >= 100  # types, not only samples


@pytest.mark.parametrize(
    ("name", "mime"),
    [
        ("empty", "application/x-empty"),
        ("ascii", "text/plain"),
        ("random", "application/octet-stream"),
        ("bmp", "image/bmp"),
        ("gzip", "application/gzip"),
        ("wav", "audio/wav"),
        ("zip", "application/zip"),
        ("html", "text/html"),
        ("xml", "text/xml"),
        ("json object", "application/json"),
        ("jpeg baseline", "image/jpeg"),
        ("png", "image/png"),
        ("webp lossy", "image/webp"),
        ("psd", "image/vnd.adobe.photoshop"),
        ("pdf", "application/pdf"),
        ("mp4_isom", "video/mp4"),
    ],
)
def test_the_contracts_names(name: str, mime: str) -> None:
    assert sniff(samples()[name]) == mime


def test_a_disc_image_is_known_by_its_late_signature() -> None:
    assert sniff(bytes(32768) + b"\x01CD001\x01" + bytes(9000)) == "application/x-iso9660-image"


def test_a_rare_type_is_left_to_puremagic() -> None:
    assert sniff(b"MAC \x96\x0f\0\0" + bytes(60)) == "audio/x-ape"


@pytest.mark.parametrize(
    "start", [b"\x01\0\0\0", b"RIFF\x01\0\0\0none", b"FORM\0\0\0\0none", b"\0\0\x01\0\0\0"]
)
def test_a_guess_of_puremagic_is_unknown(start: bytes) -> None:
    assert sniff(start + bytes(range(256))) == "application/octet-stream"


def test_only_the_first_bytes_count() -> None:
    for data in samples().values():
        assert sniff_mime(data, size=len(data)) == sniff(data)


BIG_JSON = json.dumps(
    [{"id": n, "text": f"line\n{n}", "tags": ["a", {"b": None}]} for n in range(3000)]
).encode()


@pytest.mark.parametrize("at", [*range(1, 400), *range(4090, 4102), SNIFF_BYTES])
def test_a_head_cut_anywhere_in_json_is_json(at: int) -> None:
    assert sniff_mime(BIG_JSON[:at], size=len(BIG_JSON)) == (
        "application/json" if at > 1 else "application/octet-stream"
    )


def test_a_whole_file_that_ends_inside_json_is_text() -> None:
    for at in range(2, 400):
        assert sniff_mime(BIG_JSON[:at], size=at) == "text/plain"
        assert sniff_mime(BIG_JSON[:at], size=None) == "text/plain"
    assert sniff_mime(BIG_JSON[:SNIFF_BYTES], size=None) == "application/json"


def test_a_cut_head_with_an_error_in_it_is_text() -> None:
    assert sniff_mime(b'[{"a": b}, ' + BIG_JSON, size=10**6) == "text/plain"
    assert sniff_mime(b"[note] a text that begins with a bracket", size=10**6) == "text/plain"
    assert sniff_mime(b'{"a":1}\n{"a":2}\n{"a', size=10**6) == "application/x-ndjson"
    assert sniff_mime(b'{"a":1}\n{"a":', size=10**6) == "application/x-ndjson"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
DOCUMENTS = st.lists(VALUES, max_size=5) | st.dictionaries(st.text(max_size=5), VALUES, max_size=5)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(document=DOCUMENTS, indent=st.integers(0, 2), ascii_only=st.booleans(), part=st.floats(0, 1))
def test_json_is_json_for_libmagic_and_us_whole_and_cut(
    *,
    document: object,
    indent: int,
    ascii_only: bool,
    part: float,
) -> None:
    data = json.dumps(document, indent=indent or None, ensure_ascii=ascii_only).encode(errors="replace")
    assert sniff(data) == libmagic().from_buffer(data) == "application/json"
    at = 2 + int((len(data) - 2) * part)
    assert sniff_mime(data[:at], size=10**6) == "application/json"


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["a", ",", ",", '"', '""', "\n", "\n", "a,b,c\n", "\r\n"]), max_size=30).map(
        "".join
    )
)
@example('a,b,c\n"1\n2",3,4\n')
@example('"a\n,b",c,d\n1,2,3\n')
def test_csv_is_what_libmagic_takes_for_csv(text: str) -> None:
    data = text.encode()
    assert (sniff(data) == "text/csv") is (libmagic().from_buffer(data) == "text/csv")


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=2, max_size=40))
def test_text_or_not_as_libmagic_says(data: bytes) -> None:
    # Behind these no signature is in the way. A zero at the end libmagic passes over or not, as the length is
    # odd or even; here it makes data of a text.
    data = b"q \xe9" + data.rstrip(b"\0")
    theirs = libmagic().from_buffer(data)
    if theirs in ("text/plain", "application/octet-stream"):
        assert sniff(data) == theirs


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(0, 10**12)))
def test_any_bytes_have_a_type(data: bytes, size: int | None) -> None:
    assert sniff_mime(data, size=size).count("/") == 1


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_have_a_type(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(list(samples().values())))[:2000])
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    assert (
        sniff_mime(bytes(content), size=data.draw(st.sampled_from((None, len(content), 10**9)))).count("/")
        == 1
    )


HOSTILE = {
    "tags": b"<",
    "doctype": b"<!doctype ",
    "doctype and blanks": b"<!doctype" + b" " * 70_000,
    "anchors": b"<a ",
    "arrays": b"[",
    "empty arrays": b"[" + b"[]," * 30_000,
    "objects": b"{",
    "nested objects": b'{"a":',
    "open string": b'["' + b'\\"' * 40_000,
    "quotes": b'"',
    "quoted cells": b',,\n"',
    "typeof": b"typeof",
    "const": b"const " + b"=" * 70_000,
    "const lines": b"const \n",
    "exports": b"module.exports",
    "imports": b"import \n",
    "import from": b"import " + b"x from" * 12_000,
    "script": b"#!" + b"/" * 70_000,
    "diff": b"--- " + b"a\n+++ " * 12_000,
    "blanks": b" ",
    "newlines": b"\n",
    "zip entries": b"PK\x03\x04",
    "bitmap comments": b"P5 " + b"#\n" * 35_000,
    "bitmap blanks": b"P5 " + b" " * 70_000,
    "matroska": b"\x1a\x45\xdf\xa3" + b"\x42" * 70_000,
    "utf-16 tags": b"\xff\xfe" + b"<\0" * 35_000,
    "utf-16 surrogates": b"\xff\xfe" + b"\0\xd8" * 35_000,
    "zeros": b"\0",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content_takes_a_bounded_time(name: str) -> None:
    unit = HOSTILE[name]
    data = (unit * (65_536 // len(unit) + 1))[:65_536]
    start = time.process_time()
    sniff_mime(data, size=10**9)
    # Measured: below 5 ms. Quadratic work on 36 KiB would take seconds.
    assert time.process_time() - start < 1


def test_common_types_are_found_without_a_search() -> None:
    # An operation bound, not a clock: the table answers before text or puremagic is asked.
    for name in (
        "jpeg baseline",
        "png",
        "gif89",
        "webp lossy",
        "avif",
        "mp4_isom",
        "pdf",
        "zip",
        "gzip",
        "woff2",
    ):
        assert by_signature(samples()[name]) == sniff(samples()[name])
