"""The patterns of media types that a job accepts.

The API parses them to refuse malformed ones; an attempt compares them with the content's type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from downloader.content.media_types import same_types

MAX_PATTERN_CHARS = 4096
"""Longest list of patterns: enough for over a hundred types; parsing and matching take a few ms at most."""

_CHAR = r"(?:\\.|[^\\\]-])"
"""A character of a class, perhaps escaped."""

_TOKEN = re.compile(
    rf"(?P<star>\*+)|(?P<any>\?)|\[(?P<negated>\^?+)(?P<ranges>(?:{_CHAR}(?:-{_CHAR})?)++)\]|\\?+(?P<char>.)",
    re.DOTALL,
)
_RANGE = re.compile(rf"(?P<low>{_CHAR})(?:-(?P<high>{_CHAR}))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Star:
    """`*`: any run of characters without `/`, also none."""


@dataclass(frozen=True, slots=True)
class _CharClass:
    """A class such as `[a-z]`, `?` (anything but `/`), or one plain character."""

    ranges: Sequence[tuple[str, str]]
    negated: bool = False

    def __contains__(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self.ranges) is not self.negated


@dataclass(frozen=True, slots=True)
class _Glob:
    """One pattern."""

    text: str
    """As the client sent it, without `!` and surrounding blanks; for messages."""
    tokens: Sequence[_Star | _CharClass]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `ValueError`, which names the pattern."""
        tokens: list[_Star | _CharClass] = []
        lower, end = text.lower(), 0
        while end < len(lower):
            token = _TOKEN.match(lower, end)
            if token is None or token[0] == "[":
                raise ValueError(f"malformed pattern {text!r}: a [ without its ], or a \\ at the end")
            tokens.append(_read(token))
            end = token.end()
        return cls(text, tokens)

    def matches(self, names: Iterable[str]) -> bool:
        return any(self._matches(name) for name in names)

    def _matches(self, name: str) -> bool:
        # The positions in the name that the tokens so far can match up to. There is no backtracking, so no
        # pattern is slow.
        places = {0}
        for token in self.tokens:
            if isinstance(token, _Star):
                places = {end for start in places for end in _run_without_slash(name, start)}
            else:
                places = {at + 1 for at in places if at < len(name) and name[at] in token}
            if not places:
                return False
        return len(name) in places


def _run_without_slash(name: str, start: int) -> range:
    slash = name.find("/", start)
    return range(start, (len(name) if slash < 0 else slash) + 1)


def _read(token: re.Match[str]) -> _Star | _CharClass:
    if token["star"]:
        return _Star()
    if token["any"]:
        return _CharClass([("/", "/")], negated=True)
    if token["char"]:
        return _CharClass([(token["char"], token["char"])])
    ends = (
        (found["low"][-1], (found["high"] or found["low"])[-1]) for found in _RANGE.finditer(token["ranges"])
    )
    return _CharClass(list(ends), negated=token["negated"] == "^")


@dataclass(frozen=True, slots=True)
class MimePatterns:
    """What types a job accepts: no negated pattern matches, and one of the others does, if there are others.

    Patterns are globs as of Go's `path.Match`: `*` and `?` stand for anything but `/`, `[a-z]` and `[^a-z]`
    for one character, a backslash takes the next character as it is. Case does not matter, and a pattern
    matches a type when it matches any of its names.
    """

    wanted: tuple[_Glob, ...] = ()
    unwanted: tuple[_Glob, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a comma-separated list; an empty one checks nothing.

        Blanks round an element and empty elements (a comma too many) do not count.

        Raises:
            ValueError: one sentence for the client: a pattern is malformed, the list is too long or has
                control characters, or it has commas and `!` only.
        """
        if len(text) > MAX_PATTERN_CHARS:
            raise ValueError(f"the patterns are longer than {MAX_PATTERN_CHARS} characters")
        if any(not char.isprintable() for char in text):
            raise ValueError("the patterns have control or other invisible characters")
        wanted: list[_Glob] = []
        unwanted: list[_Glob] = []
        for element in filter(None, map(str.strip, text.split(","))):
            negated = element.startswith("!")
            pattern = element.removeprefix("!").lstrip()
            if not pattern or pattern.startswith("!"):
                raise ValueError(f"malformed pattern {element!r}: one ! and then a type is expected")
            (unwanted if negated else wanted).append(_Glob.parse(pattern))
        if text.strip() and not (wanted or unwanted):
            raise ValueError(f"no pattern in {text!r}")
        return cls(tuple(wanted), tuple(unwanted))

    def mismatch(self, mime: str) -> str | None:
        """`None` if the type is accepted, else the text of the callback's `error`.

        It names the negated pattern that matched, or all of the others as they were given.
        """
        names = same_types(mime)
        for glob in self.unwanted:
            if glob.matches(names):
                return f"Expected mime-type not to be ({glob.text}), found ({mime})"
        if self.wanted and not any(glob.matches(names) for glob in self.wanted):
            expected = ",".join(glob.text for glob in self.wanted)
            return f"Expected mime-type to be ({expected}), found ({mime})"
        return None
