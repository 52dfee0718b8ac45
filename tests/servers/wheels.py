"""Wheels of folders, and virtual environments with only the installed wheels.

With uv where it is to be had, which takes seconds, and with pip otherwise.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

INSTALL_S = 300.0
"""From a package index without a cache."""


def uv() -> list[str] | None:
    """How to call uv."""
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    found = shutil.which("uv")
    return None if found is None else [found]


def run(*words: str | Path, cwd: Path | None = None) -> str:
    """Run a command without the settings of this process's environment; returns standard output."""
    ours = ("VIRTUAL_ENV", "PYTHONPATH", "DOWNLOADER_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=INSTALL_S, check=False
    )
    assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def fresh_environment(folder: Path) -> Path:
    """A new empty virtual environment; returns the folder of the programs."""
    tool = uv()
    if tool is not None:
        run(*tool, "venv", "--python", sys.executable, folder)
    else:
        run(sys.executable, "-m", "venv", folder)
    return folder / "bin"


def shared_environment(
    temporary: pytest.TempPathFactory, name: str, fill: Callable[[Path, Path], None]
) -> Path:
    """A virtual environment that all workers of a test run share; returns the folder of the programs.

    The first worker that needs it calls `fill` with the folder of the programs and a folder for wheels.
    """
    base = temporary.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    filled, programs = folder / "filled", folder / "venv" / "bin"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not filled.exists():
            fresh_environment(folder / "venv")
            fill(programs, folder)
            filled.touch()
    return programs


def build_wheel(programs: Path, source: Path, out: Path) -> Path:
    """The wheel of a project's folder, in `out`."""
    before = set(out.glob("*.whl"))
    tool = uv()
    if tool is not None:
        run(*tool, "build", "--wheel", "--out-dir", out, source)
    else:
        run(programs / "python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", out, source)
    [wheel] = set(out.glob("*.whl")) - before
    return wheel


def install(programs: Path, *requirements: str | Path) -> None:
    """Install into the environment."""
    tool = uv()
    if tool is not None:
        run(*tool, "pip", "install", "--python", programs / "python", *requirements)
    else:
        run(programs / "python", "-m", "pip", "install", "--quiet", *requirements)
