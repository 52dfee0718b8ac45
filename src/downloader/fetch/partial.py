"""Partial files: the first bytes of interrupted downloads, kept for the next attempt of the job.

In the service, a partial file stays in the spool of the instance that received it; other instances start from
the beginning. Partial files of `downloader fetch` outlive the process, even if it is killed.

A partial file is continued only by a 206 with exactly the requested range, of a file with the same strong
validator (RFC 9110, 13.1.5 and 15.3.7). After any other response the file is received from the beginning.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import trio

from downloader.fetch.expected import Digest
from downloader.fetch.headers import Field, HeaderMap
from downloader.fetch.sink import BUFFER_BYTES, Sink
from downloader.fetch.spool import Spool, disk_used_percent
from downloader.net import is_field_value

SLACK_S = 300.0
"""How long a partial file is kept after the job's next attempt is due. By then another instance has probably
leased the job."""

SWEEP_S = 10.0
"""Time between two checks for expired partial files."""

LOOK_S = 2.0
"""Time limit of asking for the free space of the disk; a hung mount blocks the call."""

CLOCKS_S = 60
"""Age from which a `Last-Modified` counts as strong: `Date` minus `Last-Modified` of one response (RFC 9110,
8.8.2.2). A file that changes twice within a second keeps its date, and two clocks may differ."""

_STRONG_ETAG = re.compile(rb'"[!#-~\x80-\xff]+"')
"""A strong `ETag` that is not empty: faulty servers send an empty tag with every file."""


@dataclass(frozen=True, slots=True)
class Source:
    """The origin's file, and the data for requesting the remaining bytes."""

    url: str
    """The URL of the response, after redirects."""
    total: int
    """Bytes of the whole file."""
    validator: Field
    """The strong `ETag` or `Last-Modified` of the response; the name in lower case."""
    digests: Sequence[Digest] = ()
    """Digests of the whole file, declared by the response."""
    filename: str = ""
    """Name of the file, from the response."""


@dataclass(frozen=True, slots=True)
class PartialFile:
    """The first bytes of a file, in the spool."""

    name: str
    """The spool file's name."""
    size: int
    """Number of valid bytes; the spool file may be longer."""
    source: Source

    async def load_into(self, sink: Sink) -> bool:
        """Load the bytes into an empty sink, which then owns the spool file; false if the disk fails."""
        for digest in self.source.digests:
            sink.hash_with(digest.algorithm)
        try:
            await sink.resume(self.name, self.size)
        except OSError:
            return False
        return True

    @property
    def condition(self) -> HeaderMap:
        """The request fields for the remaining bytes."""
        return {
            b"range": (b"Range", b"bytes=%d-" % self.size),
            b"if-range": (b"If-Range", self.source.validator[1]),
        }

    def is_continued_by(self, fields: Sequence[Field], length: int | None) -> bool:
        """Whether a 206 with the given fields and length has exactly the remaining bytes of the file."""
        total = self.source.total
        name, value = self.source.validator
        return (
            _values(fields, b"content-range") == [b"bytes %d-%d/%d" % (self.size, total - 1, total)]
            and length == total - self.size
            and _values(fields, name) == [value]
            and not _is_encoded(fields)
            and not any(kind.startswith(b"multipart/") for kind in _values(fields, b"content-type"))
        )


def source_of(
    url: str, fields: Sequence[Field], length: int | None, *, digests: Sequence[Digest], filename: str
) -> Source | None:
    """The source of the body of a 200; `None` if a later response might have bytes of another file."""
    if length is None or _is_encoded(fields) or _values(fields, b"accept-ranges") == [b"none"]:
        return None
    validator = _strong_validator(fields)
    return None if validator is None else Source(url, length, validator, digests, filename)


def _strong_validator(fields: Sequence[Field]) -> Field | None:
    """The validator for `If-Range`; a date only without any `ETag` (RFC 9110, 13.1.5)."""
    if tags := _values(fields, b"etag"):
        return (b"etag", tags[0]) if len(tags) == 1 and _STRONG_ETAG.fullmatch(tags[0]) else None
    dates = _values(fields, b"last-modified"), _values(fields, b"date")
    if [len(values) for values in dates] != [1, 1]:
        return None
    try:
        modified, date = (parsedate_to_datetime(values[0].decode("latin-1")).timestamp() for values in dates)
    except (ValueError, OverflowError):
        return None
    return (b"last-modified", dates[0][0]) if date - modified >= CLOCKS_S else None


def _is_encoded(fields: Sequence[Field]) -> bool:
    return any(value.lower() != b"identity" for value in _values(fields, b"content-encoding"))


def _values(fields: Sequence[Field], name: bytes) -> list[bytes]:
    return [value.strip(b" \t") for field, value in fields if field.lower() == name]


class PartialFiles:
    """The partial files of one instance, by job; deleted when the instance ends.

    No file is kept while the disk is `disk_low` percent full or more, so that partial files never stop the
    leasing.
    """

    resumable = False
    """Whether partial files of cancelled attempts and failed jobs are kept too, see `ResumableFiles`."""

    def __init__(self, spool: Spool, *, disk_low: float) -> None:
        self._spool = spool
        self._disk_low = disk_low
        self._files: dict[str, tuple[PartialFile, float]] = {}
        """By job, with the time of expiry."""
        self._filled = trio.Event()
        self._looking = trio.CapacityLimiter(1)
        """Allows one thread to ask for the free space, because the disk may hang."""

    def close(self) -> None:
        """Delete the files that no later fetcher can continue; here none, as the spool deletes its folder."""

    async def has_room(self) -> bool:
        """Whether the disk has room for partial files; false if the disk does not respond within `LOOK_S`."""
        with trio.move_on_after(LOOK_S), suppress(OSError):
            used = await trio.to_thread.run_sync(
                disk_used_percent, self._spool.path, abandon_on_cancel=True, limiter=self._looking
            )
            return used < self._disk_low
        return False

    async def begin(self, job_id: str, source: Source | None) -> str:  # noqa: ARG002  # for `ResumableFiles`
        """Prepare for the first byte of a file; return the spool file's name, empty for a random one."""
        return ""

    def take(self, job_id: str) -> PartialFile | None:
        """Remove and return the job's partial file, if any. The caller then owns the spool file."""
        return self._files.pop(job_id, (None, 0.0))[0]

    def add(self, job_id: str, file: PartialFile) -> None:
        """Keep a partial file, and own the spool file from now on."""
        self._files[job_id] = file, math.inf
        self._filled.set()

    async def keep(self, job_id: str, sink: Sink, source: Source | None) -> None:
        """Keep the bytes that a failed attempt has written; a later `expect` sets for how long.

        Does nothing if `source` is `None`, nothing has been written, or the disk is full. Never raises.
        """
        if source is None:
            return
        with trio.CancelScope(shield=True):  # bounded by `LOOK_S`; a cancelled attempt keeps its bytes too
            room = await self.has_room()
        if not room:
            return
        name, size = await sink.detach()
        if name:
            self.add(job_id, PartialFile(name, size, source))

    async def expect(self, job_id: str, delay_s: float | None) -> None:
        """Keep a job's partial file for an attempt in `delay_s` seconds; `None` deletes the file."""
        if job_id not in self._files:
            return
        if delay_s is None:
            await self._drop(job_id)
        else:
            self._files[job_id] = self._files[job_id][0], trio.current_time() + delay_s + SLACK_S

    async def sweep(
        self, interval_s: float = SWEEP_S, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Delete expired partial files, and all files while the disk has no room. Runs until cancelled."""
        task_status.started()
        while True:
            while not self._files:
                self._filled = trio.Event()
                await self._filled.wait()
            await trio.sleep(interval_s)
            room = await self.has_room()
            for job_id, (_, until) in list(self._files.items()):
                if not room or until <= trio.current_time():
                    await self._drop(job_id)

    async def _drop(self, job_id: str) -> None:
        file = self.take(job_id)
        if file is not None:
            with suppress(OSError):  # the folder is swept later
                await trio.to_thread.run_sync(self._spool.remove, file.name)


NOTE = ".json"
"""Suffix of a note: `x.json` is the note of the spool file `x`."""

_DIGESTS = ("sha256", "sha512")
_VALIDATORS = (b"etag", b"last-modified")


class ResumableFiles(PartialFiles):
    """The partial files in a folder that stays, for the next run of `downloader fetch`.

    A partial file is named after the job, whose ID is made from the URL. A JSON file beside it, the note, has
    the `Source`. The note is written before the first byte; a partial file without a note is never continued.
    Files of at most one buffer get no note.
    """

    resumable = True

    def __init__(self, spool: Spool, *, disk_low: float) -> None:
        super().__init__(spool, disk_low=disk_low)
        self._tidy()

    async def begin(self, job_id: str, source: Source | None) -> str:
        """Write the note of a file; see `PartialFiles.begin`.

        Raises:
            OSError: the disk failed.
        """
        if source is None or source.total <= BUFFER_BYTES:
            return ""
        text = json.dumps(asdict(source), default=lambda value: value.decode("latin-1"))
        await trio.to_thread.run_sync(self._note(job_id).write_text, text, limiter=self._spool.threads)
        return job_id

    def close(self) -> None:
        """Delete the notes of complete files; see `PartialFiles.close`."""
        with suppress(OSError):
            self._tidy()

    def _tidy(self) -> None:
        """Keep the partial files with a valid note, and delete all others.

        Another user may have made the folder, with any content.
        """
        for path in list(self._spool.path.iterdir()):
            name = path.name.removesuffix(NOTE)
            file, note = self._spool.path / name, self._note(name)
            source = _read(note) if file.is_file() and note.is_file() else None
            if source is not None:
                # Leave at least one byte to request, so that the origin confirms that the file is the same.
                self.add(name, PartialFile(name, min(file.stat().st_size, source.total - 1), source))
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()

    def _note(self, name: str) -> Path:
        return self._spool.path / f"{name}{NOTE}"

    async def _drop(self, job_id: str) -> None:
        self.take(job_id)


def _read(note: Path) -> Source | None:
    """The source in a note; `None` if the note is incomplete or invalid."""
    try:
        fields: dict[str, Any] = json.loads(note.read_bytes())
        name, value = (text.encode("latin-1") for text in fields["validator"])
        digests = [Digest(**digest) for digest in fields["digests"]]
        url, total, filename = fields["url"], fields["total"], fields["filename"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    valid = (
        [type(field) for field in (url, filename, total)] == [str, str, int]
        and total > 0
        and name in _VALIDATORS
        and value
        and is_field_value(value.decode(errors="replace"))
        and all(digest.algorithm in _DIGESTS for digest in digests)
    )
    return Source(url, total, (name, value), digests, filename) if valid else None
