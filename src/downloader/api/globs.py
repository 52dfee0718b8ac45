"""Glob patterns of a token's allow-lists, made ready for matching."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from urllib.parse import unquote

from downloader.net import Url, UrlError, Use

Allows = Callable[[str], bool]
"""Whether an allow-list has a pattern for the text."""

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_DECODINGS = 8
"""Rounds of percent-decoding that are followed; nobody encodes in good faith more often."""

_SEPARATOR = re.compile(r"%(?:25)*(?:2f|5c)", re.IGNORECASE)
"""A slash or backslash, percent-encoded any number of times."""

_CLIMBING = re.compile(r"(?:^|/)[\s.]*\.\.[\s.]*(?:[/;]|$)")
"""A part that some servers take for `..`: with path parameters behind it, or blanks and dots around it."""


def anything(_text: str) -> bool:
    """The allow-list `["*"]`."""
    return True


def text_globs(patterns: Iterable[str]) -> Allows:
    """Match the whole text, case-sensitively, as `fnmatch.fnmatchcase` does."""
    listed = list(patterns)
    if "*" in listed:
        return anything
    found = re.compile("|".join(map(translate, listed)) or "(?!)").match
    return lambda text: found(text) is not None


def url_globs(patterns: Iterable[str], use: Use) -> Allows:
    """Match URLs by patterns that are URLs too, origin and path each by its own part of the pattern.

    So no `*` for a part of a host reaches into the path, where anybody can write the allowed name. Origins
    are compared in their normal form without user and password, paths percent-decoded until nothing is left
    to decode. A path in which a server may read a `..` is not allowed, a query only where the pattern ends
    in `*`.
    """
    listed = list(patterns)
    if "*" in listed:
        return anything
    rules = [_rule(pattern) for pattern in listed if "://" in pattern]

    def allows(text: str) -> bool:
        try:
            url = Url.parse(text, use)
        except UrlError:
            return False
        path, _, query = url.target.decode().partition("?")
        origin, readings = f"{url.origin.scheme}://{url.origin.authority.decode()}", _readings(path)
        return bool(readings) and any(
            at(origin) and all(map(under, readings)) and (with_query or not query)
            for at, under, with_query in rules
        )

    return allows


def destination_globs(patterns: Iterable[str]) -> Callable[[str, str], bool]:
    """Match a callback's type and destination by patterns `TYPE:GLOB`, of which `http:` may be left out.

    Destinations that are URLs are matched as `url_globs` does, others as `text_globs` does.
    """
    by_kind: dict[str, list[str]] = defaultdict(list)
    for pattern in patterns:
        if pattern == "*":
            return lambda _kind, _destination: True
        kind, _, glob = pattern.partition(":")
        if glob.startswith("//"):
            kind, glob = "http", pattern
        by_kind[kind].append(glob)
    allowed = {kind: _destinations(kind, globs) for kind, globs in by_kind.items()}
    return lambda kind, destination: kind in allowed and allowed[kind](destination)


def _destinations(kind: str, globs: Sequence[str]) -> Allows:
    is_url, is_text = url_globs(globs, "callback"), text_globs(globs)
    if kind == "http" or is_text is anything:
        return is_url
    return lambda text: is_url(text) if "://" in text else is_text(text) and bool(_readings(text))


def _rule(pattern: str) -> tuple[Callable[[str], object], Callable[[str], object], bool]:
    """What an origin and a path have to match, and whether a query may follow."""
    scheme, _, rest = pattern.partition("://")
    authority, _, path = rest.partition("/")
    scheme, host = scheme.lower(), authority.rpartition("@")[2].lower()
    origin = f"{scheme}://{host.removesuffix(_DEFAULT_PORTS.get(scheme, ':')).removesuffix(':')}"
    path = "/" + _decoded(path)
    return re.compile(translate(origin)).match, re.compile(translate(path)).match, path.endswith("*")


def _readings(path: str) -> list[str]:
    """What servers may take a path for: decoded, and with encoded separators as parts of a name.

    Empty when one of them may leave the folder that the text shows.
    """
    found = [_decoded(path), _decoded(_SEPARATOR.sub("_", path))]
    climbs = any(not text.isprintable() or _CLIMBING.search(text) for text in found)
    return [] if climbs else found


def _decoded(path: str) -> str:
    """Without percent-encoding and backslashes; a NUL, which is not allowed, where there is no end to it."""
    for _ in range(_DECODINGS):
        try:
            plain = unquote(path, errors="strict")
        except UnicodeDecodeError:
            break
        if plain == path:
            return plain.replace("\\", "/")
        path = plain
    return "\0"
