"""Whether bytes are JSON, by libmagic's rules: lenient, with a bound on the depth."""

from __future__ import annotations

import re
from enum import Enum

JUDGED_BYTES = 4096
"""How far a file is read: more would cost time and hardly ever change the verdict."""

MAX_DEPTH = 251
"""Nested arrays and objects; deeper ones are no JSON for libmagic either."""

_TOKEN_BYTES = 6
r"""The longest that only counts as a whole: `\u00e9`."""

_S = rb"[ \t\r\n]*+"
_OPEN_STRING = rb'"(?:[^"\\\0]++|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+'
_SCALARS = rb"(?:true|false|null|-?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?)"
_FLAT = rb"(?:" + _OPEN_STRING + rb'"|' + _SCALARS + rb")" + _S + b"," + _S

_BLANK = re.compile(_S)
_STRING = re.compile(_OPEN_STRING)
_SCALAR = re.compile(_SCALARS)
_QUOTE, _COMMA, _COLON = b'",:'
_OPENING = b"[{"
_OBJECT = _OPENING[1]
_CLOSING = dict(zip(_OPENING, b"]}", strict=True))
_RUNS = {
    _OPENING[0]: re.compile(rb"(?:" + _FLAT + rb")*+"),
    _OBJECT: re.compile(rb"(?:" + _OPEN_STRING + rb'"' + _S + b":" + _S + _FLAT + rb")*+"),
}
"""Members without brackets, each with its comma: skipped in one step, for speed only."""


class _CutError(Exception):
    """The bytes end before the value does."""


class _WrongError(Exception):
    """No JSON; the argument is the offset of the byte at fault."""


class Json(Enum):
    """The two kinds of JSON files, by their media types."""

    DOCUMENT = "application/json"
    """One array or object."""
    LINES = "application/x-ndjson"
    """Several values one after the other; libmagic looks at two."""


def judge_json(data: bytes, *, cut: bool) -> Json | None:
    """Tell whether a file is JSON by its first `JUDGED_BYTES`.

    `cut`: the file goes on behind `data`. If the file is longer than the bytes that are examined, it counts
    as JSON if these are a prefix of valid JSON.
    """
    cut = cut or len(data) > JUDGED_BYTES
    data = data[:JUDGED_BYTES]
    at = _skip_blank(data, 0)
    first = data[at : at + 1]
    if first not in (b"[", b"{"):
        return None
    kind = Json.DOCUMENT
    try:
        at = _skip_blank(data, _value_end(data, at))
        if at == len(data):
            return kind
        if data[at : at + 1] != first:
            return None
        kind = Json.LINES
        _value_end(data, at)
    except _CutError:
        return kind if cut else None
    except _WrongError as wrong:
        return kind if cut and wrong.args[0] + _TOKEN_BYTES > len(data) else None
    return kind


def _value_end(data: bytes, at: int) -> int:
    """The offset behind the value at an offset. As in libmagic a comma may stand before a closing bracket."""
    opened = bytearray()
    while True:
        # A value is due; inside brackets it may be missing.
        at, char = _skip_run(data, at, opened)
        if not opened or char != _CLOSING[opened[-1]]:
            if len(opened) >= MAX_DEPTH:
                raise _WrongError(at)
            if opened and opened[-1] == _OBJECT:
                at, char = _behind_key(data, at)
            if char in _OPENING:
                opened.append(char)
                at += 1
                continue
            at = _scalar_end(data, at)
            if not opened:
                return at
            at, char = _next(data, at)
        while char == _CLOSING[opened[-1]]:
            opened.pop()
            if not opened:
                return at + 1
            at, char = _next(data, at + 1)
        if char != _COMMA:
            raise _WrongError(at)
        at += 1


def _skip_run(data: bytes, at: int, opened: bytearray) -> tuple[int, int]:
    """Offset and code of the next byte that is neither blank nor in a member without brackets."""
    at = _skip_blank(data, at)
    run = _RUNS[opened[-1]].match(data, at) if opened and len(opened) < MAX_DEPTH else None
    return _next(data, run.end() if run else at)


def _skip_blank(data: bytes, at: int) -> int:
    match = _BLANK.match(data, at)
    return match.end() if match else at


def _next(data: bytes, at: int) -> tuple[int, int]:
    """Offset and code of the next byte that is not blank."""
    at = _skip_blank(data, at)
    if at == len(data):
        raise _CutError
    return at, data[at]


def _behind_key(data: bytes, at: int) -> tuple[int, int]:
    """Pass over a member's name and its colon, to its value."""
    if data[at] != _QUOTE:
        raise _WrongError(at)
    at, char = _next(data, _scalar_end(data, at))
    if char != _COLON:
        raise _WrongError(at)
    return _next(data, at + 1)


def _scalar_end(data: bytes, at: int) -> int:
    match = _STRING.match(data, at)
    if match:
        end = match.end()
        if end == len(data):
            raise _CutError
        if data[end] != _QUOTE:
            raise _WrongError(end)
        return end + 1
    match = _SCALAR.match(data, at)
    if not match:
        raise _WrongError(at)
    return match.end()
