"""Names of media types, and the patterns of types accepted by a job.

The API parses patterns to refuse malformed ones; an attempt compares them with the type of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

ALIAS_GROUPS: tuple[tuple[str, ...], ...] = (
    ("application/bzip2", "application/x-bzip2", "application/x-bzip"),
    ("application/epub+zip", "application/x-epub+zip"),
    ("application/gzip", "application/x-gzip", "application/gzip-compressed"),
    ("application/java-vm", "application/x-java-vm", "application/x-java-applet"),
    (
        "application/javascript",
        "text/javascript",
        "application/x-javascript",
        "application/ecmascript",
        "text/ecmascript",
    ),
    ("application/json", "text/json", "application/x-json"),
    ("application/lz4", "application/x-lz4"),
    ("application/msword", "application/vnd.ms-word", "application/x-msword"),
    ("application/octet-stream", "binary/octet-stream"),
    ("application/pdf", "application/x-pdf"),
    ("application/postscript", "application/ps"),
    ("application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl", "audio/x-mpegurl"),
    ("application/vnd.debian.binary-package", "application/x-debian-package", "application/x-deb"),
    ("application/vnd.ms-cab-compressed", "application/x-cab"),
    ("application/vnd.ms-excel", "application/msexcel", "application/x-msexcel"),
    ("application/vnd.ms-powerpoint", "application/mspowerpoint", "application/x-mspowerpoint"),
    (
        "application/vnd.microsoft.portable-executable",
        "application/x-dosexec",
        "application/x-msdownload",
        "application/x-ms-dos-executable",
    ),
    ("application/vnd.rar", "application/x-rar", "application/x-rar-compressed"),
    ("application/vnd.sqlite3", "application/x-sqlite3"),
    ("application/x-empty", "inode/x-empty"),
    ("application/x-7z-compressed", "application/7z"),
    ("application/x-executable", "application/x-pie-executable"),
    ("application/x-sharedlib", "application/x-pie-executable"),
    ("application/x-iso9660-image", "application/vnd.efi.iso"),
    ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"),
    ("application/x-ole-storage", "application/cdfv2"),
    ("application/x-rpm", "application/x-redhat-package-manager"),
    ("application/x-shockwave-flash", "application/vnd.adobe.flash.movie"),
    ("application/x-tar", "application/tar"),
    ("application/x-xz", "application/xz"),
    ("application/zip", "application/x-zip", "application/x-zip-compressed"),
    ("application/zstd", "application/x-zstd"),
    ("audio/aac", "audio/x-aac", "audio/aacp", "audio/x-hx-aac-adts"),
    ("audio/aiff", "audio/x-aiff"),
    ("audio/amr", "audio/x-amr"),
    ("audio/basic", "audio/x-basic"),
    ("audio/flac", "audio/x-flac"),
    ("audio/midi", "audio/x-midi", "audio/mid"),
    ("audio/mp4", "audio/x-m4a", "audio/m4a"),
    ("audio/mpeg", "audio/mp3", "audio/x-mp3", "audio/x-mpeg", "audio/mpeg3"),
    ("audio/ogg", "application/ogg", "audio/x-ogg"),
    ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"),
    ("font/otf", "application/vnd.ms-opentype", "application/x-font-otf"),
    ("font/sfnt", "font/ttf", "application/x-font-ttf", "application/font-sfnt"),
    ("font/woff", "application/font-woff", "application/x-font-woff"),
    ("font/woff2", "application/font-woff2"),
    ("image/bmp", "image/x-ms-bmp", "image/x-bmp"),
    ("image/jpeg", "image/jpg", "image/pjpeg"),
    ("image/jp2", "image/jpeg2000", "image/x-jp2"),
    ("image/png", "image/x-png"),
    ("image/svg+xml", "image/svg"),
    ("image/tiff", "image/x-tiff"),
    ("image/vnd.adobe.photoshop", "image/x-photoshop", "application/x-photoshop", "image/psd"),
    ("image/vnd.zbrush.pcx", "image/x-pcx"),
    ("image/vnd.microsoft.icon", "image/x-icon", "image/ico"),
    ("image/x-portable-greymap", "image/x-portable-graymap"),
    ("image/x-sgi", "image/sgi", "image/x-rgb"),
    ("text/calendar", "text/x-vcalendar"),
    ("text/csv", "application/csv", "text/x-csv"),
    ("text/rtf", "application/rtf"),
    ("text/markdown", "text/x-markdown"),
    ("text/vcard", "text/x-vcard"),
    ("text/xml", "application/xml"),
    ("video/mp2p", "video/mpeg"),
    ("video/mp2t", "video/x-mpegts"),
    ("video/mp4", "video/x-m4v"),
    ("video/ogg", "application/ogg", "video/x-ogg"),
    ("video/quicktime", "video/x-quicktime"),
    ("video/vnd.avi", "video/x-msvideo", "video/avi", "video/msvideo"),
    ("video/x-flv", "video/flv"),
    ("video/x-matroska", "video/matroska"),
    ("video/x-ms-asf", "video/x-ms-wmv", "application/vnd.ms-asf"),
)
"""Names in one group mean the same type; the first is the registered or usual one. A name may be in
several groups (`application/ogg` is sound or film); groups with a common name are not merged."""

_SAME = {
    name: frozenset(other for group in ALIAS_GROUPS if name in group for other in group)
    for name in {name for group in ALIAS_GROUPS for name in group}
}


def same_types(mime: str) -> frozenset[str]:
    """All names of a type in lower case, including the given name."""
    name = mime.lower()
    return _SAME.get(name, frozenset((name,)))


MAX_PATTERN_CHARS = 4096
"""Longest list of patterns: enough for over a hundred types. Parsing and matching take a few ms at most."""

_CHAR = r"(?:\\.|[^\\\]-])"
"""A character of a class, perhaps escaped."""

_TOKEN = re.compile(
    rf"(?P<star>\*+)|(?P<any>\?)|\[(?P<negated>\^?+)(?P<ranges>(?:{_CHAR}(?:-{_CHAR})?)++)\]|\\?+(?P<char>.)",
    re.DOTALL,
)
_RANGE = re.compile(rf"(?P<low>{_CHAR})(?:-(?P<high>{_CHAR}))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Star:
    """`*`: any number of characters other than `/`, including zero."""


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
    """The pattern as sent by the client, without `!` and surrounding blanks; for messages."""
    tokens: Sequence[_Star | _CharClass]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse one pattern; the `ValueError` for a malformed pattern names the pattern."""
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
        # The positions in the name up to which the tokens so far can match. There is no backtracking, so no
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
        (match["low"][-1], (match["high"] or match["low"])[-1]) for match in _RANGE.finditer(token["ranges"])
    )
    return _CharClass(list(ends), negated=token["negated"] == "^")


@dataclass(frozen=True, slots=True)
class MimePatterns:
    """The types accepted by a job: no negated pattern may match, and one of the positive patterns must.

    Patterns are globs as in Go's `path.Match`: `*` and `?` stand for anything but `/`, `[a-z]` and `[^a-z]`
    for one character, and a backslash takes the next character literally. Case does not matter. A pattern
    matches a type if it matches any name of the type.
    """

    positive: tuple[_Glob, ...] = ()
    negative: tuple[_Glob, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a comma-separated list; an empty list accepts all types.

        Blanks around an element, and empty elements (a comma too many), are ignored.

        Raises:
            ValueError: one sentence for the client: a pattern is malformed, the list is too long or has
                control characters, or it has commas and `!` only.
        """
        if len(text) > MAX_PATTERN_CHARS:
            raise ValueError(f"the patterns are longer than {MAX_PATTERN_CHARS} characters")
        if any(not char.isprintable() for char in text):
            raise ValueError("the patterns have control or other invisible characters")
        positive: list[_Glob] = []
        negative: list[_Glob] = []
        for element in filter(None, map(str.strip, text.split(","))):
            negated = element.startswith("!")
            pattern = element.removeprefix("!").lstrip()
            if not pattern or pattern.startswith("!"):
                raise ValueError(f"malformed pattern {element!r}: one ! and then a type is expected")
            (negative if negated else positive).append(_Glob.parse(pattern))
        if text.strip() and not (positive or negative):
            raise ValueError(f"no pattern in {text!r}")
        return cls(tuple(positive), tuple(negative))

    def mismatch(self, mime: str) -> str | None:
        """`None` if the type is accepted, else the text of the callback's `error`.

        The text names the negated pattern that matched, or all positive patterns as given.
        """
        names = same_types(mime)
        for glob in self.negative:
            if glob.matches(names):
                return f"Expected mime-type not to be ({glob.text}), found ({mime})"
        if self.positive and not any(glob.matches(names) for glob in self.positive):
            expected = ",".join(glob.text for glob in self.positive)
            return f"Expected mime-type to be ({expected}), found ({mime})"
        return None
