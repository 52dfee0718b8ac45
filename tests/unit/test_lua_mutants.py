"""The changes of Lua scripts: what is changed, what stays, and which lines can go."""

from __future__ import annotations

import pytest

from lua_mutants import mutants


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("return a < b", ["return a <= b", ""]),
        ("local a = b == 'x' and c", ["local a = b ~= 'x' and c", "local a = b == 'x' or c"]),
        ("local n = 24 * 2.5", ["local n = 25 * 2.5", "local n = 24 / 2.5", "local n = 24 * 3.5"]),
        ("local n = -one - two", ["local n = -one + two"]),
        ("local text = 'a < 1' -- 2 == 3", []),
        ("f(a)", [""]),
        (
            "if a then\n  f()\nelse\n  g()\nend",
            ["if a then\n\nelse\n  g()\nend", "if a then\n  f()\nelse\n\nend"],
        ),
        ("f(\n  a,\n  b\n)", []),
        ("if a then return b end", [""]),
        ("if a then f() elseif b then g() end", [""]),
    ],
)
def test_changes(source: str, changed: list[str]) -> None:
    assert list(mutants(source)) == changed
