"""The storages' contract suite: a sound plugin passes, and each test fails a plugin with that flaw."""

import errno
import itertools
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
import trio

from downloader.errors import PluginError
from downloader.storage import Body, KeyTaken, Storage, StorageError, StorageHost, StoredFile
from downloader.testing import Fault, StorageContract, StoragePeer
from servers.flawed import flawed

SECRET = "correct-horse"
LONG_S = 20.0
"""What leaks outlasts every test."""
PART_BYTES = 1 << 18


class Remote:
    """What is behind the storages: entries, and faults in reaching them."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes | bytearray] = {}
        self.fault: Fault | None = None

    async def reach(self) -> None:
        await trio.sleep(0.001)
        if self.fault is Fault.AWAY:
            raise ConnectionError("refused")
        if self.fault is Fault.SILENT:
            await trio.sleep_forever()

    async def answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.fault is Fault.CUT:
            raise ConnectionError("cut")


class Sound:
    """A storage that keeps all promises; the flawed ones change one thing."""

    knows_key_exists = True
    given_up_after: ClassVar[Mapping[str, float]] = {}
    """Shorter time limits of the suite, for a flaw that is seen by none but them."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        self.remote: Remote = section["remote"]
        self.timeout: float = section["timeout"]
        self.numbers = itertools.count()

    @classmethod
    @asynccontextmanager
    async def open(cls, section: Mapping[str, Any]) -> AsyncIterator[Storage]:
        if section.get("size") == SECRET:
            raise cls.complaint()
        storage = cls(section)
        storage.begin()
        try:
            yield storage
        finally:
            storage.end()

    @classmethod
    def complaint(cls) -> Exception:
        return PluginError("size: must be a number")

    def begin(self) -> None:
        """Called at this point; flawed plugins override it."""

    def end(self) -> None:
        """Called at this point; flawed plugins override it."""

    async def put(self, key: str, body: Body) -> None:
        with self.errors():
            await self.upload(self.name(key), self.part(key), body)

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            with trio.fail_after(self.timeout + 8):
                yield
        except (OSError, trio.TooSlowError) as error:
            raise StorageError("not stored") from error

    def name(self, key: str) -> str:
        return key

    def part(self, key: str) -> str:  # noqa: ARG002 - the protocol's
        return f".part-{id(self)}-{next(self.numbers)}"

    async def upload(self, key: str, part: str, body: Body) -> None:
        data = body.data if body.path is None else await trio.Path(body.path).read_bytes()
        assert data is not None
        entries = self.remote.entries
        buffer = entries[part] = bytearray()
        try:
            for start in range(0, max(1, len(data)), PART_BYTES):
                with trio.fail_after(self.timeout):
                    await self.remote.reach()
                buffer += data[start : start + PART_BYTES]
            self.ask(body)
            if self.replaces(key, body, data):
                self.publish(part, key)
        finally:
            self.tidy(part)
        await self.remote.answer()

    def ask(self, body: Body) -> None:
        if not body.still_ours():
            raise StorageError("the job is another's")

    def replaces(self, key: str, body: Body, data: bytes) -> bool:
        """No checkpoint is between this and `publish`."""
        there = self.remote.entries.get(key)
        if body.key_exists == "fail" and there not in (None, data):
            raise KeyTaken("another file has the key")
        return body.key_exists in (None, "replace") or there is None

    def publish(self, part: str, key: str) -> None:
        self.remote.entries[key] = bytes(self.remote.entries[part])

    def tidy(self, part: str) -> None:
        self.remote.entries.pop(part, None)

    async def delete(self, key: str) -> None:
        with self.errors(), trio.fail_after(self.timeout):
            await self.remote.reach()
            self.remote.entries.pop(self.name(key), None)
            await self.remote.answer()

    async def local(self, key: str) -> StoredFile | None:  # noqa: ARG002 - the protocol's
        return None

    async def size(self, key: str) -> int | None:
        await self.remote.reach()
        entry = self.remote.entries.get(key)
        return None if entry is None else len(entry)

    def url(self, key: str) -> str:
        return f"https://files.example/{quote(key)}"


class CutsLargeFiles(Sound):
    def publish(self, part: str, key: str) -> None:
        self.remote.entries[key] = self.remote.entries[part][: 16 * PART_BYTES]


class KeepsTheFirst(Sound):
    def publish(self, part: str, key: str) -> None:
        self.remote.entries.setdefault(key, self.remote.entries[part])


class LooksTooEarly(Sound):
    async def upload(self, key: str, part: str, body: Body) -> None:
        there = key in self.remote.entries
        await super().upload(key, part, replace(body, key_exists=None if not there else body.key_exists))


class IgnoresKeep(Sound):
    def replaces(self, key: str, body: Body, data: bytes) -> bool:
        return super().replaces(key, body, data) or body.key_exists == "keep"


class WantsToFindWhatItDeletes(Sound):
    async def delete(self, key: str) -> None:
        if key not in self.remote.entries:
            raise StorageError("no such file")
        await super().delete(key)


class DeletesByPrefix(Sound):
    async def delete(self, key: str) -> None:
        for other in [other for other in self.remote.entries if other.startswith(key)]:
            await super().delete(other)


class PublishesAnyway(Sound):
    def ask(self, body: Body) -> None:
        body.still_ours()


class LeavesPartsOfTheLost(Sound):
    given_up_after: ClassVar = {"settle_s": 0.5}

    def ask(self, body: Body) -> None:
        if not body.still_ours():
            self.remote.entries["left"] = b""
        super().ask(body)


class AsksForSmallFilesOnly(Sound):
    def ask(self, body: Body) -> None:
        if body.path is None:
            super().ask(body)


class WritesInPlace(Sound):
    def part(self, key: str) -> str:
        return key

    def tidy(self, part: str) -> None:
        pass


class SharesOnePart(Sound):
    def part(self, key: str) -> str:  # noqa: ARG002 - the protocol's
        return ".part"


class SharesAPartOfAKey(Sound):
    def part(self, key: str) -> str:
        return f".part-{key}"


class IgnoresCancels(Sound):
    given_up_after: ClassVar = {"cancel_s": 0.5}

    async def put(self, key: str, body: Body) -> None:
        with trio.CancelScope(shield=True):
            await super().put(key, body)
            await trio.sleep(1.5 if body.path is not None else 0)


class UnquotesKeys(Sound):
    def name(self, key: str) -> str:
        return key.replace("%20", " ")


class IsWrongAboutSizes(Sound):
    async def local(self, key: str) -> StoredFile | None:
        entry = self.remote.entries.get(key)
        return None if entry is None else StoredFile(path=Path("/dev/null"), size=len(entry) + 1)


class TakesEmptyFilesForMissing(Sound):
    async def size(self, key: str) -> int | None:
        return await super().size(key) or None


class TakesMissingFilesForEmpty(Sound):
    async def size(self, key: str) -> int | None:
        return await super().size(key) or 0


class FindsOtherFiles(Sound):
    async def local(self, key: str) -> StoredFile | None:
        entry = self.remote.entries.get(key)
        return None if entry is None else StoredFile(path=Path("/dev/null"), size=len(entry))


class HasNoUrls(Sound):
    def url(self, key: str) -> str:  # noqa: ARG002 - the protocol's
        return ""


class DoesNotEncode(Sound):
    def url(self, key: str) -> str:
        return f"https://files.example/{key}"


class GivesRelativeUrls(Sound):
    def url(self, key: str) -> str:
        return f"/files/{quote(key)}"


class TellsSecretUrls(Sound):
    def url(self, key: str) -> str:
        return f"https://me:{SECRET}@files.example/{quote(key)}"


class TakesErrorsForSuccess(Sound):
    @contextmanager
    def errors(self) -> Iterator[None]:
        with suppress(StorageError), super().errors():
            yield


class Raises(Sound):
    @contextmanager
    def errors(self) -> Iterator[None]:
        yield


class Waits(Sound):
    given_up_after: ClassVar = {"answer_s": 3.0}

    async def put(self, key: str, body: Body) -> None:
        while True:
            try:
                await super().put(key, body)
            except StorageError:
                await trio.sleep(0.01)
            else:
                return


class DeletesInGoodFaith(Sound):
    async def delete(self, key: str) -> None:
        with suppress(StorageError):
            await super().delete(key)


class LetsErrorsOut(Sound):
    async def delete(self, key: str) -> None:
        if len(key) > 255:
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        await super().delete(key)


class ReadsOnTheLoop(Sound):
    async def upload(self, key: str, part: str, body: Body) -> None:
        if body.path is not None:
            body.path.open("rb").close()
        await super().upload(key, part, body)


class SyncsOnTheLoop(Sound):
    async def delete(self, key: str) -> None:
        with tempfile.TemporaryFile() as file:
            os.fsync(file)
        await super().delete(key)


class SyncsNothing(Sound):
    synced: ClassVar[Sequence[str]] = ()

    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="downloader-contract-")
        self.file = Path(self.folder.name, "file")

    def end(self) -> None:
        self.folder.cleanup()

    async def upload(self, key: str, part: str, body: Body) -> None:
        await super().upload(key, part, body)
        await trio.to_thread.run_sync(self.write, self.file)

    def write(self, path: Path) -> None:
        path.write_bytes(b"x" * 5000)
        for name in self.synced:
            fd = os.open(path.with_name(name), os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    async def local(self, key: str) -> StoredFile | None:  # noqa: ARG002 - the protocol's
        return StoredFile(path=self.file, size=5000)


class SyncsNoFolder(SyncsNothing):
    synced: ClassVar = ("file",)


class DeletesBeforeItWrites(Sound):
    async def put(self, key: str, body: Body) -> None:
        self.remote.entries.pop(key, None)
        await super().put(key, body)


class TidiesUpAtTheEnd(Sound):
    def end(self) -> None:
        self.remote.entries.clear()


class SweepsAtTheStart(Sound):
    def begin(self) -> None:
        for key in [key for key in self.remote.entries if key.startswith(".part-")]:
            del self.remote.entries[key]


class LeavesParts(Sound):
    given_up_after: ClassVar = {"settle_s": 0.5}

    async def put(self, key: str, body: Body) -> None:
        part = self.part(key)
        self.remote.entries[part] = b""  # before it waits for anything: each cancel finds it
        await super().put(key, body)
        del self.remote.entries[part]


class LeaksAThread(Sound):
    given_up_after: ClassVar = {"settle_s": 0.5}

    def begin(self) -> None:
        threading.Thread(target=time.sleep, args=[LONG_S], name="leaked", daemon=True).start()


class Swallows(Sound):
    @classmethod
    @asynccontextmanager
    async def open(cls, section: Mapping[str, Any]) -> AsyncIterator[Storage]:
        with suppress(LookupError):
            yield cls(section)


class RefusesInItsOwnWay(Sound):
    @classmethod
    def complaint(cls) -> Exception:
        return ValueError("size")


class RepeatsTheValue(Sound):
    @classmethod
    def complaint(cls) -> Exception:
        return PluginError(f"size: not {SECRET}")


@dataclass
class RemotePeer(StoragePeer):
    plugin: type[Sound]
    remote: Remote
    section: Mapping[str, Any]
    bad_section: Mapping[str, Any]
    hasty: Mapping[str, Any] = field(default_factory=lambda: {"timeout": 1.0})
    secrets: Sequence[str] = (SECRET,)

    def open(self, section: Mapping[str, Any], host: StorageHost) -> AbstractAsyncContextManager[Storage]:  # noqa: ARG002
        return self.plugin.open(section)

    @asynccontextmanager
    async def broken(self, fault: Fault) -> AsyncIterator[None]:
        self.remote.fault = fault
        try:
            yield
        finally:
            self.remote.fault = None

    async def read(self, key: str) -> bytes | None:
        entry = self.remote.entries.get(key)
        return None if entry is None else bytes(entry)

    async def keys(self) -> Collection[str]:
        return list(self.remote.entries)


class RemoteContract(StorageContract):
    plugin: type[Sound]

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[StoragePeer]:
        remote = Remote()
        section = {"remote": remote, "timeout": 10}
        yield RemotePeer(self.plugin, remote, section, {**section, "size": SECRET})


@pytest.mark.slow
class TestSound(RemoteContract):
    """The sound one passes."""

    plugin = Sound


FLAWS: list[tuple[str, type[Sound], str]] = [
    ("a_stored_file_is_complete", CutsLargeFiles, "were put"),
    ("a_file_replaces_an_older_one", KeepsTheFirst, "were put"),
    ("a_deleted_file_is_gone", WantsToFindWhatItDeletes, "no such file"),
    ("a_deleted_file_is_gone", DeletesByPrefix, "has nothing"),
    ("a_job_that_is_anothers_publishes_nothing", PublishesAnyway, "has taken reported success"),
    ("a_job_that_is_anothers_publishes_nothing", LeavesPartsOfTheLost, "left over: .*left"),
    ("it_asks_whose_the_job_is", AsksForSmallFilesOnly, "without a call of still_ours"),
    ("a_cancel_leaves_the_old_file_or_the_new", WritesInPlace, "a cancelled put has left"),
    ("a_cancel_leaves_the_old_file_or_the_new", IgnoresCancels, "has not come to an end"),
    ("many_are_stored_at_once", SharesOnePart, "were put|KeyError|part"),
    ("rivals_leave_one_complete_file", SharesAPartOfAKey, "none of those|KeyError|part"),
    ("a_file_that_is_there_stays_if_asked", LooksTooEarly, "not the two of one body"),
    ("a_file_that_is_there_stays_if_asked", IgnoresKeep, "were put"),
    ("keys_are_taken_as_they_are", UnquotesKeys, "were put"),
    ("local_is_the_stored_file", IsWrongAboutSizes, r"local\(\) says"),
    ("local_is_the_stored_file", FindsOtherFiles, "another file"),
    ("the_size_is_that_of_the_file", TakesEmptyFilesForMissing, "says None bytes"),
    ("the_size_is_that_of_the_file", TakesMissingFilesForEmpty, "never stored"),
    ("a_file_can_be_found", HasNoUrls, "neither"),
    ("a_file_can_be_found", DoesNotEncode, "not encoded"),
    ("a_file_can_be_found", GivesRelativeUrls, "not an absolute URL"),
    ("a_file_can_be_found", TellsSecretUrls, "credentials"),
    ("while_it_is_away_nothing_succeeds", TakesErrorsForSuccess, "reported success"),
    ("while_it_is_away_nothing_succeeds", Raises, "raised ConnectionError"),
    ("while_it_is_away_nothing_succeeds", DeletesInGoodFaith, "the file is there"),
    ("while_it_is_away_nothing_succeeds", DeletesBeforeItWrites, "have left nothing"),
    ("delete_raises_storage_errors_only", LetsErrorsOut, r"delete\(\) raised OSError.* no StorageError"),
    ("files_are_opened_in_threads", ReadsOnTheLoop, r"blocks the loop: open\("),
    ("files_are_opened_in_threads", SyncsOnTheLoop, r"blocks the loop: \S+"),
    ("a_local_file_is_on_the_disk", SyncsNothing, "without an fsync of .*/file: "),
    ("a_local_file_is_on_the_disk", SyncsNoFolder, r"without an fsync of [^:]*/downloader-contract-\w+: "),
    ("while_it_is_silent_nothing_succeeds", TakesErrorsForSuccess, "reported success"),
    ("while_it_is_silent_nothing_succeeds", Waits, "had not returned"),
    ("a_lost_answer_is_no_success", TakesErrorsForSuccess, "reported success"),
    ("files_outlive_the_storage", TidiesUpAtTheEnd, "has nothing"),
    ("two_may_be_open_at_once", SweepsAtTheStart, "part"),
    ("a_stop_in_mid_put_closes_it", LeavesParts, "left over"),
    ("it_leaves_nothing_behind", LeaksAThread, "the thread leaked"),
    ("what_is_raised_while_it_is_open_passes_through", Swallows, "swallowed"),
    ("a_bad_section_is_one_line_that_names_the_key", RefusesInItsOwnWay, "no PluginError"),
    ("a_bad_section_is_one_line_that_names_the_key", RepeatsTheValue, "holds a secret"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "plugin", "message"), FLAWS, ids=[plugin.__name__ for _, plugin, _ in FLAWS]
)
def test_a_flawed_storage_fails(test: str, plugin: type[Sound], message: str) -> None:
    with pytest.raises(Exception, match=message):
        getattr(flawed(RemoteContract(), plugin), f"test_{test}")()


def test_each_promise_is_broken_by_some_storage() -> None:
    promises = {name for name in dir(StorageContract) if name.startswith("test_")}
    assert promises == {f"test_{test}" for test, _, _ in FLAWS}
