"""Glob patterns of an operator's allow-lists, compiled for matching."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from urllib.parse import unquote

from downloader.net import Url, UrlError, Use

Allows = Callable[[str], bool]
"""Whether a pattern of an allow-list matches the text."""


def anything(_text: str) -> bool:
    """The allow-list `["*"]`."""
    return True


def text_globs(patterns: Iterable[str]) -> Allows:
    """Match the whole text, case-sensitively, like `fnmatch.fnmatchcase`. An empty list matches nothing."""
    listed = list(patterns)
    if "*" in listed:
        return anything
    match = re.compile("|".join(map(translate, listed)) or "(?!)").match
    return lambda text: match(text) is not None


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_DECODINGS = 8
"""Most rounds of percent-decoding; no real URL needs as many."""

_SEPARATOR = re.compile(r"%(?:25)*(?:2f|5c)", re.IGNORECASE)
"""A slash or backslash, percent-encoded any number of times."""

_PARENT = re.compile(r"(?:^|/)(?=[\s.]*?\.\.)[\s.]*+(?:[/;]|$)")
"""A path segment that servers may read as `..`: with path parameters, or with blanks and dots. The pattern
does not backtrack, since a path may have thousands of dots."""


def url_globs(patterns: Iterable[str], use: Use) -> Allows:
    """Match URLs against patterns that are URLs too, the origin and the path separately.

    A `*` in the host therefore cannot match into the path, which the caller chooses freely. Origins are
    compared in their normal form without userinfo, paths after percent-decoding them until nothing is left to
    decode. A path that a server may read as containing `..` never matches. A URL with a query matches only a
    pattern that ends in `*`.
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
            match_origin(origin) and all(map(match_path, readings)) and (with_query or not query)
            for match_origin, match_path, with_query in rules
        )

    return allows


def destination_globs(patterns: Iterable[str]) -> Callable[[str, str], bool]:
    """Match a callback's type and destination against patterns `TYPE:GLOB`; `http:` may be omitted.

    Destinations that are URLs are matched as by `url_globs`, others as by `text_globs`.
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
    """Matchers for origin and path, and whether a query is allowed."""
    scheme, _, rest = pattern.partition("://")
    authority, _, path = rest.partition("/")
    scheme, host = scheme.lower(), authority.rpartition("@")[2].lower()
    origin = f"{scheme}://{host.removesuffix(_DEFAULT_PORTS.get(scheme, ':')).removesuffix(':')}"
    path = "/" + _decoded(path)
    return re.compile(translate(origin)).match, re.compile(translate(path)).match, path.endswith("*")


def _readings(path: str) -> list[str]:
    """The ways in which servers may read a path: encoded separators decoded, or as part of a name.

    Empty if one of them contains `..` or unprintable characters.
    """
    readings = [_decoded(path), _decoded(_SEPARATOR.sub("_", path))]
    leads_up = any(not text.isprintable() or _PARENT.search(text) for text in readings)
    return [] if leads_up else readings


def _decoded(path: str) -> str:
    """The path percent-decoded, with `/` for backslashes; if that fails a NUL, which never matches."""
    for _ in range(_DECODINGS):
        try:
            plain = unquote(path, errors="strict")
        except UnicodeDecodeError:
            break
        if plain == path:
            return plain.replace("\\", "/")
        path = plain
    return "\0"
