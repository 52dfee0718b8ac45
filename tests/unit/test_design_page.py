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


def test_the_files_and_functions_on_the_way_of_one_job_exist() -> None:
    rows = re.findall(
        r"^\| `([\w/.]+)` \| (.*?) \|", (ROOT / "docs/design/one-job.md").read_text("utf-8"), re.MULTILINE
    )
    assert rows
    for name, functions in rows:
        path = ROOT / "src" / ("" if name.startswith("downloader_plugins/") else "downloader") / name
        text = path.read_text("utf-8")
        for function in re.findall(r"`(\w+)`", functions):
            assert re.search(rf"\b(?:def|class|function) {function}\b", text), f"{name}: {function}"
