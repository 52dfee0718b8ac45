"""Patterns of a job's `mime_type`: the contract's rule, Go's globs, aliases, malformed and hostile ones."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from downloader.content import MAX_PATTERN_CHARS, MimePatterns
from downloader.content.media_types import ALIAS_GROUPS, same_types


def accepts(patterns: str, mime: str) -> bool:
    return MimePatterns.parse(patterns).mismatch(mime) is None


@pytest.mark.parametrize(
    ("patterns", "mime", "accepted"),
    [
        ("", "image/png", True),
        ("  ", "application/x-empty", True),
        ("image/png", "image/png", True),
        ("image/png", "image/jpeg", False),
        ("image/png,image/webp", "image/webp", True),
        ("image/png, image/webp", "image/webp", True),
        ("image/png,image/webp", "image/gif", False),
        ("!image/vnd.adobe.photoshop,image/*", "image/png", True),
        ("!image/vnd.adobe.photoshop,image/*", "image/vnd.adobe.photoshop", False),
        ("image/*,!image/vnd.adobe.photoshop", "image/vnd.adobe.photoshop", False),
        ("!image/vnd.adobe.photoshop,image/*", "text/html", False),
        ("!image/png", "text/html", True),
        ("!image/png,!image/gif", "image/gif", False),
        ("! image/png", "image/png", False),
        ("!image/png,image/png", "image/png", False),
        ("IMAGE/PNG", "image/png", True),
        ("image/[A-P]ng", "image/png", True),
        ("video/mp2t", "video/MP2T", True),
        ("image/*,,", "image/png", True),
        (",image/*", "text/html", False),
        # Go's path.Match
        ("*", "image/png", False),
        ("*/*", "image/png", True),
        ("image*", "image/png", False),
        ("image/*", "image/", True),
        ("image?png", "image/png", False),
        ("image/p?g", "image/png", True),
        ("image/?", "image/png", False),
        ("image/[jp]*", "image/png", True),
        ("image/[^g]*", "image/gif", False),
        ("image/[^jp]*", "image/gif", True),
        ("image/[a-o]ng", "image/png", False),
        ("image/[z-a]ng", "image/png", False),
        ("image[/x]png", "image/png", True),
        (r"image/\png", "image/png", True),
        (r"image/svg\+xml", "image/svg+xml", True),
        (r"image/\*", "image/png", False),
        (r"image/p[\]n]g", "image/png", True),
        (r"image/svg[\-+]xml", "image/svg+xml", True),
        ("image/*+*", "image/svg+xml", True),
        ("*/*a*b*c", "image/xaxbxc", True),
        ("*[/a]*b", "a/b", True),
        # aliases
        ("image/x-ms-bmp", "image/bmp", True),
        ("image/bmp", "image/x-ms-bmp", True),
        ("image/x-*", "image/bmp", True),
        ("!image/x-ms-bmp,image/*", "image/bmp", False),
        ("application/x-gzip", "application/gzip", True),
        ("audio/x-wav", "audio/wav", True),
        ("application/xml", "text/xml", True),
        ("text/javascript", "application/javascript", True),
        ("application/x-javascript", "application/javascript", True),
        ("application/ogg", "video/ogg", True),
        ("application/ogg", "audio/ogg", True),
        ("audio/ogg", "video/ogg", False),
        ("image/jpg", "image/jpeg", True),
        ("text/xml", "image/svg+xml", False),
    ],
)
def test_a_type_is_accepted_or_not(patterns: str, mime: str, *, accepted: bool) -> None:
    assert accepts(patterns, mime) is accepted


@pytest.mark.parametrize(
    ("patterns", "mime", "message"),
    [
        ("image/jpeg", "image/png", "Expected mime-type to be (image/jpeg), found (image/png)"),
        ("!image/png", "image/png", "Expected mime-type not to be (image/png), found (image/png)"),
        ("!image/gif,!image/*", "image/png", "Expected mime-type not to be (image/*), found (image/png)"),
        (
            "!image/png, image/Jpeg, image/webp",
            "text/html",
            "Expected mime-type to be (image/Jpeg,image/webp), found (text/html)",
        ),
    ],
)
def test_the_contracts_sentence(patterns: str, mime: str, message: str) -> None:
    assert MimePatterns.parse(patterns).mismatch(mime) == message


@pytest.mark.parametrize(
    "patterns",
    [
        "[a",
        "\\",
        "image/*,[a",
        "![a",
        "image/[",
        "image/[]",
        "image/[^]",
        "image/[]a]",
        "image/[-a]",
        "image/[a-]",
        "image/[a-",
        "image/[a\\",
        "image/\\",
        "image/[a,b]",
        "!",
        "!!image/png",
        "image/*,!",
        ",",
        " , ,",
        "image/png\n",
        "image/\x00",
        "image/\ud800",
        "x" * (MAX_PATTERN_CHARS + 1),
    ],
)
def test_a_malformed_pattern_is_refused_in_one_line(patterns: str) -> None:
    with pytest.raises(ValueError, match="pattern") as caught:
        MimePatterns.parse(patterns)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2 * MAX_PATTERN_CHARS


@given(st.text(alphabet="ab/*?[]^-\\!, ", max_size=24), st.text(alphabet="ab/", max_size=12))
@example("[^-a]", "a")
def test_any_text_is_parsed_or_refused(patterns: str, mime: str) -> None:
    try:
        parsed = MimePatterns.parse(patterns)
    except ValueError as error:
        assert "pattern" in str(error)  # noqa: PT017 - both ends are right
    else:
        assert parsed.mismatch(mime) is None or "mime-type" in str(parsed.mismatch(mime))


@given(st.text(alphabet="ab*?", min_size=1, max_size=12), st.text(alphabet="ab", max_size=12))
def test_without_slashes_it_is_the_shells_glob(pattern: str, name: str) -> None:
    assert accepts(pattern, name) is (re.match(fnmatch.translate(pattern), name) is not None)


def test_a_pattern_of_stars_is_not_slow() -> None:
    # A matcher that backtracks would not come back within the test's timeout.
    parsed = MimePatterns.parse("*a" * (MAX_PATTERN_CHARS // 2))
    assert parsed.mismatch("a" * 120) is not None
    assert MimePatterns.parse("*a" * 60 + "b").mismatch("a" * 120) is not None


def test_the_alias_table_is_in_lower_case_and_symmetric() -> None:
    for group in ALIAS_GROUPS:
        assert len(set(group)) == len(group) > 1
        for name in group:
            assert name == name.lower()
            assert name.count("/") == 1
            assert same_types(name) >= set(group)
    assert same_types("Image/X-Unheard-Of") == {"image/x-unheard-of"}
