"""The media type of a file, from the first bytes by libmagic's rules; never from a header or a name.

The order is: signatures of types that are common on the web (`downloader.content.signatures`), libmagic's
rules for text, then puremagic, which has a thousand rare formats.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from functools import cache

import puremagic
import puremagic.main

from downloader.content.signatures import LEADING_SIGNATURES, by_signature

SNIFF_BYTES = 36 * 1024
"""Number of first bytes that are examined. The signature of a disc image is at 32 KiB, all others are far
before."""

_EMPTY = "application/x-empty"
_UNKNOWN = "application/octet-stream"
_TEXT = "text/plain"

_TEXT_BYTES = bytes((*range(7, 14), 27, *range(32, 127), *range(128, 256)))
"""Bytes that occur in texts in ASCII, UTF-8, ISO 8859 or the code pages of PCs (libmagic's table)."""

_ENCODINGS = (
    # UTF-32 first, since its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32", 4),
    (codecs.BOM_UTF32_BE, "utf-32", 4),
    (codecs.BOM_UTF16_LE, "utf-16", 2),
    (codecs.BOM_UTF16_BE, "utf-16", 2),
)

_MARKUP_BYTES = 4096
"""Length of a text in which libmagic looks for tags."""

_SCRIPT_BYTES = 8192
"""Length of a text in which libmagic looks for JavaScript."""

_RARE_MATCH_BYTES = 4
"""Fewest bytes, other than zeros, of a puremagic signature that counts. Shorter ones match any data: 01 00 00
00 would be a picture."""


def sniff_mime(head: bytes, *, size: int | None) -> str:
    """The type of a file by the first bytes, as named by IANA or libmagic.

    An empty file is `application/x-empty`, text without a signature `text/plain`, and unknown data (also a
    single byte, as with libmagic) `application/octet-stream`. Never raises, and takes a bounded time for any
    bytes.

    Args:
        head: The first `SNIFF_BYTES` of the file, or the whole file; further bytes are ignored.
        size: Bytes of the file; `None`: unknown, but a head shorter than `SNIFF_BYTES` is the whole file.
    """
    cut = len(head) >= SNIFF_BYTES if size is None else size > min(len(head), SNIFF_BYTES)
    head = head[:SNIFF_BYTES]
    if len(head) < 2:  # noqa: PLR2004 - nothing, or one byte
        return _UNKNOWN if head else _EMPTY
    mime = by_signature(head)
    if mime is not None:
        return mime
    document = _judge_json(head, cut=cut)
    if document is not None:
        return document
    text = _as_text(head)
    return _rare(head) if text is None else _judge_text(text)


_DECODER = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)
"""Decoder that leaves numbers as text, since Python refuses very long integers."""

_JSON_PREFIX_BYTES = 4096
"""Number of first bytes that are examined in a JSON file longer than the head."""

_JSON_PREFIX = re.compile(
    rb'[\[{](?:[\s\[\]{}:,]|"(?:[^"\\\0]|\\.)*+"|true|false|null|-?[0-9][0-9.eE+-]*+)*+'
    rb'(?:"(?:[^"\\\0]|\\.)*+\\?|t(?:ru?)?|f(?:al?s?)?|n(?:ul?)?|-)?'
)
"""Tokens of JSON in any order; the last token may be incomplete."""


_JSON_LAST_COMMA = re.compile(rb'("(?:[^"\\]|\\.)*+"?)|,(?=\s*[\]}])', re.DOTALL)
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]|[^\s\[\]{}",:]+', re.DOTALL)
_JSON_DEPTH = 251
"""Deepest nesting of values, as in libmagic."""


def _judge_json(data: bytes, *, cut: bool) -> str | None:
    """The type of one or several arrays or objects in JSON; `None` for anything else.

    Of several values only the first two are examined; both must be arrays, or both objects. With `cut`, the
    data is only the head of a file, and an incomplete value need only consist of JSON tokens.
    """
    text = data.lstrip()
    if text[:1] not in (b"[", b"{"):
        return None
    end = _json_end(text, cut=cut)
    if end == 0:
        return None
    rest = text[end:].lstrip()
    if end < 0 or not rest:
        return "application/json"
    if rest[:1] != text[:1]:
        return None
    return "application/x-ndjson" if _json_end(rest, cut=cut) else None


def _json_end(text: bytes, *, cut: bool) -> int:
    """The offset after an array or object; 0 if missing, -1 if incomplete."""
    # As in libmagic, a comma may stand before a closing bracket. A blank replaces it, so that offsets stay.
    text = _JSON_LAST_COMMA.sub(lambda match: match[1] or b" ", text)
    try:
        end = _DECODER.raw_decode(text.decode("latin-1"))[1]
    except (ValueError, RecursionError):
        return -1 if cut and _JSON_PREFIX.fullmatch(text, 0, _JSON_PREFIX_BYTES) else 0
    return end if _json_depth(text[:end]) <= _JSON_DEPTH else 0


def _json_depth(text: bytes) -> int:
    """The depth of nesting; of a text with too few brackets to exceed the limit, their number."""
    brackets = text.count(b"[") + text.count(b"{")
    if brackets < _JSON_DEPTH:
        return brackets
    depth = deepest = 0
    for token in _JSON_TOKEN.findall(text):
        if token in (b"]", b"}"):
            depth -= 1
        else:
            deepest = max(deepest, depth + 1)
            depth += token in (b"[", b"{")
    return deepest


def _as_text(head: bytes) -> bytes | None:
    """The text in UTF-8 or the original 8-bit encoding, without a byte order mark; `None` for other data."""
    for mark, encoding, unit in _ENCODINGS:
        if head.startswith(mark):
            even_units = head[: len(head) // unit * unit]
            try:
                head = codecs.getincrementaldecoder(encoding)().decode(even_units).encode()
            except UnicodeError:
                continue
            break
    return None if head.translate(None, _TEXT_BYTES) else head.removeprefix(codecs.BOM_UTF8)


def _judge_text(text: bytes) -> str:
    if _is_csv(text):
        return "text/csv"
    for pattern, mime in _LEADING_WORDS:
        if pattern.match(text, 0, _LEADING_BYTES):
            return mime
    markup = _judge_markup(text[:_MARKUP_BYTES])
    if markup is not None:
        return markup
    beginning = text[:_SCRIPT_BYTES]
    script = any(word in beginning and pattern.search(beginning) for word, pattern in _SCRIPT)
    return "application/javascript" if script else _TEXT


_LEADING_BYTES = 256
"""Length of a text in which `_LEADING_WORDS` may match."""

_SCRIPT_HOST = rb"#![ \t]*\S*/(?:env[ \t]+)?"

_LEADING_WORDS: Sequence[tuple[re.Pattern[bytes], str]] = (
    (re.compile(_SCRIPT_HOST + rb"node(?:js)?\b"), "application/javascript"),
    (re.compile(_SCRIPT_HOST + rb"(?:ba|da|z|k|tc|c)?sh\b"), "text/x-shellscript"),
    (re.compile(_SCRIPT_HOST + rb"python"), "text/x-script.python"),
    (re.compile(_SCRIPT_HOST + rb"perl"), "text/x-perl"),
    (re.compile(_SCRIPT_HOST + rb"ruby"), "text/x-ruby"),
    (re.compile(rb"<\?php", re.IGNORECASE), "text/x-php"),
    (re.compile(rb"BEGIN:VCARD", re.IGNORECASE), "text/vcard"),
    (re.compile(rb"BEGIN:VCALENDAR", re.IGNORECASE), "text/calendar"),
    (re.compile(rb"WEBVTT[ \t\r\n]"), "text/vtt"),
    (re.compile(rb"\d+\r?\n\d\d:\d\d:\d\d,\d{3} --> "), "application/x-subrip"),
    (re.compile(rb"#EXTM3U"), "audio/x-mpegurl"),
    (re.compile(rb"(?:Return-Path|Received|Delivered-To|From|To|Subject|Date):"), "message/rfc822"),
    (
        re.compile(rb"diff |Index: |Only in |--- [^\n]*\n\+\+\+ [^\n]*\n@@ |\*\*\* [^\n]*\n--- "),
        "text/x-diff",
    ),
    (re.compile(rb"-----BEGIN CERTIFICATE-----"), "application/x-pem-file"),
    (re.compile(rb"\\documentclass"), "text/x-tex"),
)
"""Beginnings of texts that identify a type, as in libmagic."""

_XML = re.compile(rb"<\?xml", re.IGNORECASE)
_XHTML = re.compile(rb"<!doctype\s+html|<html\s+xmlns=", re.IGNORECASE)
_SVG_DOCTYPE = re.compile(rb"<!doctype\s+svg", re.IGNORECASE)
_HTML_DOCTYPE = re.compile(rb"\s*<!doctype\s+html", re.IGNORECASE)
_HTML = re.compile(
    rb"<(?:!doctype\s+html|(?:html|head|title|script|style|table)[\s>]|a\s+href=)", re.IGNORECASE
)
# libmagic allows any distance between two words of a line; the bound keeps hostile lines from taking seconds.
# Each pattern comes with a word that every match contains: searching for the word first costs a hundredth.
_SCRIPT: Sequence[tuple[bytes, re.Pattern[bytes]]] = tuple(
    (word, re.compile(pattern, re.MULTILINE))
    for word, pattern in (
        (b"use strict", rb"""(["'])use strict\1"""),
        (b"exports", rb"""module(?:\.|\[["'])exports.{0,100}="""),
        (b"require(", rb"^(?:const|var|let)[^=\n]*=.{0,100}require\("),
        (b"export ", rb"^export (?:function|class|default|const|var|let|async) "),
        (b"function", rb"\((?:async )?function[( ]"),
        (b" from ", rb"^(?:import|export).*\x20from\x20"),
        (b"port ", rb"""^(?:import|export) ["']\./"""),
        (b"typeof", rb"typeof.{0,100}[!=]=="),
    )
)


def _judge_markup(markup: bytes) -> str | None:
    if b"<" not in markup:
        return None
    if _XML.match(markup):
        return _judge_xml(markup)
    if markup.startswith(b"<svg") or (_SVG_DOCTYPE.search(markup) and not _HTML_DOCTYPE.match(markup)):
        return "image/svg+xml"
    return "text/html" if _HTML.search(markup) else None


def _judge_xml(markup: bytes) -> str:
    if b"<svg" in markup:
        return "image/svg+xml"
    if _XHTML.search(markup):
        return "application/xhtml+xml"
    return "application/xml-sitemap" if b"<urlset" in markup else "text/xml"


_CSV_LINES = 10
"""Number of lines that libmagic compares."""

_QUOTED = re.compile(rb'"(?:[^"]++|"")*+"?')


def _is_csv(text: bytes) -> bool:
    """Whether two or more lines (of the first ten) all have the same number of commas, two or more."""
    end = text.find(b"\n")
    if end < 0 or (text.count(b",", 0, end) < 2 and text.find(b'"', 0, end) < 0):  # noqa: PLR2004 - commas, see above
        return False
    lines = _QUOTED.sub(b"", text).split(b"\n", _CSV_LINES)[:-1]
    commas = [line.count(b",") for line in lines]
    return len(lines) > 1 and commas[0] > 1 and len(set(commas)) == 1


def _rare(head: bytes) -> str:
    """The type by puremagic, for data without a usual signature; `_UNKNOWN` without a strong match."""
    # puremagic compares all its signatures in Python, which takes 0.25 ms; most data begins with none of
    # them.
    if not any(head.startswith(beginnings, offset) for offset, beginnings in _rare_beginnings()):
        return _UNKNOWN
    try:
        matches = puremagic.magic_string(head)
    except puremagic.PureError:
        return _UNKNOWN
    for match in matches:
        magic = match.byte_match
        # A negative offset counts from the end of the file, but puremagic gets only the head. Signatures in
        # our own table were examined more closely there, and did not match.
        strong = _strong(magic) and magic not in LEADING_SIGNATURES
        if match.mime_type and match.offset >= 0 and strong:
            return str(match.mime_type)
    return _UNKNOWN


@cache
def _rare_beginnings() -> Sequence[tuple[int, tuple[bytes, ...]]]:
    """The signatures, by offset, that can lead to a match strong enough for `_rare`."""
    by_offset: dict[int, set[bytes]] = {}
    for row in puremagic.main.magic_header_array:
        if _strong(row.byte_match) or row.byte_match in puremagic.main.multi_part_dict:
            by_offset.setdefault(row.offset, set()).add(row.byte_match)
    return [(offset, tuple(beginnings)) for offset, beginnings in by_offset.items()]


def _strong(magic: bytes) -> bool:
    return len(magic.replace(b"\0", b"")) >= _RARE_MATCH_BYTES
