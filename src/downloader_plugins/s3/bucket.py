"""Storage in one S3 bucket. Importing this module imports botocore."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import trio
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from downloader.storage import Body, KeyTaken, StorageError, StorageRefused, StoredFile
from downloader_plugins.aws import error_code
from downloader_plugins.objects import Call, Threads, check_ours, full_key, marked_metadata, repeated
from downloader_plugins.s3.client import Clients, ObjectExists, explain
from downloader_plugins.s3.uploads import Uploads, content_md5, open_part

if TYPE_CHECKING:  # stubs, which only type checking has
    from types_boto3_s3.type_defs import CompletedPartTypeDef, ListMultipartUploadsOutputTypeDef

PART_BYTES = 8 * 1024 * 1024
"""Size of a part; larger files are sent in parts. S3 requires 5 MiB except for the last part."""

MAX_PARTS = 10_000
"""S3's limit of parts in one upload."""

_PARTS_IN_FLIGHT = 4
"""Most parts of one upload sent at once, so that one upload does not take all threads."""

_PAUSES_S = (0.2, 1.0)
"""Pauses, with jitter, before a request is repeated. S3 sometimes responds 500 or 503, and a large file
should not be downloaded again because of that."""

_CLEANUP_S, _HURRIED_CLEANUP_S = 10.0, 0.5
"""Time limits for aborting the upload after a failed `put`, and after a cancelled one. After that the request
goes on in a thread; a remaining upload is aborted by the job's next attempt."""

_LEFTOVER_AGE = timedelta(days=1)
"""Age from which an upload counts as left by a crash."""

_OUR_KEY = re.compile(r"(?:.*/)?(?P<folder>[0-9A-Za-z_-]{3})/(?P=folder)[0-9A-Za-z_-]{11}")
"""Form of the service's own keys."""

_SWEEP_PAGES = 100
"""Most pages, of 1000 uploads each, of one sweep; the next start continues."""

CHECK_KEY = ".downloader-check"
"""Key of the upload by which `check` tests whether the bucket is writable."""

_SHA256 = "downloader-sha256"
"""See `marked_metadata`."""

_MULTIPART_ETAG = re.compile(r'"?[0-9a-f]{32}-(?P<parts>\d+)"?')

T = TypeVar("T")


async def _clean_up(abort: Callable[[], Awaitable[None]]) -> None:
    """Call `abort` within `_CLEANUP_S`, or within `_HURRIED_CLEANUP_S` after a cancel."""
    hurried = True
    try:
        with trio.move_on_after(_CLEANUP_S):
            await abort()
        hurried = False
    finally:
        if hurried:
            with trio.move_on_after(_HURRIED_CLEANUP_S, shield=True):
                await abort()


class _Part(NamedTuple):
    """A part of an upload."""

    key: str
    upload: str
    number: int
    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """`Storage` in a bucket; several may share clients and threads."""

    clients: Clients
    name: str
    own: bool
    """Whether the bucket is the service's own; see `explain`."""
    threads: Threads
    uploads: Uploads
    """The uploads in progress in the process."""
    locate: Callable[[str], str]
    """Returns the URL of an object for a full key."""
    folder: str = ""
    """Prefix of every key; empty, or ends with `/`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of each new object, such as the storage class."""
    knows_key_exists: bool = True
    """See `Storage.put`."""

    async def put(self, key: str, body: Body) -> None:
        """Store a file; see `Storage.put`. A file larger than `PART_BYTES` is sent in parts.

        A cancel interrupts requests while they are being sent, and aborts an upload in parts. S3 may still
        carry out a request that was sent completely.
        """
        full = self._full(key)
        try:
            if body.path is None or body.size <= PART_BYTES:
                await self._tried(partial(self._put_whole, full, body))
            else:
                await self._put_parts(full, body, body.path)
        except ObjectExists as exc:
            if not _condition(body):
                raise
            if body.key_exists == "fail" and not await self._tried(lambda _: self._is_stored(full, body)):
                raise KeyTaken(f"S3 bucket {self.name}: another object has the key {key!r}") from exc

    async def delete(self, key: str) -> None:
        """Delete a file, and abort uploads with the same key; see `Storage.delete`."""
        full = self._full(key)
        await self._tried(lambda _: self._delete_object(full))
        await self._abort_uploads_of(full)

    async def local(self, key: str) -> StoredFile | None:  # noqa: ARG002  # required by the protocol
        """See `Storage.local`; always `None`."""
        return None

    def url(self, key: str) -> str:
        """See `Storage.url`; the object may not be public."""
        return self.locate(self.folder + key)

    async def size(self, key: str) -> int | None:
        """Bytes of an object, `None` if missing; see `Storage`.

        Raises:
            StorageRefused: the credentials lack `s3:GetObject` or, for a missing object, `s3:ListBucket`.
        """
        full = self._full(key)
        return await self._tried(lambda _: self._size(full))

    async def check(self) -> None:
        """Check that the bucket can be written: create an upload and abort the upload, which stores nothing.

        Raises:
            StorageError: the bucket cannot be written.
        """
        full = self.folder + CHECK_KEY
        try:
            upload = await self._run(lambda _: self._begin(full, self.options))
            await self._run(lambda _: self._abort(full, upload))
        except BaseException:
            # S3 may have created the upload although the response was lost.
            await _clean_up(partial(self._abort_uploads_of, full))
            raise

    async def sweep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Abort the uploads of crashed instances, which cost money and are not visible as objects.

        Aborts the uploads of `check`, and uploads older than `_LEFTOVER_AGE` under a key of the service's
        form. An instance that runs `check` at the same time does not notice. Does nothing if the uploads
        cannot be listed.
        """
        task_status.started()
        now = datetime.now(UTC)
        after: dict[str, str] = {}
        with suppress(StorageError, KeyError):  # KeyError: the response lacks fields
            for _ in range(_SWEEP_PAGES):
                page = await self._run(partial(self._list_uploads, self.folder, after))
                for upload in page.get("Uploads", []):
                    age = now - upload.get("Initiated", now)  # missing on some servers
                    short = upload["Key"].removeprefix(self.folder)
                    if short == CHECK_KEY or (age > _LEFTOVER_AGE and _OUR_KEY.fullmatch(short)):
                        # An upload of this process looks old if the server's clock is wrong.
                        async with self.uploads.turn(upload["Key"]):
                            if upload["UploadId"] not in self.uploads.live:
                                await self._abort_upload(upload["Key"], upload["UploadId"])
                after = {
                    "KeyMarker": page.get("NextKeyMarker", ""),
                    "UploadIdMarker": page.get("NextUploadIdMarker", ""),
                }
                if not page.get("IsTruncated") or not after["KeyMarker"]:
                    return

    def _full(self, key: str) -> str:
        return full_key(self.folder, key, bucket=f"S3 bucket {self.name}")

    async def _put_parts(self, key: str, body: Body, path: Path) -> None:
        options = self._object_options(body)
        async with self.uploads.turn(key):
            # Abort the uploads of earlier attempts. An attempt still running on another instance then fails.
            check_ours(body)
            await self._abort_earlier(key, body)
            tries, upload = await self._begun(key, options, body)
            self.uploads.live.add(upload)
        try:
            if tries > 1:
                # S3 may have begun an upload in an earlier try although the response was lost.
                await self._abort_earlier(key, body)
            etags = await self._send_parts(key, upload, body.size, path)
            await self._tried(lambda _: self._complete(key, upload, etags, body))
        except BaseException:
            await _clean_up(partial(self._abort_upload, key, upload))
            raise
        finally:
            self.uploads.live.discard(upload)

    async def _begun(self, key: str, options: Mapping[str, Any], body: Body) -> tuple[int, str]:
        """Begin an upload; return how often that was tried, and the upload's id."""
        tries = count(1)
        try:
            return await self._tried(lambda _: (next(tries), self._begin(key, options)))
        except BaseException:
            # S3 may have created the upload although the response was lost.
            await _clean_up(partial(self._abort_earlier, key, body))
            raise

    async def _send_parts(self, key: str, upload: str, size: int, path: Path) -> list[str]:
        """Send all parts, several at a time; return the ETags in order."""
        step = max(PART_BYTES, math.ceil(size / MAX_PARTS))
        offsets = range(0, size, step)
        etags = [""] * len(offsets)
        waiting = iter(enumerate(offsets))
        problem: StorageError | None = None

        async def send() -> None:
            nonlocal problem
            for index, offset in waiting:
                part = _Part(key, upload, index + 1, path, offset, min(step, size - offset))
                try:
                    etags[index] = await self._tried(partial(self._send_part, part))
                except StorageError as exc:
                    problem = problem or exc
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(_PARTS_IN_FLIGHT, len(etags))):
                nursery.start_soon(send)
        if problem is not None:
            raise problem
        return etags

    async def _abort_earlier(self, key: str, body: Body) -> None:
        """Abort the uploads of the job's earlier attempts; none if other jobs may have the same key."""
        if body.key_exists is None:
            await self._abort_uploads_of(key)

    async def _abort_uploads_of(self, key: str) -> None:
        """Abort uploads with exactly the given key, except uploads of the process. Ignores a StorageError."""
        with suppress(StorageError):
            page = await self._run(partial(self._list_uploads, key, {}))
            for upload in page.get("Uploads", []):
                if upload["Key"] == key and upload["UploadId"] not in self.uploads.live:
                    await self._abort_upload(key, upload["UploadId"])

    async def _abort_upload(self, key: str, upload: str) -> None:
        with suppress(StorageError):
            await self._tried(lambda _: self._abort(key, upload))

    async def _tried(self, work: Callable[[Call], T]) -> T:
        """Call `_run`; after a temporary error repeat the call, twice at most."""
        return await repeated(lambda: self._run(work), _PAUSES_S)

    async def _run(self, work: Callable[[Call], T]) -> T:
        try:
            return await self.threads.run(work)
        except (BotoCoreError, ClientError, ResponseParserError, OSError) as exc:
            raise explain(exc, bucket=self.name, own=self.own) from exc

    # The following methods run in a thread; each makes at most one request.

    def _put_whole(self, key: str, body: Body, call: Call) -> None:
        if body.path is None:
            data = body.data or b""
            self._put_object(key, body, data, content_md5([data]))
            return
        with open_part(body.path, 0, body.size, call) as (source, md5):
            self._put_object(key, body, source, md5)

    def _put_object(self, key: str, body: Body, source: Any, md5: str) -> None:
        options = self._object_options(body)
        check_ours(body)
        response = self.clients.quick.put_object(
            Bucket=self.name,
            Key=key,
            Body=source,
            ContentLength=body.size,
            ContentMD5=md5,
            **options,
            **_condition(body),
        )
        self._confirmed(response)

    def _begin(self, key: str, options: Mapping[str, Any]) -> str:
        response = self.clients.quick.create_multipart_upload(Bucket=self.name, Key=key, **options)
        if not response.get("UploadId"):
            raise StorageError(f"S3 bucket {self.name}: the response has no UploadId")
        return response["UploadId"]

    def _send_part(self, part: _Part, call: Call) -> str:
        with open_part(part.path, part.offset, part.size, call) as (source, md5):
            response = self.clients.quick.upload_part(
                Bucket=self.name,
                Key=part.key,
                UploadId=part.upload,
                PartNumber=part.number,
                Body=source,  # type: ignore[arg-type]  # botocore only calls read, seek and tell
                ContentLength=part.size,
                ContentMD5=md5,
            )
        return self._confirmed(response)

    def _complete(self, key: str, upload: str, etags: Sequence[str], body: Body) -> None:
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)
        ]
        check_ours(body)
        response = self.clients.patient.complete_multipart_upload(
            Bucket=self.name, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, **_condition(body)
        )
        match = _MULTIPART_ETAG.fullmatch(self._confirmed(response))
        if match is not None and int(match["parts"]) != len(parts):
            raise StorageError(
                f"S3 bucket {self.name}: the object has {match['parts']} of {len(parts)} parts"
            )

    def _abort(self, key: str, upload: str) -> None:
        try:
            self.clients.quick.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload)
        except ClientError as exc:
            if error_code(exc) != "NoSuchUpload":
                raise

    def _list_uploads(
        self, prefix: str, after: Mapping[str, Any], _: Call
    ) -> ListMultipartUploadsOutputTypeDef:
        return self.clients.quick.list_multipart_uploads(Bucket=self.name, Prefix=prefix, **after)

    def _delete_object(self, key: str) -> None:
        try:
            self.clients.quick.delete_object(Bucket=self.name, Key=key)
        except ClientError as exc:
            if error_code(exc) != "NoSuchKey":
                raise

    def _object_options(self, body: Body) -> dict[str, Any]:
        return {
            **self.options,
            "ContentType": body.mime_type,
            "Metadata": marked_metadata(body, _SHA256),
            **({"ContentDisposition": body.content_disposition} if body.content_disposition else {}),
        }

    def _is_stored(self, key: str, body: Body) -> bool:
        """Whether an earlier attempt has stored the bytes of the body."""
        try:
            stored = self.clients.quick.head_object(Bucket=self.name, Key=key)
        except ClientError as exc:
            if error_code(exc) in ("403", "404"):  # not readable, or deleted meanwhile
                return False
            raise
        return stored["ContentLength"] == body.size and stored["Metadata"].get(_SHA256) == body.sha256

    def _size(self, key: str) -> int | None:
        try:
            return self.clients.quick.head_object(Bucket=self.name, Key=key)["ContentLength"]
        except ClientError as exc:
            match error_code(exc):
                case "404":
                    return None
                case "403":
                    raise StorageRefused(f"S3 bucket {self.name}: the object may not be read") from exc
            raise

    def _confirmed(self, response: Mapping[str, Any]) -> str:
        """The ETag of a response; a response without ETag confirms nothing, even with status 200."""
        etag = str(response.get("ETag") or "")
        if not etag:
            raise StorageError(f"S3 bucket {self.name}: the response has no ETag")
        return etag


def _condition(body: Body) -> Mapping[str, Any]:
    """The condition of a request that may not replace an object."""
    return {"IfNoneMatch": "*"} if body.key_exists in ("keep", "fail") else {}
