"""A strict JSON parser for request bodies, which refuses texts that two parsers may read differently."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NoReturn

from downloader.api.problems import refused

MAX_DEPTH = 100
"""Levels of nesting. Python's own limit depends on its version and on the stack."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""A string, also an unterminated one, so that each character is scanned only once."""

_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_OTHER_BYTES = bytes(set(range(256)) - _STEPS.keys())


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a body that is a JSON object.

    Raises:
        Refused: 400 with code `bad_encoding` (not UTF-8, lone surrogates), `bad_json`, `not_an_object`,
            `duplicate_key`, `bad_number` (NaN, infinities, what overflows a double) or `too_deep`.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise refused("bad_encoding", "The body is not UTF-8.") from None
    if _is_deep(body):
        raise refused("too_deep")
    try:
        value = _DECODER.decode(text)
        if b"\\ud" in body or b"\\uD" in body:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise refused("bad_encoding", "The body has half of a surrogate pair.") from None
    except ValueError:  # malformed, or an integer of thousands of digits
        raise refused("bad_json") from None
    if not isinstance(value, dict):
        raise refused("not_an_object")
    return value


def member_text(body: bytes, name: str) -> str:
    """The JSON text of one member's value, as received, of a body that `parse_object` accepts."""
    text = body.decode("utf-8")
    at = _skip(text, text.index("{") + 1)
    while True:
        key, at = _DECODER.raw_decode(text, at)
        start = _skip(text, text.index(":", at) + 1)
        _, at = _DECODER.raw_decode(text, start)
        if key == name:
            return text[start:at]
        at = _skip(text, text.index(",", at) + 1)


def _skip(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def _is_deep(body: bytes) -> bool:
    """Whether the JSON is nested deeper than `MAX_DEPTH`; arbitrary for malformed JSON."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRING.sub(b"", body).translate(None, _OTHER_BYTES)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise refused("duplicate_key")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise refused("bad_number", "A number is out of range.")
    return value


def _no_constant(_text: str) -> NoReturn:
    raise refused("bad_number", "NaN and Infinity are not JSON.")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)
