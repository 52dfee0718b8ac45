"""The design page agrees with the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/design/index.md").read_text("utf-8")


def test_its_layers_are_those_that_lint_checks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    assert "```text\n" + "\n".join(layers) + "\n```" in PAGE


def test_each_part_is_documented_and_exists() -> None:
    package = ROOT / "src/downloader"
    parts = {
        path.stem
        for path in package.iterdir()
        if not path.name.startswith("_") and (path.is_dir() or path.suffix == ".py")
    }
    told = {
        name
        for line in PAGE.splitlines()
        if line.startswith("| `downloader")
        for name in re.findall(r"`downloader\.(\w+)`", line.split("|")[1])
    }
    assert told == parts
