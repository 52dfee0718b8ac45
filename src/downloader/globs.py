"""Glob patterns of an operator's allow-lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import translate

Allows = Callable[[str], bool]
"""Whether a pattern of an allow-list matches the text."""


def anything(_text: str) -> bool:
    """The allow-list `["*"]`."""
    return True


def text_globs(patterns: Iterable[str]) -> Allows:
    """Match the whole text, case-sensitively, as `fnmatch.fnmatchcase` does. No pattern matches nothing."""
    listed = list(patterns)
    if "*" in listed:
        return anything
    match = re.compile("|".join(map(translate, listed)) or "(?!)").match
    return lambda text: match(text) is not None
