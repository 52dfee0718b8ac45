"""Parts: the first bytes of files whose downloads were cut off, for the next attempts of their jobs.

A part of the service stays in the spool of the instance that received it; other instances start from the
beginning. Parts of `downloader fetch` outlive their process, even if it is killed.

A part is continued only by a 206 with exactly the requested range, of a file with the same strong validator
(RFC 9110, 13.1.5 and 15.3.7). After any other answer the file is received from the beginning.
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
from functools import partial
from pathlib import Path
from typing import Any

import trio

from downloader.fetch.expected import Digest
from downloader.fetch.headers import Field, HeaderMap
from downloader.fetch.sink import BUFFER_BYTES, Sink
from downloader.fetch.spool import Spool, disk_used_percent

SLACK_S = 300.0
"""How long a part is kept after the job's next attempt is due. A job that waits longer has probably been
given to another instance."""

SWEEP_S = 10.0
"""Time between two checks for expired parts."""

LOOK_S = 2.0
"""How long a look at the disk may take: a hung mount blocks it."""

CLOCKS_S = 60
"""A `Last-Modified` is a strong validator if the `Date` of its response is later by this much (RFC 9110,
8.8.2.2): a file that changes twice within a second keeps its date, and two clocks may differ."""

_STRONG_ETAG = re.compile(rb'"[!#-~\x80-\xff]+"')
"""At least one character: faulty servers send an empty tag with every file."""


@dataclass(frozen=True, slots=True)
class Source:
    """The file that a part belongs to, and how to ask for its rest."""

    url: str
    """Where the bytes came from, after redirects."""
    total: int
    """Bytes of the whole file."""
    validator: Field
    """The `ETag` or `Last-Modified` of the response, if it is strong; the name in lower case."""
    digests: Sequence[Digest] = ()
    """Digests of the whole file that the response declared."""
    filename: str = ""
    """As the response had it."""


@dataclass(frozen=True, slots=True)
class Part:
    """The first bytes of a file, in the spool."""

    name: str
    """The spool file's name."""
    size: int
    """How many bytes of it are part of the file; there may be more."""
    source: Source

    async def load_into(self, sink: Sink) -> bool:
        """Let an empty sink begin with this part; false if it cannot be read. The sink owns its file then."""
        for digest in self.source.digests:
            sink.hash_with(digest.algorithm)
        try:
            await sink.resume(self.name, self.size)
        except OSError:
            return False
        return True

    @property
    def condition(self) -> HeaderMap:
        """The request fields that ask for the rest."""
        return {
            b"range": (b"Range", b"bytes=%d-" % self.size),
            b"if-range": (b"If-Range", self.source.validator[1]),
        }

    def is_continued_by(self, fields: Sequence[Field], length: int | None) -> bool:
        """Whether a 206 with this head and declared length is the rest of the file."""
        total = self.source.total
        name, value = self.source.validator
        return (
            _values(fields, b"content-range") == [b"bytes %d-%d/%d" % (self.size, total - 1, total)]
            and length == total - self.size
            and _values(fields, name) == [value]
            and not _is_encoded(fields)
            and not any(each.startswith(b"multipart/") for each in _values(fields, b"content-type"))
        )


def source_of(
    url: str, fields: Sequence[Field], length: int | None, *, digests: Sequence[Digest], filename: str
) -> Source | None:
    """The source of a 200 that was cut off; `None` if the rest could be that of another file."""
    if length is None or _is_encoded(fields) or _values(fields, b"accept-ranges") == [b"none"]:
        return None
    validator = _strong_validator(fields)
    return None if validator is None else Source(url, length, validator, digests, filename)


def _strong_validator(fields: Sequence[Field]) -> Field | None:
    """The validator for `If-Range`; a date only if there is no `ETag` at all (RFC 9110, 13.1.5)."""
    if tags := _values(fields, b"etag"):
        return (b"etag", tags[0]) if len(tags) == 1 and _STRONG_ETAG.fullmatch(tags[0]) else None
    dates = _values(fields, b"last-modified"), _values(fields, b"date")
    if [len(each) for each in dates] != [1, 1]:
        return None
    try:
        modified, sent = (parsedate_to_datetime(values[0].decode("latin-1")).timestamp() for values in dates)
    except (ValueError, OverflowError):
        return None
    return (b"last-modified", dates[0][0]) if sent - modified >= CLOCKS_S else None


def _is_encoded(fields: Sequence[Field]) -> bool:
    return any(value.lower() != b"identity" for value in _values(fields, b"content-encoding"))


def _values(fields: Sequence[Field], name: bytes) -> list[bytes]:
    return [value.strip(b" \t") for field, value in fields if field.lower() == name]


class Parts:
    """The parts that one instance keeps, by job, as long as it runs.

    At `disk_low` percent or above no part is kept, so that parts alone never stop the leasing.
    """

    resumable = False
    """Whether parts are kept of cancelled attempts and failed jobs too, see `ResumableParts`."""

    def __init__(self, spool: Spool, *, disk_low: float) -> None:
        self._spool = spool
        self._disk_low = disk_low
        self._kept: dict[str, tuple[Part, float]] = {}
        """With the time until which they are kept."""
        self._filled = trio.Event()
        self._looking = trio.CapacityLimiter(1)
        """For the look at a disk that may hang."""

    def close(self) -> None:
        """Delete what the next fetcher on this folder does not need, if the folder stays. Never raises."""

    async def has_room(self) -> bool:
        """Whether the disk has room for parts; a disk that does not answer within `LOOK_S` has none."""
        look = partial(disk_used_percent, self._spool.path)
        with trio.move_on_after(LOOK_S), suppress(OSError):
            used = await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._looking)
            return used < self._disk_low
        return False

    async def begin(self, job_id: str, source: Source | None) -> str:  # noqa: ARG002  # for `ResumableParts`
        """Called before the first byte of a file is received: the name of its spool file; empty: any."""
        return ""

    def take(self, job_id: str) -> Part | None:
        """Remove and return the job's part, if there is one. The caller owns its file then."""
        return self._kept.pop(job_id, (None, 0.0))[0]

    def add(self, job_id: str, part: Part) -> None:
        """Keep a part. This object owns its file then."""
        self._kept[job_id] = part, math.inf
        self._filled.set()

    async def keep(self, job_id: str, sink: Sink, source: Source | None) -> None:
        """Keep the bytes that an ending attempt has written of a file; a later `expect` sets for how long.

        Does nothing if `source` is `None`, nothing has been written, or the disk is full. Never raises.
        """
        if source is None or not await self.has_room():
            return
        name, size = await sink.detach()
        if name:
            self.add(job_id, Part(name, size, source))

    async def expect(self, job_id: str, delay_s: float | None) -> None:
        """Keep a job's part for an attempt after `delay_s` seconds; delete it with `None`, no attempt."""
        if job_id not in self._kept:
            return
        if delay_s is None:
            await self._drop(job_id)
        else:
            self._kept[job_id] = self._kept[job_id][0], trio.current_time() + delay_s + SLACK_S

    async def sweep(
        self, interval_s: float = SWEEP_S, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Delete parts that have expired, and all of them while the disk fills up. Runs until cancelled."""
        task_status.started()
        while True:
            while not self._kept:
                self._filled = trio.Event()
                await self._filled.wait()
            await trio.sleep(interval_s)
            room = await self.has_room()
            for job_id, (_, until) in list(self._kept.items()):
                if not room or until <= trio.current_time():
                    await self._drop(job_id)

    async def _drop(self, job_id: str) -> None:
        part = self.take(job_id)
        if part is not None:
            with suppress(OSError):  # the folder is swept later
                await trio.to_thread.run_sync(self._spool.remove, part.name)


NOTE = ".json"
"""What the name of a note has after the name of its part."""

_DIGESTS = ("sha256", "sha512")
_VALIDATORS = (b"etag", b"last-modified")
_VALUE = re.compile(rb"[\x20-\x7e\x80-\xff]+")


class ResumableParts(Parts):
    """The parts in a folder that stays, for the next run of `downloader fetch`.

    A part has the name of its job, which is made of the URL. Beside it is a note, as JSON, of its source. The
    note is written before the first byte, and a part without one is never continued. Files of less than a
    buffer have none.
    """

    resumable = True

    def __init__(self, spool: Spool, *, disk_low: float) -> None:
        super().__init__(spool, disk_low=disk_low)
        self._tidy()

    async def begin(self, job_id: str, source: Source | None) -> str:
        """Write the note of a file; see `Parts.begin`.

        Raises:
            OSError: the disk refuses it.
        """
        if source is None or source.total <= BUFFER_BYTES:
            return ""
        text = json.dumps(asdict(source), default=lambda value: value.decode("latin-1"))
        await trio.to_thread.run_sync(self._note(job_id).write_text, text, limiter=self._spool.threads)
        return job_id

    def close(self) -> None:
        """Delete the notes of complete files; see `Parts.close`."""
        with suppress(OSError):
            self._tidy()

    def _tidy(self) -> None:
        """Take up the parts with a valid note, and delete all other files.

        The folder may come from somebody else, with anything in it.
        """
        for path in list(self._spool.path.iterdir()):
            name = path.name.removesuffix(NOTE)
            part, note = self._spool.path / name, self._note(name)
            source = _read(note) if part.is_file() and note.is_file() else None
            if source is not None:
                # At least one byte is asked for, so that the origin confirms that it is the same file.
                self.add(name, Part(name, min(part.stat().st_size, source.total - 1), source))
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()

    def _note(self, name: str) -> Path:
        return self._spool.path / f"{name}{NOTE}"

    async def _drop(self, job_id: str) -> None:
        self.take(job_id)


def _read(note: Path) -> Source | None:
    """The source that a note describes; `None` if it was cut off, or is not one of ours."""
    try:
        fields: dict[str, Any] = json.loads(note.read_bytes())
        name, value = (text.encode("latin-1") for text in fields["validator"])
        digests = [Digest(**digest) for digest in fields["digests"]]
        url, total, filename = fields["url"], fields["total"], fields["filename"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    valid = (
        [type(each) for each in (url, filename, total)] == [str, str, int]
        and total > 0
        and name in _VALIDATORS
        and _VALUE.fullmatch(value)
        and all(digest.algorithm in _DIGESTS for digest in digests)
    )
    return Source(url, total, (name, value), digests, filename) if valid else None
