"""Parts that outlive their process, even if it is killed; the next run of `downloader fetch` continues them.

The part of a URL has a name made from the URL. Beside it is a note, as JSON, of the file that it belongs to.
The note is written before the first byte, and a part without one is never continued.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import trio
from pydantic import BaseModel, Field

from downloader.fetch.answer import Answer
from downloader.fetch.expected import Digest
from downloader.fetch.parts import Part, Parts, Source
from downloader.fetch.sink import BUFFER_BYTES
from downloader.fetch.spool import Spool
from downloader.model import JobSpec

NOTE = ".json"
"""What the name of a note has after the name of its part."""


class _Note(BaseModel):
    """What a note may have; its folder may come from somebody else."""

    url: str
    total: int = Field(gt=0)
    validator: tuple[str, Annotated[str, Field(pattern=r"^[\x20-\x7e\x80-\xff]+$")]]
    digests: list[tuple[str, Literal["sha256", "sha512"], str]]
    filename: str


class LastingParts(Parts):
    """The parts in a folder that stays; `spool` is from `open_lasting_spool`."""

    lasting = True

    def __init__(self, spool: Spool, *, disk_low: float) -> None:
        super().__init__(spool, disk_low=disk_low)
        self._folder = spool.path
        self.validators: dict[str, tuple[str, str]] = {}
        """Field and value of the strong validator of a job's response, if it had one."""
        self._sweep()

    def name_of(self, url: str) -> str:
        """The name of the spool file for a job's URL."""
        return hashlib.sha256(url.encode()).hexdigest()[:32]

    def expect_job(self, spec: JobSpec) -> None:
        """Give a job that begins the part that an earlier run has left of its URL."""
        name = self.name_of(spec.url)
        source = _read(self._note(name))
        if source is not None:
            # At least one byte is asked for, so that the origin confirms that it is the same file.
            size = min((self._folder / name).stat().st_size, source.total - 1)
            self.add(spec.id, Part(name, size, source))

    async def note(self, spec: JobSpec, answer: Answer) -> None:
        """Note what the body belongs to that the job is about to receive.

        Raises:
            OSError: the disk refuses it.
        """
        source = answer.source()
        if source is not None:
            name, value = source.validator
            self.validators[spec.id] = name.decode(), value.decode("latin-1")
        if answer.part is None:
            note = self._note(self.name_of(spec.url))
            lasting = source if source is not None and source.total > BUFFER_BYTES else None
            await trio.to_thread.run_sync(_write, note, lasting, limiter=self._spool.threads)

    def forget(self, spec: JobSpec) -> None:
        """Delete a job's note at its end, unless its part is kept."""
        name = self.name_of(spec.url)
        if not (self._folder / name).exists():
            self._note(name).unlink(missing_ok=True)

    def _note(self, name: str) -> Path:
        return self._folder / f"{name}{NOTE}"

    def _sweep(self) -> None:
        """Delete all but parts with a readable note, and these notes.

        The folder may come from somebody else, with anything in it.
        """
        for path in list(self._folder.iterdir()):
            name = path.name.removesuffix(NOTE)
            part, note = self._folder / name, self._note(name)
            if part.is_file() and note.is_file() and _read(note) is not None:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()

    async def _drop(self, job_id: str) -> None:
        self.take(job_id)


def _write(note: Path, source: Source | None) -> None:
    if source is None:
        note.unlink(missing_ok=True)
        return
    name, value = source.validator
    fields = {
        "url": source.url,
        "total": source.total,
        "validator": [name.decode(), value.decode("latin-1")],
        "digests": [[each.field, each.algorithm, each.hexadecimal] for each in source.digests],
        "filename": source.filename,
    }
    note.write_text(json.dumps(fields))


def _read(note: Path) -> Source | None:
    """The source that a note describes; `None` if it is not there, or was cut off."""
    with suppress(OSError, ValueError):
        found = _Note.model_validate_json(note.read_bytes())
        name, value = found.validator
        return Source(
            url=found.url,
            total=found.total,
            validator=(name.encode(), value.encode("latin-1")),
            digests=[Digest(*each) for each in found.digests],
            filename=found.filename,
        )
    return None
