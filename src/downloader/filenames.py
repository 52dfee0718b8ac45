"""Safe file names, made from URLs and headers. Pure."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote_to_bytes

NAME_BYTES = 200
"""Longest file name, in bytes. File systems take 255, and something like ` (2)` may be added."""

_LOOKED_AT = 1024
"""Characters of a longer text that are looked at, half of them at its end. The time of normalising grows with
the square of the length: a field of 60 KB of combining marks would hold up the process for seconds."""

_FORBIDDEN = re.compile(r'[/\\:*?"<>|]')
"""Separators, and characters that Windows refuses."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
"""Names of devices on Windows, with any extension."""

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of characters that are invisible, or that reorder the text around them."""

_PARAMETER = re.compile(rb';[ \t]*([^ \t=;"]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;"]*)', re.DOTALL)
_ESCAPED = re.compile(rb'\\(["\\])')
_CHARSETS = {b"utf-8": "utf-8", b"iso-8859-1": "latin-1"}


def safe_name(text: str) -> str:
    """The text as a file name; empty if nothing is left of it.

    Without separators, control and invisible characters, leading dots and dashes; not a device of Windows; at
    most `NAME_BYTES` long with its extension kept.
    """
    if len(text) > _LOOKED_AT:
        text = text[: _LOOKED_AT // 2] + text[-_LOOKED_AT // 2 :]
    text = unicodedata.normalize("NFC", text)
    text = "".join(char for char in text if unicodedata.category(char) not in _INVISIBLE)
    text = _FORBIDDEN.sub("_", text).lstrip(".- ").rstrip(". ")
    if _RESERVED.fullmatch(text):
        text = f"_{text}"
    stem, extension = split_name(text)
    return stem.encode()[: NAME_BYTES - len(extension.encode())].decode(errors="ignore") + extension


def split_name(name: str) -> tuple[str, str]:
    """Stem and extension; `.tar.gz` is one extension, and a very long one counts as none."""
    match = re.search(r"(\.tar)?\.[A-Za-z0-9]{1,10}$", name)
    return (name[: match.start()], match[0]) if match and match.start() else (name, "")


def disposition_name(value: bytes) -> str:
    """The file name in a `Content-Disposition` (RFC 6266), made safe; empty if there is none.

    `filename*` (RFC 8187) is preferred; one that is malformed is ignored. Of a path the last part is taken.
    """
    found: dict[bytes, bytes] = {}
    for name, text in _PARAMETER.findall(value):
        found.setdefault(name.lower(), text.strip(b" \t"))
    text = _extended(found.get(b"filename*", b"")) or _plain(found.get(b"filename", b""))
    return safe_name(re.split(r"[/\\]", text)[-1])


def _extended(value: bytes) -> str:
    charset, _, rest = value.strip(b'"').partition(b"'")
    encoding = _CHARSETS.get(charset.lower())
    if encoding is None:
        return ""
    try:
        return unquote_to_bytes(rest.partition(b"'")[2]).decode(encoding)
    except UnicodeDecodeError:
        return ""


def _plain(value: bytes) -> str:
    if value.startswith(b'"'):
        value = _ESCAPED.sub(rb"\1", value[1:-1])
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
