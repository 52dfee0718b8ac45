"""The plugins page, typed as written: the package is installed, tested, and delivers a callback."""

from __future__ import annotations

import ast
import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from downloader import notify, storage, testing
from readme import running, wait_for_port
from servers.pages import ANSWER_S, FILE, SHELL, line_of, sh, write

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "write-a-plugin.md").read_text("utf-8")

# It installs from a package index, with pip, as it says.
pytestmark = [pytest.mark.slow, pytest.mark.plugin, pytest.mark.fault, pytest.mark.timeout(900)]


@pytest.mark.usefixtures("alone")
def test_the_page_teaches_to_write_a_notifier_and_a_storage(tmp_path: Path) -> None:
    (tmp_path / "downloader").symlink_to(ROOT)
    folder, logs = tmp_path / "downloader-hook", tmp_path / "logs"
    folder.mkdir()
    logs.mkdir()
    notifier, second = PAGE.split("\n## Write a storage\n")
    install, new, test, plugins, run, receiver, origin, submit = SHELL.findall(notifier)

    sh(install, folder)
    sh(new, folder)
    write(folder, notifier)
    assert re.search(r"^\d+ passed", sh(test, folder), re.MULTILINE)
    assert re.search(r"\bhook\b.*\bnotifier\b", sh(plugins, folder))
    with ExitStack() as stack:
        for name, command, port in (
            ("run", run, 8123),
            ("receiver", receiver, 9123),
            ("origin", origin, 9124),
        ):
            process = stack.enter_context(running(command, folder, logs / name))
            wait_for_port(port, process, seconds=ANSWER_S)
        answer = sh(submit, folder)
        assert '"id"' in answer, answer
        job_id = json.loads(answer)["id"]
        callback = json.loads(line_of(logs / "receiver", "{"))
        assert (callback["job_id"], callback["success"]) == (job_id, True)
        assert callback["size"] == (folder / "pyproject.toml").stat().st_size

    write(folder, second)
    [test_both] = SHELL.findall(second)
    assert re.search(r"^\d+ passed", sh(test_both, folder), re.MULTILINE)
    assert re.search(r"\bdav\b.*\bstorage\b", sh(plugins, folder))
    sh(f"{sys.executable} -m mypy --strict *.py", folder)


def test_the_page_has_no_block_that_nobody_tries() -> None:
    blocks = len(re.findall(r"^```\w", PAGE, re.MULTILINE))
    assert blocks == len(FILE.findall(PAGE)) + len(SHELL.findall(PAGE))
    reference = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    assert re.findall(r"^```(?!\{generated\}).+", reference, re.MULTILINE) == []


def test_the_reference_names_each_type_that_plugins_use() -> None:
    """Those that the built-in plugins import, and those of the suites."""
    reference = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    faces = {face.__name__: face for face in (notify, storage, testing)}
    used = {
        (node.module, name.name)
        for path in (ROOT / "src" / "downloader_plugins").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in faces
        for name in node.names
    } | {(testing.__name__, name) for name in testing.__all__}
    types = {name for module, name in used if name[:1].isupper() and hasattr(faces[module], name)}
    assert "Payload" in types
    assert [name for name in sorted(types) if f"`{name}`" not in reference] == []
