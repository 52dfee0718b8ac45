"""Request bodies as JSON, strictly: what two parsers could read differently is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from downloader.api._problems import Refused, bad_request


def parse_object(body: bytes) -> dict[str, Any]:
    """The body's object.

    Raises:
        Refused: 400 with code `bad_encoding` (not UTF-8, lone surrogates), `bad_json`, `not_an_object`,
            `duplicate_key`, `bad_number` (NaN, infinities, what overflows a double) or `too_deep`.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise bad_request("bad_encoding", "The body is not UTF-8.") from None
    try:
        value = _DECODER.decode(text)
        if b"\\ud" in body or b"\\uD" in body:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise _too_deep() from None
    except UnicodeEncodeError:
        raise bad_request("bad_encoding", "The body has half of a surrogate pair.") from None
    except ValueError:  # malformed, or an integer of thousands of digits
        raise bad_request("bad_json", "The body is not well-formed JSON.") from None
    if not isinstance(value, dict):
        raise bad_request("not_an_object", "The body must be a JSON object.")
    return value


def member_text(body: bytes, name: str) -> str:
    """The text of one member's value, as the client wrote it.

    Args:
        body: what `parse_object` has taken.
        name: a key of its object.

    Raises:
        Refused: 400, `too_deep`: it was just short of that before, and is called from deeper now.
    """
    text = body.decode("utf-8")
    try:
        return _member_text(text, name)
    except RecursionError:
        raise _too_deep() from None


def _member_text(text: str, name: str) -> str:
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


def _too_deep() -> Refused:
    return bad_request("too_deep", "The body is nested too deeply.")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise bad_request("duplicate_key", "A key stands twice in one object.")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise bad_request("bad_number", "A number is out of range.")
    return value


def _no_constant(_text: str) -> NoReturn:
    raise bad_request("bad_number", "NaN and Infinity are not JSON.")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)
