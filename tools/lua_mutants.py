"""One-token and one-line changes of a Lua script, for `tools/mutants.py`.

The mutation testers for Lua do not know the server that runs the scripts, so this one reads tokens by a
regular expression. It changes comparisons, arithmetic, `and`, `or`, `not`, booleans and numbers, and drops
lines that are a whole statement. Comments and strings stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

TOKEN = re.compile(
    r"(?P<comment>--[^\n]*)|(?P<string>'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")|(?P<number>\b\d+(?:\.\d+)?\b)"
    r"|(?P<word>[A-Za-z_]\w*)|(?P<operator>==|~=|<=|>=|\.\.\.?|[-+*/%<>=#(){}\[\],.;:])"
)

REPLACED = {
    "==": "~=",
    "~=": "==",
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "+": "-",
    "-": "+",
    "*": "/",
    "/": "*",
    "and": "or",
    "or": "and",
    "not": "",
    "true": "false",
    "false": "true",
}

OPENING, CLOSING = frozenset({"(", "{", "[", "function", "then", "do", "repeat"}), frozenset(")}]")
BLOCK_ENDS = frozenset({"end", "until", "elseif"})
"""`elseif` ends the block of the `then` before it; `else` begins one that the same `end` ends."""

NO_STATEMENT = frozenset({"local", "else", "elseif", "end", "until", "function"})
"""Lines that begin with one of these are not dropped: without them the script does not compile."""


def mutants(source: str) -> Iterator[str]:
    """Each changed script, in the order of the places."""
    tokens = [match for match in TOKEN.finditer(source) if match.lastgroup != "comment"]
    for before, token in pairwise(tokens):
        if (text := _replacement(before, token)) is not None:
            yield source[: token.start()] + text + source[token.end() :]
    for start, end in _statements(source, tokens):
        yield source[:start] + source[end:]


def _replacement(before: re.Match[str], token: re.Match[str]) -> str | None:
    """What takes the place of a token; None where it stays."""
    text = token.group()
    if token.lastgroup == "string":
        return None
    if token.lastgroup == "number":
        return str(float(text) + 1 if "." in text else int(text) + 1)
    if text == "-" and not re.fullmatch(r"[\w.]+|[)\]}]", before.group()):
        return None  # a sign
    return REPLACED.get(text)


def _statements(source: str, tokens: list[re.Match[str]]) -> Iterator[tuple[int, int]]:
    """Where each line that is a whole statement begins and ends."""
    lines: dict[int, list[str]] = {}
    for token in tokens:
        lines.setdefault(source.rfind("\n", 0, token.start()) + 1, []).append(token.group())
    in_brackets = 0
    for start, words in lines.items():
        brackets = sum((word in "([{") - (word in ")]}") for word in words if len(word) == 1)
        blocks = sum((word in OPENING) - (word in CLOSING) - (word in BLOCK_ENDS) for word in words)
        continued = words[0] in ("and", "or", "..", ")", "}", "]")
        if not in_brackets and brackets == blocks == 0 and words[0] not in NO_STATEMENT and not continued:
            end = source.find("\n", start)
            yield start, end if end != -1 else len(source)
        in_brackets += brackets
