"""What `downloader fetch` keeps in its hidden folder for the next run, without a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from downloader.cli.fetch_folder import HIDDEN, OutputFolder, Record, open_output
from downloader.errors import ConfigError
from downloader.oneshot import FetchResult

URL = "http://h/a.txt"

WRONG_TYPES = json.dumps({"url": [], "name": "a", "size": 1, "sha256": "", "mime_type": "", "mtime_ns": 1})


@pytest.fixture
def output(tmp_path: Path) -> Iterator[OutputFolder]:
    with open_output(tmp_path) as opened:
        yield opened


@pytest.fixture
def file(output: OutputFolder) -> Path:
    """A complete file that is in the record."""
    path = output.folder / "a.txt"
    add(output, path, b"hello")
    return path


def add(output: OutputFolder, path: Path, content: bytes, *, url: str = URL) -> None:
    path.write_bytes(content)
    Record(output).add(
        FetchResult(
            index=0,
            url=url,
            ok=True,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            path=str(path),
        )
    )


def intact(output: OutputFolder, url: str = URL) -> bool:
    return Record(output).intact(url) is not None


def test_a_recorded_file_is_intact_with_its_time_or_its_digest(output: OutputFolder, file: Path) -> None:
    assert intact(output)
    os.utime(file, (1, 1))
    assert intact(output), "it was copied"
    file.write_bytes(b"jello")
    os.utime(file, (1, 1))
    assert not intact(output), "it was changed"
    file.write_bytes(b"hello, too")
    assert not intact(output)
    file.unlink()
    assert not intact(output)
    assert not intact(output, "http://h/other")


def test_the_last_line_of_a_url_counts(output: OutputFolder, file: Path) -> None:
    add(output, file, b"changed at its origin")
    assert intact(output)


def test_a_truncated_line_affects_no_other(output: OutputFolder, file: Path) -> None:
    text = output.record.read_text()
    output.record.write_text(text + text.strip()[:-20])
    add(output, output.folder / "b.txt", b"b", url="http://h/b.txt")
    assert intact(output)
    assert intact(output, "http://h/b.txt")


@pytest.mark.parametrize("line", ["7", "null", "{}", "[]", "\udcff", "[" * 9999, WRONG_TYPES])
def test_an_invalid_line_is_ignored(output: OutputFolder, file: Path, line: str) -> None:
    with output.record.open("ab") as record:
        record.write(line.encode(errors="surrogateescape") + b"\n")
    assert intact(output)


@pytest.mark.row("H15")
@pytest.mark.parametrize(
    "changed",
    [
        {"name": "sub/../a.txt"},
        {"name": ".."},
        {"name": ""},
        {"name": "a\0"},
        {"name": "\ud800"},
        {"name": 7},
    ],
)
def test_a_hostile_record_is_ignored(output: OutputFolder, file: Path, changed: dict[str, object]) -> None:
    """Whoever gave the user the folder must not choose which other file counts as there."""
    (output.folder / "sub").mkdir()
    fields = json.loads(output.record.read_text())
    output.record.write_text(json.dumps(fields))
    assert intact(output)
    output.record.write_text(json.dumps(fields | changed))
    assert not intact(output)


@pytest.mark.row("H15")
def test_a_link_for_a_record_leads_nowhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / HIDDEN).mkdir()
    (tmp_path / HIDDEN / "complete.jsonl").symlink_to(victim)
    with open_output(tmp_path) as output:
        with pytest.raises(ConfigError, match=r"complete\.jsonl cannot be read: Too many levels of symbolic"):
            Record(output)
        output.record.unlink()
        known = Record(output)
        output.record.symlink_to(victim)
        with pytest.raises(OSError, match="symbolic"):
            known.add(FetchResult(index=0, url=URL, ok=True, path=str(victim)))
    assert victim.read_text() == "mine"


@pytest.mark.row("H15")
def test_pipes_keep_nobody_waiting(output: OutputFolder) -> None:
    """Of an output folder that comes from somebody else."""
    pipe, stored = output.folder / "a", output.folder / "stored"
    add(output, pipe, b"")
    pipe.unlink()
    os.mkfifo(pipe)
    assert not intact(output)
    stored.write_bytes(b"")
    assert output.place(stored, url="http://h/a").name == "a (2)"
    known = Record(output)
    output.record.unlink()
    os.mkfifo(output.record)
    assert not intact(output)
    with pytest.raises(OSError, match="No such device"):
        known.add(FetchResult(index=0, url=URL, ok=True, path=str(output.folder / "a (2)")))


@pytest.mark.row("H15")
@pytest.mark.parametrize("said", ["../victim", "/victim", "..", "a/../../victim"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, said: str) -> None:
    with open_output(tmp_path / "out") as output:
        stored = output.hidden / "stored"
        stored.write_bytes(b"x")
        placed = output.place(stored, url="http://h/a", suggested=said)
        assert placed.parent.resolve() == output.folder.resolve()


@pytest.mark.row("H15")
def test_a_link_for_the_storage_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "out" / HIDDEN).mkdir(parents=True)
    (tmp_path / "out" / HIDDEN / "files").symlink_to(tmp_path / "victim")
    with open_output(tmp_path / "out") as output:
        assert not output.storage_dir.exists()
    assert (tmp_path / "victim").exists()


def test_a_second_run_at_the_same_time_is_refused(tmp_path: Path, output: OutputFolder) -> None:
    output.storage_dir.mkdir()
    with (
        pytest.raises(ConfigError, match=r"^another run is fetching into the folder '/"),
        open_output(tmp_path),
    ):
        pytest.fail("it was opened")
    assert output.storage_dir.exists(), "the first one is still using it"


def test_leftovers_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    (tmp_path / HIDDEN / "files" / "unnamed").mkdir(parents=True)
    with open_output(tmp_path):
        assert not list((tmp_path / HIDDEN).iterdir())


def test_a_file_with_the_same_content_is_the_file(output: OutputFolder, file: Path) -> None:
    stored = output.hidden / "stored"
    stored.write_bytes(b"hello")
    assert output.place(stored, url=URL) == file
    assert not stored.exists()
    stored.write_bytes(b"jello")
    assert output.place(stored, url=URL).name == "a (2).txt"
    assert file.read_bytes() == b"hello"
    stored.write_bytes(b"hello")
    assert output.place(stored, url=URL).name == "a (3).txt", "in one run each file gets its own"


def test_parts_with_a_note_are_counted(output: OutputFolder) -> None:
    output.spool_dir.mkdir()
    for name, size in (("p", 3), ("q", 4)):
        (output.spool_dir / name).write_bytes(b"x" * size)
    (output.spool_dir / "p.json").write_text("{}")
    assert output.partial_sizes() == [3]
