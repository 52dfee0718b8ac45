"""Text of peers and clients, made fit to be printed on one line of a terminal or a log."""

from __future__ import annotations

import re

VALUE_LENGTH = 2000
"""Longest printed field, in characters. Clients choose the values of some fields."""

_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Control characters, those that reorder or hide text, and lone surrogates."""


def escape(value: str) -> str:
    """The text on one line, harmless to a terminal, cut after `VALUE_LENGTH` characters."""
    return escape_all(cut(value))


def escape_all(value: str) -> str:
    """The whole text on one line, harmless to a terminal."""
    return _UNPRINTABLE.sub(_escaped, value)


def cut(value: str) -> str:
    """The text, cut after `VALUE_LENGTH` characters."""
    return value if len(value) <= VALUE_LENGTH else f"{value[:VALUE_LENGTH]}... ({len(value)} characters)"


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode()
