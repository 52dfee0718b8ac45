"""Stored files: in the service's storage, and in buckets that jobs name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from downloader.config import Settings
from downloader.fetch import CompleteBody
from downloader.model import JobSpec
from downloader.storage import Body, Buckets, Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The stored files of all jobs."""

    settings: Settings
    storage: Storage
    buckets: Buckets

    async def put(
        self, spec: JobSpec, body: CompleteBody, mime_type: str, still_ours: Callable[[], bool]
    ) -> None:
        """Store a job's file, in its own bucket if it names one; see `downloader.fetch.StoreFile`."""
        storage, metadata = self.storage, {}
        if spec.s3_bucket:
            storage = await self.buckets.bucket(spec.s3_bucket, spec.s3_region)
            metadata = object_metadata(spec.extra)
        await storage.put(
            spec.storage_key,
            Body(
                size=body.size,
                sha256=body.sha256,
                mime_type=mime_type,
                data=body.data,
                path=body.path,
                metadata=metadata,
                still_ours=still_ours,
            ),
        )

    async def delete(self, spec: JobSpec) -> None:
        """Delete a job's file in the service's storage. A file in the bucket that the job named stays.

        Raises:
            StorageError: it could not be deleted; a later try may succeed.
        """
        if not spec.s3_bucket:
            await self.storage.delete(spec.storage_key)

    def url(self, spec: JobSpec) -> str:
        """`download_url` of a job's file.

        For a bucket that the job named, the object's URL. Otherwise, in this order: below the configured
        base, the storage's own URL, or below the API's `/files`.
        """
        key = spec.storage_key
        if spec.s3_bucket:
            return self.buckets.url(spec.s3_bucket, spec.s3_region, key)
        base = self.settings.processor.download_url
        if not base and (url := self.storage.url(key)):
            return url
        return f"{(base or f'{self.settings.api.local_url}/files').rstrip('/')}/{quote(key)}"


def object_metadata(extra: str) -> dict[str, str]:
    """The strings and numbers of a JSON object, numbers as they are written; none if it is no object."""
    try:
        # A constant (NaN, Infinity) is no JSON number; numbers stay text, so that none loses a digit.
        fields: Any = json.loads(extra, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict):
        return {}
    return {name: value for name, value in fields.items() if isinstance(value, str)}
