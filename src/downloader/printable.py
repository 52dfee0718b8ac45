"""Escapes text from peers and clients, so that a terminal or log shows the text on one line."""

from __future__ import annotations

import re

VALUE_LENGTH = 2000
"""Longest printed field, in characters. Clients choose the text of some fields."""

_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Control characters, characters that reorder or hide text, and lone surrogates."""


def escape(value: str) -> str:
    """`escape_all`, cut after `VALUE_LENGTH` characters."""
    return escape_all(cut(value))


def escape_all(value: str) -> str:
    """The text with control characters escaped: a single line that is harmless to a terminal."""
    return _UNPRINTABLE.sub(_escaped, value)


def cut(value: str) -> str:
    """The text, cut after `VALUE_LENGTH` characters."""
    return value if len(value) <= VALUE_LENGTH else f"{value[:VALUE_LENGTH]}... ({len(value)} characters)"


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode()
