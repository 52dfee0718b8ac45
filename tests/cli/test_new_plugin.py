"""`downloader new-plugin`: the names in the package. tests/plugins/test_plugins_page.py runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from downloader.cli import main

FILES = ["downloader_wire_7.py", "pyproject.toml", "test_wire_7.py"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    assert main(["new-plugin", "wire_7", str(tmp_path)]) == 0
    return tmp_path


def test_it_writes_a_package_with_the_name(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.name for path in package.iterdir()) == FILES
    text = "".join(path.read_text("utf-8") for path in package.iterdir())
    assert not {word for word in ("hook", "web") if word in text.lower()}
    assert 'wire_7 = "downloader_wire_7:open_wire_7"' in text
    assert main(["new-plugin", "wire_7", str(package)]) == 2
    assert "File exists" in capsys.readouterr().err


def test_it_writes_all_files_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_wire_7.py").write_text("mine", "utf-8")
    assert main(["new-plugin", "wire_7", str(tmp_path)]) == 2
    assert "test_wire_7.py: File exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_wire_7.py"]


def test_another_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-plugin", "no-good", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
