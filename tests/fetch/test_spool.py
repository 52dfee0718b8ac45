"""The spool: what crashes and strangers leave in it, what the disk does to it, how little memory it saves."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from downloader.errors import ConfigError
from downloader.fetch import disk_used_percent
from downloader.fetch.spool import open_spool
from downloader.model import ErrorCode, Verdict
from servers.disk_calls import disk_calls
from servers.lab import Lab, open_lab
from servers.origin import Origin, body_of
from servers.processes import origin_process

MIB = 1024 * 1024


def _folders(root: Path) -> set[Path]:
    return set(root.iterdir())


async def test_the_folder_goes_with_its_owner(tmp_path: Path) -> None:
    root = tmp_path / "new" / "spool"
    async with open_spool(root) as spool:
        name, descriptor = spool.create()
        os.close(descriptor)
        assert (spool.path / name).exists()
        assert (root.stat().st_mode & 0o777, spool.path.stat().st_mode & 0o777) == (0o700, 0o700)
        assert (spool.path / name).stat().st_mode & 0o777 == 0o600
    assert list(root.iterdir()) == []


async def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the spool: "):
        async with open_spool(tmp_path / "file"):
            pass


@pytest.mark.row("H22")
async def test_a_root_that_is_a_link_is_refused_and_one_open_to_others_is_closed(tmp_path: Path) -> None:
    root, link = tmp_path / "spool", tmp_path / "link"
    root.mkdir()
    root.chmod(0o777)
    link.symlink_to(root)
    with pytest.raises(ConfigError, match=r"the spool: .*/link is a symbolic link"):
        async with open_spool(link):
            pass
    assert list(root.iterdir()) == []
    async with open_spool(root):
        assert root.stat().st_mode & 0o777 == 0o700


async def test_removing_twice_is_no_error(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        name, descriptor = spool.create()
        os.close(descriptor)
        spool.remove(name)
        spool.remove(name)


@pytest.mark.row("H15")
async def test_a_file_that_was_planted_is_not_written_to(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        (spool.path / "part").write_bytes(b"planted")
        with pytest.raises(FileExistsError):
            spool.create("part")


@pytest.mark.slow
async def test_the_folder_of_a_crashed_instance_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    script = f"""
import os, signal, trio
from pathlib import Path
from downloader.fetch.spool import open_spool
async def main():
    async with open_spool(Path({str(tmp_path)!r})) as spool:
        for _ in range(3):
            spool.create()
        os.kill(os.getpid(), signal.SIGKILL)
trio.run(main)
"""
    async with open_spool(tmp_path) as living:
        done = await trio.run_process([sys.executable, "-c", script], check=False)
        assert done.returncode == -signal.SIGKILL
        (dead,) = _folders(tmp_path) - {living.path}
        assert len(list(dead.iterdir())) == 3
        name, descriptor = living.create()
        os.close(descriptor)
        async with open_spool(tmp_path) as third:
            assert _folders(tmp_path) == {living.path, third.path}
            assert (living.path / name).exists()


@pytest.mark.parametrize(("module", "step"), [(os, "open"), (fcntl, "flock")])
async def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str
) -> None:
    real = getattr(module, step)
    swept: list[Path] = []

    def sweep_first(*args: Any, **more: Any) -> Any:
        if not swept and (folders := _folders(tmp_path)):
            swept.extend(folders)
            folders.pop().rmdir()
        return real(*args, **more)

    monkeypatch.setattr(module, step, sweep_first)
    async with open_spool(tmp_path) as spool:
        assert _folders(tmp_path) == {spool.path}
    assert len(swept) == 1


async def test_the_sweep_follows_and_touches_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    root = tmp_path / "root"
    root.mkdir()
    (root / f"spool-{'a' * 16}").symlink_to(outside)
    (root / f"spool-{'b' * 16}").write_text("a file")
    dead = root / f"spool-{'c' * 16}"
    (dead / "folder").mkdir(parents=True)
    (dead / "folder" / "kept").write_text("x")
    (dead / "link").symlink_to(outside / "precious")
    (root / "NSb").mkdir()
    (root / "NSb" / "stored").write_text("x")
    async with open_spool(root):
        assert (outside / "precious").read_text() == "x"
        assert (root / f"spool-{'b' * 16}").exists()
        assert (root / "NSb" / "stored").exists()
        assert (dead / "folder" / "kept").exists()
        assert not (dead / "link").is_symlink()


@pytest.mark.row("H15")
async def test_a_planted_symlink_leads_nowhere(tmp_path: Path, origin: Origin) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    async with open_lab(tmp_path) as lab:
        (own,) = lab.spool.iterdir()
        own.rename(tmp_path / "moved")
        own.symlink_to(outside)
        outcome = await lab.fetch(origin.url("/bytes/3000000"))
        assert (outcome.verdict, outcome.error_code) == (Verdict.RELEASE, ErrorCode.STORAGE)
        assert list(outside.iterdir()) == []
        assert list((tmp_path / "moved").iterdir()) == []
        assert lab.files() == []
        own.unlink()
        (tmp_path / "moved").rename(own)
        assert (await lab.fetch(origin.url("/bytes/3000000"))).verdict is Verdict.SUCCEEDED


async def test_a_spool_that_has_been_deleted_is_our_own_fault(lab: Lab, origin: Origin) -> None:
    (own,) = lab.spool.iterdir()
    shutil.rmtree(own)
    for size in (1_100_000, 3_000_000):
        outcome = await lab.fetch(origin.url(f"/bytes/{size}"), attempts=9)
        assert (outcome.verdict, outcome.error_code) == (Verdict.RELEASE, ErrorCode.STORAGE)
        assert outcome.error == "our own disk: No such file or directory"
        assert outcome.response_code == 200


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 1.5 MiB: a full disk, as far as `write` can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB // 2, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.row("F2")
async def test_a_spool_file_is_synced_before_it_is_published(
    lab: Lab, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = disk_calls(monkeypatch)
    await lab.fetch(origin.url("/bytes/3000000"))
    assert lab.stored() == body_of(3_000_000)
    (first, file), (second, folder), *_ = calls
    assert (first, second) == ("fsync", "rename")
    assert file.parent == folder
    assert folder.parent == lab.spool


@pytest.mark.parametrize("size", [1_700_000, 9_000_000])
@pytest.mark.row("F13")
async def test_a_disk_that_is_full(lab: Lab, origin: Origin, small_files: None, size: int) -> None:
    outcome = await lab.fetch(origin.url(f"/bytes/{size}"))
    assert (outcome.verdict, outcome.error_code) == (Verdict.RELEASE, ErrorCode.STORAGE)
    assert outcome.error == f"our own disk: {os.strerror(errno.EFBIG)}"
    assert lab.spooled() == []


async def test_how_full_the_disk_is(tmp_path: Path) -> None:
    assert 0 < disk_used_percent(tmp_path) <= 100
    with pytest.raises(OSError, match="No such file"):
        disk_used_percent(tmp_path / "none")


# memory


async def _peak(lab: Lab, url: str) -> int:
    tracemalloc.start()
    try:
        assert (await lab.fetch(url)).verdict is Verdict.SUCCEEDED
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.row("H12")
async def test_memory_is_flat(lab: Lab) -> None:
    async with origin_process() as base:
        await _peak(lab, f"{base}/bytes/{MIB}")
        small = await _peak(lab, f"{base}/bytes/{8 * MIB}")
        large = await _peak(lab, f"{base}/bytes/{256 * MIB}")
    assert large < small + MIB
    assert large < 4 * MIB


@pytest.mark.slow
@pytest.mark.row("H12")
async def test_many_chunks_of_a_byte_take_no_more_memory(lab: Lab) -> None:
    async with origin_process() as base:
        await _peak(lab, f"{base}/bytes/0")  # what is made once
        assert await _peak(lab, f"{base}/one-byte-chunks/50000") < MIB
    assert b"x" * 50_000 in [path.read_bytes() for path in lab.files()]


# failpoints


FETCH = """
import random, sys, trio
from pathlib import Path
from downloader.config import Settings
from downloader.net import EgressPolicy
from downloader.fetch import FetchSettings, open_fetcher
from downloader.service.instance import Files
from downloader.model import JobSpec, Kind, Lease
from downloader.storage import StorageHost
from downloader_plugins.filesystem import open_filesystem

async def main(url, root, spool):
    async with open_filesystem({"rootdir": root}, StorageHost()) as storage, open_fetcher(
        settings=FetchSettings(), policy=EgressPolicy.parse(["127.0.0.1"], setting="x"),
        store=Files(settings=Settings(), storage=storage, buckets=None, clouds=None).put,
        spool_dir=Path(spool), rng=random.Random(),
    ) as fetcher:
        spec = JobSpec(id="00000000000001", aggr_id="a", aggr_limit=1, url=url)
        lease = Lease(kind=Kind.DOWNLOAD, spec=spec, queue="a", generation=1, attempts=0, crashes=0, limit=1)
        outcome = await fetcher.attempt(lease, still_ours=lambda: True)
        print(outcome.verdict)

trio.run(main, *sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 3_000_000], ids=["in memory", "spooled"])
@pytest.mark.parametrize(("point", "stored"), [("first-byte", 0), ("before-fsync", 0), ("after-rename", 1)])
async def test_failpoints(tmp_path: Path, origin: Origin, point: str, stored: int, size: int) -> None:
    root, spool = tmp_path / "root", tmp_path / "spool"
    done = await trio.run_process(
        [sys.executable, "-c", FETCH, origin.url(f"/bytes/{size}"), str(root), str(spool)],
        env={**os.environ, "DOWNLOADER_FAILPOINT": point},
        check=False,
        stdout=subprocess.DEVNULL,
    )
    assert done.returncode == -signal.SIGKILL
    files = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size]
    assert [path.read_bytes() for path in files] == [body_of(size)] * stored
    # What it left in the spool goes when the next instance starts.
    async with open_spool(spool) as fresh:
        assert list(spool.iterdir()) == [fresh.path]
