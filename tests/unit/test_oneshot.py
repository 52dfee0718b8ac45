import subprocess
import sys
from pathlib import Path

import pytest

from downloader.cli.fetch_folder import file_name, open_output
from downloader.cli.fetch_report import result_fields
from downloader.errors import ConfigError, StorageError
from downloader.oneshot import FetchResult, check_url


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/a/b.png?x=1#f", "b.png"),
        ("https://h/%C3%A4%20b.png", "ä b.png"),
        ("https://h/..%2F..%2Fetc%2Fpasswd", "_.._etc_passwd"),
        ("https://h/..", "index"),
        ("https://h/.bashrc", "bashrc"),
        ("https://h/-rf", "rf"),
        ("https://h/a%00b%1b%0a.png", "ab.png"),
        ("https://h/gpj%E2%80%AEexe.png", "gpjexe.png"),
        ("https://h/%ff.png", "\ufffd.png"),
        ("https://h/a%5Cb%3A.txt", "a_b_.txt"),
        ("https://h/CON", "_CON"),
        ("https://h/nul.tar.gz", "_nul.tar.gz"),
        ("https://h/com1.txt", "_com1.txt"),
        ("https://h/console.txt", "console.txt"),
        ("https://h/a.%20", "a"),
        ("https://h/", "index"),
        ("https://h", "index"),
        ("https://h/a/;.png", ";.png"),
    ],
)
def test_file_name(url: str, name: str) -> None:
    assert file_name(url) == name


def test_file_name_without_one_has_the_types_extension() -> None:
    assert file_name("https://h/", mime_type="text/html") == "index.html"
    assert file_name("https://h/", mime_type="no/such") == "index"


def test_the_name_that_the_origin_gives_is_preferred() -> None:
    assert file_name("https://h/get?id=7") == "get"
    assert file_name("https://h/get?id=7", suggested="a.pdf") == "a.pdf"
    assert file_name("https://h/?id=7", suggested="a.pdf", mime_type="text/html") == "a.pdf"


def test_long_names_keep_their_extension_and_whole_characters() -> None:
    name = file_name("https://h/" + "%C3%A4" * 500 + ".tar.gz")
    assert len(name.encode()) <= 200
    assert name.endswith("ä.tar.gz")
    assert len(file_name("https://h/" + "a" * 500).encode()) == 200
    assert len(file_name("https://h/a." + "b" * 500).encode()) == 200


@pytest.mark.parametrize(
    "url", ["", "h/x", "ftp://h/", "http:///x", "http://h:0/", "http://h:99999/", "http://h /", "http://h/\n",
            "http://h\\@evil/", "http://[::1/", "http://h/\u202e", "file:///etc/passwd"]
)  # fmt: skip
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        check_url(url)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "stored"
    path.write_bytes(b"new")
    return path


def test_nothing_is_overwritten(tmp_path: Path, stored: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"old")
    (folder / "a (2).png").symlink_to("nowhere")
    with open_output(folder) as output:
        placed = output.place(stored, url="http://h/a.png")
    assert placed == folder / "a (3).png"
    assert placed.read_bytes() == b"new"
    assert (folder / "a.png").read_bytes() == b"old"
    assert not stored.exists()
    assert sorted(path.name for path in folder.iterdir()) == ["a (2).png", "a (3).png", "a.png"]


def test_many_files_of_one_name(tmp_path: Path) -> None:
    with open_output(tmp_path) as output:
        for number in range(300):
            stored = output.hidden / "stored"
            stored.write_bytes(str(number).encode())
            output.place(stored, url="http://h/a.tar.gz")
        stored.unlink(missing_ok=True)
    assert len(list(tmp_path.iterdir())) == 300
    assert (tmp_path / "a (300).tar.gz").read_bytes() == b"299"


def test_a_file_system_without_hard_links_works(tmp_path: Path, other_device: Path, stored: Path) -> None:
    elsewhere = other_device / "stored"  # no link can be made to it
    elsewhere.write_bytes(b"x")
    with open_output(tmp_path / "out") as output:
        with pytest.raises(StorageError, match=r"a.png cannot be placed in .*: Invalid cross-device link"):
            output.place(elsewhere, url="http://h/a.png")
        assert not (tmp_path / "out" / "a.png").exists(), "the reserved name is given back"
        (tmp_path / "out" / "a").write_bytes(b"")
        assert output.place(stored, url="http://h/a").name == "a (2)"


def test_a_run_that_completes_no_file_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with open_output(tmp_path / "new" / "out") as output:
            output.storage_dir.mkdir()
            (output.storage_dir / "unnamed").write_bytes(b"whole")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "x", Path("a\0b")):
        with pytest.raises(ConfigError, match=r"^the folder .* cannot be written: "), open_output(path):
            pytest.fail("it was opened")


def test_json_has_the_same_fields_for_every_file() -> None:
    good = FetchResult(index=0, url="u", ok=True, path="p", size=3, seconds=0.12345)
    bad = FetchResult(index=1, url="u", ok=False, error="e", error_code="dns")
    assert result_fields(good).keys() == result_fields(bad).keys()
    assert result_fields(good)["seconds"] == 0.123


def test_a_fetch_imports_no_part_of_the_service() -> None:
    """These would take longer to import than a thousand files take to fetch."""
    code = (
        "import sys, downloader.cli.fetch, downloader.cli.fetch_report, downloader.oneshot\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, *sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "downloader.fetch" in loaded
    assert not loaded & {"pydantic", "structlog", "redis", "quart", "hypercorn", "trio_asyncio"}
    assert "rich.console" not in loaded
