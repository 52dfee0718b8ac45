"""Safe file names, made from URLs and headers. Pure."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote_to_bytes

NAME_BYTES = 200
"""Longest file name, in bytes. File systems allow 255; a suffix such as ` (2)` may be added later."""

_MAX_CHARS = 1024
"""A longer text is cut to the first half and the last half of this number of characters. Normalising takes
time quadratic in the length: 60 KB of combining marks would block the process for seconds."""

_FORBIDDEN = re.compile(r'[/\\:*?"<>|]')
"""Separators, and characters that Windows refuses."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
"""Names of devices on Windows, with any extension."""

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of characters that are invisible or reorder the surrounding text."""

_PARAMETER = re.compile(rb';[ \t]*([^ \t=;"]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;"]*)', re.DOTALL)
_ESCAPED = re.compile(rb'\\(["\\])')
_CHARSETS = {b"utf-8": "utf-8", b"iso-8859-1": "latin-1"}


def safe_name(text: str) -> str:
    """The text as a file name; empty if no legal character is left.

    The name has no separators, no control or invisible characters, no leading dots or dashes, and is not the
    name of a Windows device. It has at most `NAME_BYTES` bytes; a cut keeps the extension.
    """
    if len(text) > _MAX_CHARS:
        text = text[: _MAX_CHARS // 2] + text[-_MAX_CHARS // 2 :]
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

    `filename*` (RFC 8187) is preferred; a malformed one is ignored. Of a path only the last part counts.
    """
    parameters: dict[bytes, bytes] = {}
    for name, text in _PARAMETER.findall(value):
        parameters.setdefault(name.lower(), text.strip(b" \t"))
    text = _extended(parameters.get(b"filename*", b"")) or _plain(parameters.get(b"filename", b""))
    return safe_name(re.split(r"[/\\]", text)[-1])


def _extended(value: bytes) -> str:
    charset, _, language_and_text = value.strip(b'"').partition(b"'")
    encoding = _CHARSETS.get(charset.lower())
    if encoding is None:
        return ""
    try:
        return unquote_to_bytes(language_and_text.partition(b"'")[2]).decode(encoding)
    except UnicodeDecodeError:
        return ""


def _plain(value: bytes) -> str:
    if value.startswith(b'"'):
        value = _ESCAPED.sub(rb"\1", value[1:-1])
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
