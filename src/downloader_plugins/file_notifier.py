"""Notifier that stores callbacks as files in the file storage, for programs that watch a folder."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from pydantic import BaseModel

from downloader.errors import StorageError
from downloader.notify import Delivered, Host, Notifier, Payload, Rejected, Result, RetryLater, parse_section
from downloader.paths import split_folder
from downloader.storage import Body, Storage

_DEADLINE_S = 30.0
"""Time limit for storing one callback, shorter than the time limits of storages."""

_MIME_TYPE = "application/json"


class FileNotifierSettings(BaseModel, extra="forbid", frozen=True, hide_input_in_errors=True):
    """`[backends.storage]`, which has no keys."""


@asynccontextmanager
async def open_file_notifier(section: Mapping[str, Any], host: Host) -> AsyncIterator[Notifier]:
    """Open the notifier on the service's own file storage.

    Raises:
        PluginError: the section has keys.
    """
    parse_section(FileNotifierSettings, section)
    yield _FileNotifier(host.storage)


@dataclass(frozen=True, slots=True)
class _FileNotifier:
    storage: Storage

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """Store the payload as `<destination>/<job id>.json`; see `Notifier`.

        A second delivery replaces the file by an identical one. The service never deletes the file. When the
        storage refuses it, the callback is retried: the operator has to repair the storage.
        """
        try:
            folder = "/".join(split_folder(destination))
        except ValueError:
            return Rejected("the callback's destination is not a folder in the file storage")
        body = Body(
            size=len(payload.body),
            sha256=hashlib.sha256(payload.body).hexdigest(),
            mime_type=_MIME_TYPE,
            data=payload.body,
        )
        with trio.move_on_after(_DEADLINE_S):
            try:
                await self.storage.put(f"{folder}/{payload.job_id}.json", body)
            except StorageError as exc:
                return RetryLater(f"not stored: {exc}")
            return Delivered()
        return RetryLater(f"not stored within {_DEADLINE_S:g} s")
