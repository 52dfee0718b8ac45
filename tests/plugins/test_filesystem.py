"""The filesystem storage on real folders: atomic, durable on return, and never outside of the root."""

import errno
import hashlib
import os
import resource
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from downloader.errors import PluginError
from downloader.model import KeyExists
from downloader.storage import Body, KeyTaken, Storage, StorageError, StorageRefused
from downloader_plugins.filesystem import open_filesystem
from servers.disk_calls import disk_calls
from servers.mounts import tiny_disk
from servers.plugins import opened_storage

KEY = "NSb/NSb4FOAs9fVaQw"
MIB = 1024 * 1024


def small(data: bytes, *, still_ours: Callable[[], bool] = lambda: True) -> Body:
    return Body(
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        mime_type="application/octet-stream",
        data=data,
        still_ours=still_ours,
    )


def spooled(path: Path, data: bytes, *, still_ours: Callable[[], bool] = lambda: True) -> Body:
    path.write_bytes(data)
    path.chmod(0o600)
    return Body(
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        mime_type="application/octet-stream",
        path=path,
        still_ours=still_ours,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
async def storage(root: Path) -> AsyncIterator[Storage]:
    before = open_descriptors()
    async with opened_storage(open_filesystem, {"rootdir": str(root)}) as opened:
        yield opened
    assert not list((root / ".tmp").iterdir()), "temporary files were left behind"
    assert open_descriptors() <= before


def open_descriptors() -> int:
    """Descriptors of files and folders; sockets and pipes belong to Trio and the runner."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            target = str(link.readlink())
            devices = target.startswith(("/dev/", "/proc/")) and not target.startswith("/dev/shm/")
            count += target.startswith("/") and not devices
    return count


def names(folder: Path, *, deep: bool = False) -> list[str]:
    return sorted(path.name for path in (folder.rglob("*") if deep else folder.iterdir()))


async def test_is_found_through_its_entry_point() -> None:
    (entry,) = entry_points(group="downloader.storages.v1", name="filesystem")
    assert entry.load() is open_filesystem


async def test_stores_under_the_key_and_replaces(storage: Storage, root: Path) -> None:
    await storage.put(KEY, small(b"old"))
    await storage.put(KEY, small(b"new, and longer"))
    assert (root / KEY).read_bytes() == b"new, and longer"


async def test_stores_an_empty_file_and_deep_folders(storage: Storage, root: Path) -> None:
    await storage.put(f"a/b/c/{KEY}", small(b""))
    assert (root / "a/b/c" / KEY).read_bytes() == b""


async def test_moves_a_spool_file(storage: Storage, root: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    await storage.put(KEY, spooled(spool, b"x" * 100_000))
    assert (root / KEY).read_bytes() == b"x" * 100_000
    assert not spool.exists()


async def test_a_disk_without_permissions_refuses_files_and_leaks_no_descriptor(
    storage: Storage, root: Path, other_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    before = open_descriptors()
    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(StorageError, match=os.strerror(errno.EPERM)):
        await storage.put("new/folder", spooled(other_device / "spool", b"data"))
    (root / "old").mkdir()
    with pytest.raises(StorageError, match=os.strerror(errno.EPERM)):
        await storage.put("old/small", small(b"data"))
    with pytest.raises(StorageError, match=os.strerror(errno.EPERM)):
        await storage.put("old/copied", spooled(other_device / "spool", b"data"))
    assert open_descriptors() == before
    assert names(root / "old") == []


async def test_copies_from_another_filesystem(storage: Storage, root: Path, other_device: Path) -> None:
    data = os.urandom(3 * 1024 * 1024 + 17)
    await storage.put(KEY, spooled(other_device / "spool", data))
    assert (root / KEY).read_bytes() == data


@pytest.mark.parametrize("mode", [None, "0640", 644, "600"])
@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
async def test_files_and_their_folders_have_the_configured_mode(
    root: Path, tmp_path: Path, other_device: Path, mode: object, umask: int
) -> None:
    before = os.umask(umask)
    try:
        section = {"rootdir": str(root)} | ({} if mode is None else {"mode": mode})
        async with opened_storage(open_filesystem, section) as storage:
            await storage.put("a/small", small(b"data"))
            await storage.put("b/moved", spooled(tmp_path / "spool", b"data"))
            await storage.put("c/copied", spooled(other_device / "spool", b"data"))
    finally:
        os.umask(before)
    wanted = int(str(mode or "0640"), base=8)
    folder_mode = {0o640: 0o750, 0o644: 0o755, 0o600: 0o700}[wanted]
    for key in ("a/small", "b/moved", "c/copied"):
        assert stat.S_IMODE((root / key).stat().st_mode) == wanted
        assert stat.S_IMODE((root / key).parent.stat().st_mode) == folder_mode


async def test_a_folder_keeps_the_group_of_the_one_it_is_in(storage: Storage, root: Path) -> None:
    os.chmod(root, 0o2750)  # noqa: PTH101 - quick
    await storage.put("a/b/file", small(b"data"))
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in ("a", "a/b")] == [0o2750, 0o2750]


@pytest.mark.parametrize("place", ["memory", "spool", "other device"])
@pytest.mark.row("F15")
async def test_publishes_nothing_once_the_job_is_anothers(
    storage: Storage, root: Path, tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    await storage.put(KEY, small(b"the winner's"))
    if place == "memory":
        body = small(b"ours", still_ours=lambda: False)
    else:
        folder = tmp_path if place == "spool" else request.getfixturevalue("other_device")
        body = spooled(folder / "spool", b"ours", still_ours=lambda: False)
    with pytest.raises(StorageError, match="another instance"):
        await storage.put(KEY, body)
    assert (root / KEY).read_bytes() == b"the winner's"


async def test_refuses_a_spool_file_of_another_size(storage: Storage, root: Path, tmp_path: Path) -> None:
    body = spooled(tmp_path / "spool", b"complete")
    (tmp_path / "spool").write_bytes(b"cut")
    with pytest.raises(StorageError, match="spool"):
        await storage.put(KEY, body)
    assert not (root / KEY).exists()


@pytest.mark.parametrize("plant", ["link", "fifo"])
@pytest.mark.row("H15")
async def test_refuses_what_is_planted_at_the_spool(
    storage: Storage, root: Path, tmp_path: Path, plant: str
) -> None:
    body = spooled(tmp_path / "spool", b"secret")
    (tmp_path / "spool").rename(tmp_path / "elsewhere")
    if plant == "link":
        (tmp_path / "spool").symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(tmp_path / "spool")
    with pytest.raises(StorageError):
        await storage.put(KEY, body)
    assert not (root / KEY).exists()
    assert (tmp_path / "elsewhere").read_bytes() == b"secret"
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o600


@pytest.mark.parametrize("component", ["a", "a/b", "a/b/NSb"])
@pytest.mark.parametrize("spool", [False, True])
@pytest.mark.row("H15")
async def test_follows_no_link_in_any_folder(
    storage: Storage, root: Path, tmp_path: Path, component: str, *, spool: bool
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / component).parent.mkdir(parents=True, exist_ok=True)
    (root / component).symlink_to(outside)
    body = spooled(tmp_path / "spool", b"data") if spool else small(b"data")
    with pytest.raises(StorageError, match="is not a folder"):
        await storage.put(f"a/b/{KEY}", body)
    for name in ("a", "b", "NSb", KEY.rpartition("/")[2]):
        (outside / name).mkdir()
    with pytest.raises(StorageError):
        await storage.delete(f"a/b/{KEY}")
    assert await storage.local(f"a/b/{KEY}") is None
    assert names(outside, deep=True) == ["NSb", KEY.rpartition("/")[2], "a", "b"]


@pytest.mark.row("H15")
async def test_a_link_at_the_final_path_is_replaced_not_followed(
    storage: Storage, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (root / KEY).parent.mkdir()
    (root / KEY).symlink_to(outside)
    assert await storage.local(KEY) is None
    await storage.put(KEY, small(b"data"))
    assert outside.read_bytes() == b"precious"
    assert not (root / KEY).is_symlink()
    assert (root / KEY).read_bytes() == b"data"


async def test_deleting_a_link_leaves_what_it_points_to(storage: Storage, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (root / KEY).parent.mkdir()
    (root / KEY).symlink_to(outside)
    await storage.delete(KEY)
    assert outside.read_bytes() == b"precious"


@pytest.mark.row("H15")
async def test_a_folder_at_the_final_path_is_an_error(storage: Storage, root: Path, tmp_path: Path) -> None:
    (root / KEY).mkdir(parents=True)
    with pytest.raises(StorageError, match="directory"):
        await storage.put(KEY, small(b"data"))
    with pytest.raises(StorageError, match="directory"):
        await storage.put(KEY, spooled(tmp_path / "spool", b"data"))
    with pytest.raises(StorageError):
        await storage.delete(KEY)
    assert await storage.local(KEY) is None


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("key_exists", "left"), [("replace", b"new"), ("keep", b"old"), ("fail", b"old")])
async def test_a_file_that_is_there_stays_if_the_job_says_so(
    storage: Storage, root: Path, tmp_path: Path, key_exists: KeyExists, left: bytes, *, large: bool
) -> None:
    def body(data: bytes) -> Body:
        made = spooled(tmp_path / "spooled", data) if large else small(data)
        return replace(made, key_exists=key_exists)

    await storage.put("a/b", body(b"old"))
    await storage.put("a/b", body(b"old"))  # another attempt of the job
    if key_exists == "fail":
        with pytest.raises(KeyTaken, match="another file"):
            await storage.put("a/b", body(b"new"))
    else:
        await storage.put("a/b", body(b"new"))
    assert root.joinpath("a", "b").read_bytes() == left
    assert names(root / ".tmp") == []
    assert root.joinpath("a", "b").stat().st_nlink == 1


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("key_exists", ["replace", "keep", "fail"])
@pytest.mark.parametrize("key", ["a", "a/b/c"])
async def test_a_key_that_is_both_file_and_folder_is_a_final_failure(
    storage: Storage, root: Path, tmp_path: Path, key: str, key_exists: KeyExists, *, large: bool
) -> None:
    """The client has chosen the key, so that trying again would not help."""
    await storage.put("a/b", small(b"old"))
    made = spooled(tmp_path / "spooled", b"new") if large else small(b"new")
    with pytest.raises(StorageRefused):
        await storage.put(key, replace(made, key_exists=key_exists))
    assert root.joinpath("a", "b").read_bytes() == b"old"
    assert names(root / ".tmp") == []


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "/etc/passwd", "", "a//b", "a/./b", "a/", "a\0b", ".tmp/a", "x" * 300]
)
async def test_a_key_that_leads_out_of_the_root_is_a_final_failure(
    storage: Storage, root: Path, key: str
) -> None:
    with pytest.raises(StorageRefused):
        await storage.put(key, small(b"data"))
    assert await storage.local(key) is None
    assert names(root) == [".tmp"]


async def test_finds_a_file(storage: Storage, root: Path) -> None:
    assert await storage.local(KEY) is None
    await storage.put(KEY, small(b"data"))
    found = await storage.local(KEY)
    assert found is not None
    assert found.path == root / KEY
    assert found.size == 4
    assert await storage.local("NSb") is None
    assert await storage.local(f"{KEY}/x") is None
    assert await storage.local(f"{'a/' * 8000}x") is None


async def test_deletes_the_file_and_the_folders_it_leaves_empty(storage: Storage, root: Path) -> None:
    await storage.put(f"kept/a/{KEY}", small(b"1"))
    await storage.put("kept/other", small(b"2"))
    await storage.delete(f"kept/a/{KEY}")
    await storage.delete(f"kept/a/{KEY}")
    assert names(root, deep=True) == [".tmp", "kept", "other"]


@pytest.mark.slow
async def test_puts_and_deletes_meet_in_one_folder(storage: Storage, root: Path) -> None:
    async def churn(name: str) -> None:
        for _ in range(60):
            await storage.put(f"a/NSb/{name}", small(name.encode()))
            assert (root / "a/NSb" / name).read_bytes() == name.encode()
            await storage.delete(f"a/NSb/{name}")

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            for index in range(8):
                nursery.start_soon(churn, f"NSb{index}")
    assert names(root) == [".tmp"]


@pytest.mark.slow
@pytest.mark.row("F15")
async def test_a_reader_sees_one_complete_file_or_the_other(
    storage: Storage, root: Path, tmp_path: Path
) -> None:
    sizes = (10_000, 50_000, 200_000)
    await storage.put(KEY, small(bytes([1]) * sizes[0]))
    stop = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not stop.is_set():
            data = (root / KEY).read_bytes()
            if len(set(data)) != 1 or len(data) not in sizes:
                seen.append(data)

    async def write(index: int) -> None:
        for turn in range(30):
            data = bytes([1 + index]) * sizes[index]
            spool = tmp_path / f"spool{index}"
            await storage.put(KEY, spooled(spool, data) if turn % 2 else small(data))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for index in range(len(sizes)):
                    nursery.start_soon(write, index)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not seen


class BlockingCheck:
    """A `still_ours` that holds its thread until opened."""

    def __init__(self, answer: bool = True) -> None:  # noqa: FBT001, FBT002 - a flag is all it is
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.answer = answer

    def __call__(self) -> bool:
        self.entered.set()
        assert self.opened.wait(10)
        return self.answer

    async def reached(self) -> None:
        assert await trio.to_thread.run_sync(self.entered.wait, 10)


@pytest.mark.parametrize("answer", [True, False])
async def test_a_cancel_waits_for_the_write_in_progress(
    storage: Storage, root: Path, *, answer: bool
) -> None:
    check = BlockingCheck(answer)
    returned = trio.Event()

    async def put() -> None:
        try:
            await storage.put(KEY, small(b"data", still_ours=check))
        except StorageError:
            assert not answer
        finally:
            returned.set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            await check.reached()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                assert not returned.is_set()
                check.opened.set()
                await returned.wait()
    assert (root / KEY).exists() is answer


async def test_a_put_cancelled_while_it_waits_writes_nothing(storage: Storage, root: Path) -> None:
    check = BlockingCheck()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.put, "busy", small(b"busy", still_ours=check))
            await check.reached()
            async with trio.open_nursery() as waiting:
                waiting.start_soon(storage.put, KEY, small(b"data"))
                await trio.testing.wait_all_tasks_blocked()
                waiting.cancel_scope.cancel()
            check.opened.set()
    assert not (root / KEY).exists()
    assert (root / "busy").read_bytes() == b"busy"


async def test_a_failure_in_a_batch_is_its_own_alone(storage: Storage, root: Path) -> None:
    check = BlockingCheck()
    (root / "bad").symlink_to("/nonexistent")
    failed: list[str] = []

    def broken() -> bool:
        raise ZeroDivisionError

    async def put(key: str, body: Body) -> None:
        try:
            await storage.put(key, body)
        except (StorageError, ZeroDivisionError):
            failed.append(key)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.put, "busy", small(b"busy", still_ours=check))
            await check.reached()
            for index in range(40):
                nursery.start_soon(put, f"good/{index}", small(b"good"))
            nursery.start_soon(put, "bad/file", small(b"bad"))
            nursery.start_soon(put, "lost", small(b"lost", still_ours=lambda: False))
            nursery.start_soon(put, "broken", small(b"broken", still_ours=broken))
            await trio.testing.wait_all_tasks_blocked()
            check.opened.set()
    assert sorted(failed) == ["bad/file", "broken", "lost"]
    assert len(list((root / "good").iterdir())) == 40
    assert not (root / "lost").exists()


async def test_a_batch_of_large_files_is_small(storage: Storage, root: Path) -> None:
    check = BlockingCheck()
    written: list[int] = []

    def count() -> bool:
        written.append(sum(file.stat().st_size for file in (root / ".tmp").iterdir()))
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.put, "busy", small(b"busy", still_ours=check))
        await check.reached()
        for index in range(20):
            nursery.start_soon(storage.put, f"large/{index}", small(b"x" * MIB, still_ours=count))
        await trio.testing.wait_all_tasks_blocked()
        check.opened.set()
    assert len(written) == 20
    assert 4 * MIB < max(written) <= 8 * MIB


@pytest.mark.slow
async def test_deep_folders_leave_the_process_descriptors_to_live_on(root: Path) -> None:
    most = 0

    def count() -> bool:
        nonlocal most
        most = max(most, open_descriptors())
        return True

    deep = "/".join("d" * 120)
    async with (
        opened_storage(open_filesystem, {"rootdir": str(root), "fsync": False}) as storage,
        trio.open_nursery() as nursery,
    ):
        for index in range(8):
            nursery.start_soon(storage.put, f"{index}/{deep}/file", small(b"x", still_ours=count))
    assert len(names(root, deep=True)) >= 8 * 120
    assert 120 < most < 300


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_write_cut_short_stores_nothing(storage: Storage, root: Path, other_device: Path) -> None:
    big = spooled(other_device / "spool", b"x" * 100_000)
    with largest_file(50_000):
        with pytest.raises(StorageError, match="File too large"):
            await storage.put(KEY, small(b"x" * 100_000))
        with pytest.raises(StorageError, match="File too large"):
            await storage.put(KEY, big)
    assert not (root / KEY).exists()
    await storage.put(KEY, small(b"x" * 100_000))


@pytest.mark.row("F13")
async def test_a_full_disk_is_an_error_and_passes(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    with tiny_disk(root, kib=64):
        async with opened_storage(open_filesystem, {"rootdir": str(root)}) as storage:
            await storage.put("first", small(b"x" * 30_000))
            with pytest.raises(StorageError, match="No space left") as caught:
                await storage.put(KEY, small(b"x" * 60_000))
            assert str(root) not in str(caught.value)
            with pytest.raises(StorageError, match="No space left"):
                await storage.put(KEY, spooled(tmp_path / "spool", b"x" * 60_000))
            assert not list((root / ".tmp").iterdir())
            await storage.delete("first")
            await storage.put(KEY, small(b"x" * 30_000))


async def test_a_lost_temporary_folder_is_made_again(storage: Storage, root: Path) -> None:
    (root / ".tmp").rmdir()
    await storage.put(KEY, small(b"data"))
    assert (root / KEY).read_bytes() == b"data"


async def test_old_leftovers_are_swept_and_young_ones_kept(root: Path) -> None:
    (root / ".tmp").mkdir(parents=True)
    for name, age_s in (("old", 7 * 3600), ("young", 60)):
        (root / ".tmp" / name).write_bytes(b"partial")
        os.utime(root / ".tmp" / name, (time.time() - age_s,) * 2)
    async with opened_storage(open_filesystem, {"rootdir": str(root)}):
        assert names(root / ".tmp") == ["young"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    return disk_calls(monkeypatch)


FOLDERS = ("a/NSb", "a", "")


async def test_a_small_file_is_synced_before_it_is_published_and_its_folders_after(
    storage: Storage, root: Path, calls: list[tuple[str, Path]]
) -> None:
    await storage.put("a/NSb/file", small(b"data"))
    (first, file), second, *folders = calls
    assert (first, file.parent, second) == ("fsync", root / ".tmp", ("rename", root / ".tmp"))
    assert folders == [("fsync", root / folder) for folder in FOLDERS]


async def test_the_folders_of_a_moved_file_are_synced(
    storage: Storage, root: Path, tmp_path: Path, calls: list[tuple[str, Path]]
) -> None:
    """The file has been synced by who wrote it: `Body.path` says so."""
    await storage.put("a/NSb/file", spooled(tmp_path / "spool", b"data"))
    assert calls == [("rename", tmp_path), *(("fsync", root / folder) for folder in FOLDERS)]


async def test_a_copied_file_is_synced_before_it_is_published_and_its_folders_after(
    storage: Storage, root: Path, other_device: Path, calls: list[tuple[str, Path]]
) -> None:
    await storage.put("a/NSb/file", spooled(other_device / "spool", b"data"))
    (first, file), second, *folders = calls
    assert (first, file.parent, second) == ("fsync", root / ".tmp", ("rename", root / ".tmp"))
    assert folders == [("fsync", root / folder) for folder in FOLDERS]


async def test_without_fsync_it_stores_all_the_same(
    root: Path, tmp_path: Path, calls: list[tuple[str, Path]]
) -> None:
    async with opened_storage(open_filesystem, {"rootdir": str(root), "fsync": False}) as storage:
        await storage.put(KEY, small(b"data"))
        await storage.put(f"b/{KEY}", spooled(tmp_path / "spool", b"data"))
    assert (root / KEY).read_bytes() == (root / "b" / KEY).read_bytes() == b"data"
    assert [call for call, _ in calls] == ["rename", "rename"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "rootdir: .*needs"),
        ({"rootdir": ""}, "rootdir: .*needs"),
        ({"rootdir": 7}, "rootdir: "),
        ({"rootdir": "x", "fsnc": True}, r"fsnc: .*no such key; did you mean fsync\?"),
        ({"rootdir": "x", "fsync": "perhaps"}, "fsync: "),
        *(
            ({"rootdir": "x", "mode": mode}, 'mode: must be octal and in quotes, such as "0640"')
            for mode in (0o640, "0440", "7777", "rw", "", True)
        ),
        ({"rootdir": "/proc/downloader"}, "rootdir /proc/downloader cannot be written: "),
        ({"rootdir": "/dev/null"}, "rootdir /dev/null cannot be written: "),
        ({"rootdir": "a\0b"}, "rootdir .*cannot be written: "),
    ],
)
async def test_a_section_at_fault_is_one_clear_line(section: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=f"^{message}") as caught:
        async with opened_storage(open_filesystem, section):
            pass
    assert "\n" not in str(caught.value)
