"""How the audit judges licences; the rest of it needs a package index."""

from __future__ import annotations

import pytest

from audit import is_allowed


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MIT OR Proprietary", True),
        ("Proprietary OR MIT", True),
        ("MIT AND Proprietary", False),
        ("MIT AND Proprietary OR BSD-3-Clause", True),
        ("MIT AND (Proprietary OR BSD-3-Clause)", True),
        ("(MIT OR Apache-2.0) AND (AGPL-3.0-only)", False),
        ("GPL-2.0-only", False),
        ("MIT License", False),
        ("(MIT", False),
        ("MIT AND", False),
        ("", False),
    ],
)
def test_expressions(expression: str, *, allowed: bool) -> None:
    assert is_allowed(expression) is allowed
