"""Storage in Google Cloud Storage or Azure: in the service's own bucket, and in buckets named by jobs.

All requests are made by obstore, whose HTTP client is written in Rust. Importing this module does not import
obstore, which takes 0.1 s of CPU.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, model_validator

from downloader.errors import PluginError
from downloader.net import parse_endpoint
from downloader.storage import (
    Body,
    Buckets,
    BucketUrl,
    KeyTaken,
    Storage,
    StorageError,
    StorageHost,
    StorageRefused,
    StoredFile,
    parse_section,
    text_globs,
)
from downloader_plugins.objects import (
    Call,
    PassingError,
    Threads,
    check_ours,
    full_key,
    marked_metadata,
    repeated,
)

if TYPE_CHECKING:  # imported late
    from obstore.store import AzureStore, GCSStore

    Store: TypeAlias = GCSStore | AzureStore

Scheme = Literal["gs", "az"]
"""`gs` is Google Cloud Storage, `az` Azure Blob Storage, where buckets are called containers."""

_PART_BYTES = 8 * 1024 * 1024
"""Size of a part; larger files are sent in parts."""

_MAX_PARTS = 10_000
"""Google's limit of parts in one upload; Azure's is higher. Larger files have larger parts."""

_PARTS_IN_FLIGHT = 4
"""Most parts of one upload in memory."""

_MAX_CONDITIONAL_BYTES = 64 * 1024 * 1024
"""Largest file with `key_exists` `keep` or `fail`: obstore has conditions only for a request with the whole
file, which is then in memory."""

_RETRIES = 2
"""Most repetitions of a request after a response 500 or 503, or a lost connection."""

_PAUSES_S = (0.2, 1.0, 2.0, 4.0)
"""Pauses, with jitter, before an upload in parts is repeated because another one of the same key has ended in
between: Azure then drops the parts."""

_IDLE_S = 2
"""Seconds for which an idle connection is kept. obstore may close it only then, even if the storage is closed
before."""

_CLIENTS = 16
"""Number of cached clients, a client for each bucket of jobs. Each takes 40 ms of CPU."""

_CHECK_KEY = ".downloader-check"
"""Key of the empty object by which an opening tests whether the bucket is writable."""

_SHA256 = "downloader_sha256"
"""See `marked_metadata`. Azure allows no hyphen in a name."""

_AZURE_NAME = re.compile(r"[a-z_][a-z0-9_]*")

_STATUS = re.compile(r"status code: ([1-5]\d\d)\b")
_CREDENTIALS = re.compile(r"token request|[Cc]redential error|computeMetadata")
_TIMEOUT = re.compile(r"timed out|timeout", re.IGNORECASE)

_TOO_LARGE = 413
_NOT_THE_BUCKET = frozenset({401, 408, 409, 412, 425, 429})
"""Statuses below 500 for which the bucket is not at fault: expired credentials, another writer, too many
requests."""

_MEANING = {
    401: "the credentials are not accepted",
    403: "access denied",
    404: "there is no such bucket",
    _TOO_LARGE: "the file is larger than it takes",
}

T = TypeVar("T")


class ConnectionSettings(BaseModel):
    """How the services are reached."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    timeout: float = Field(default=30.0, gt=0, le=50)
    """Seconds for a request, which sends at most 8 MiB of a file, or 64 MiB with `key_exists`."""
    gs: dict[str, str | bool] = Field(default_factory=dict, repr=False)
    """Options of obstore for Google, such as `service_account` (a file) or `base_url` (another server).
    Without credentials here: those of the environment or the machine."""
    az: dict[str, str | bool] = Field(default_factory=dict, repr=False)
    """Options of obstore for Azure: `account_name`, which is required, and for example `account_key` or
    `endpoint` (another server). Without credentials here: those of the environment or the machine."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for scheme, name in (("gs", "base_url"), ("az", "endpoint")):
            options = self.gs if scheme == "gs" else self.az
            if name in options:
                try:
                    parse_endpoint(str(options[name]))
                except ValueError as exc:
                    raise ValueError(f"{scheme}.{name}: {exc}") from None
        return self

    def options(self, scheme: str) -> dict[str, str | bool]:
        """Options of obstore with the server's address, so that the environment sets none.

        Raises:
            PluginError: `az.account_name` is missing.
        """
        if scheme == "gs":
            return {"base_url": "https://storage.googleapis.com", **self.gs}
        if not self.az.get("account_name"):
            raise PluginError("az.account_name: is required for az://")
        return {"endpoint": f"https://{self.az['account_name']}.blob.core.windows.net", **self.az}

    def base_url(self, scheme: str) -> str:
        """The URL of the server without a slash at the end. Raises as `options`."""
        options = self.options(scheme)
        return str(options["base_url" if scheme == "gs" else "endpoint"]).rstrip("/")


class CloudStorageSettings(ConnectionSettings):
    """`[processor.filestorage]` with `type = "cloud"`."""

    url: str
    """The bucket and a prefix of all keys: `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`."""


class CloudBucketsSettings(ConnectionSettings):
    """`[processor.cloud]`: for jobs that name a bucket of the client."""

    buckets: list[str] = Field(default_factory=list)
    """Glob patterns of the buckets that jobs may name, such as `gs://shop-*`."""


@asynccontextmanager
async def open_cloud(section: Mapping[str, Any], host: StorageHost) -> AsyncIterator[Storage]:  # noqa: ARG001  # required by the protocol
    """Check that the bucket can be written, then open the storage; files stay after the close.

    Raises:
        PluginError: the section is invalid, or the bucket cannot be written.
    """
    settings = parse_section(CloudStorageSettings, section)
    try:
        url = BucketUrl.parse(settings.url)
    except ValueError as exc:
        raise PluginError(f"url: {exc}") from exc
    if url.scheme == "s3":
        raise PluginError("url: must begin with gs:// or az://; the storage s3 is for s3://")
    threads = Threads()
    bucket = await threads.run(lambda _: _open_bucket(url, settings, threads, own=True))
    try:
        await bucket.check()
    except StorageError as exc:
        raise PluginError(f"cannot be written: {exc}") from exc
    yield bucket


@asynccontextmanager
async def open_cloud_buckets(section: Mapping[str, Any], host: StorageHost) -> AsyncIterator[Buckets]:  # noqa: ARG001  # required by the protocol
    """Open access to the buckets of jobs. obstore is imported when the first bucket is used.

    Raises:
        PluginError: the section is invalid.
    """
    yield _Buckets(parse_section(CloudBucketsSettings, section))


class _Buckets:
    """`Buckets` with a client for each bucket, and common threads."""

    def __init__(self, settings: CloudBucketsSettings) -> None:
        self._settings = settings
        self._allows = text_globs(settings.buckets)
        self._threads = Threads()
        self._opened: dict[str, Bucket] = {}

    async def bucket(self, name: str, region: str) -> Storage:  # noqa: ARG002  # required by the protocol
        """See `Buckets.bucket`; `name` is `gs://BUCKET` or `az://CONTAINER`."""
        try:
            url = BucketUrl.parse(name)
        except ValueError as exc:
            raise StorageRefused(f"not a bucket: {exc}") from exc
        if not self._allows(name):
            raise StorageRefused(f"bucket {name} is not allowed by processor.cloud.buckets")
        if (bucket := self._opened.pop(name, None)) is None:
            try:
                bucket = await self._threads.run(
                    lambda _: _open_bucket(url, self._settings, self._threads, own=False)
                )
            except PluginError as exc:
                raise StorageError(f"{name} cannot be used: {exc}") from exc
        self._opened[name] = bucket  # moved to the end: the first one is the least recently used
        if len(self._opened) > _CLIENTS:
            del self._opened[next(iter(self._opened))]  # the last reference closes the connections
        return bucket

    def url(self, name: str, region: str, key: str) -> str:  # noqa: ARG002  # required by the protocol
        """See `Buckets.url`."""
        return _object_url(BucketUrl.parse(name), self._settings, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """`Storage` in a bucket."""

    store: Store
    threads: Threads
    settings: ConnectionSettings
    at: BucketUrl
    own: bool
    """Whether the bucket is the service's own: then no error is final."""
    knows_key_exists: bool = True
    """See `Storage.put`."""

    async def put(self, key: str, body: Body) -> None:
        """Store a file; see `Storage.put`. A file larger than `_PART_BYTES` is sent in parts.

        A cancel ends an upload between two parts, and aborts the upload. A request that is being sent goes
        on in its thread, until the time limit at most.
        """
        full = self._full(key)
        conditional = body.key_exists in ("keep", "fail")
        if conditional and body.size > _MAX_CONDITIONAL_BYTES:
            raise StorageRefused(
                f"{self.at.bucket}: a file over 64 MiB cannot have key_exists {body.key_exists}"
            )
        put = partial(self._put, full, body, conditional=conditional)
        stored = await repeated(lambda: self._run(put), _PAUSES_S)
        if (
            not stored
            and body.key_exists == "fail"
            and not await self._run(lambda _: self._is_stored(full, body))
        ):
            raise KeyTaken(f"{self.at.bucket}: another object has the key {key!r}")

    async def delete(self, key: str) -> None:
        """Delete a file; see `Storage.delete`."""
        full = self._full(key)
        await self._run(lambda _: self._delete(full))

    async def local(self, key: str) -> StoredFile | None:  # noqa: ARG002  # required by the protocol
        """See `Storage.local`; always `None`."""
        return None

    def url(self, key: str) -> str:
        """See `Storage.url`; the object may not be public."""
        return _object_url(self.at, self.settings, key)

    async def size(self, key: str) -> int | None:
        """Bytes of an object, `None` if missing; see `Storage`."""
        full = self._full(key)
        return await self._run(lambda _: self._size(full))

    async def check(self) -> None:
        """Check that the bucket can be written: store an empty object, and delete the object.

        Raises:
            StorageError: the bucket cannot be written.
        """
        full = self._full(_CHECK_KEY)
        body = Body(size=0, sha256="", mime_type="text/plain", data=b"")
        await self._run(partial(self._put, full, body, conditional=False))
        await self._run(lambda _: self._delete(full))

    def _full(self, key: str) -> str:
        return full_key(self.at.prefix, key, bucket=self.at.bucket)

    async def _run(self, work: Callable[[Call], T]) -> T:
        from obstore.exceptions import BaseError  # noqa: PLC0415 - see the module's docstring

        try:
            return await self.threads.run(work)
        except (BaseError, OSError, ValueError) as exc:
            # Not from it: its text has the URL of the request, with the signature of Azure.
            raise _explain(exc, bucket=self.at.bucket, own=self.own) from None

    # Each of the following methods is called in a thread.

    def _put(self, key: str, body: Body, call: Call, *, conditional: bool) -> bool:
        """Store the file; returns false if `conditional` and an object has the key."""
        import obstore  # noqa: PLC0415 - see the module's docstring
        from obstore.exceptions import AlreadyExistsError  # noqa: PLC0415

        in_parts = body.path is not None and body.size > _PART_BYTES and not conditional
        part_bytes = max(_PART_BYTES, -(-body.size // _MAX_PARTS))
        pieces = _pieces(body, part_bytes, call)
        try:
            obstore.put(
                self.store,
                key,
                pieces if in_parts else b"".join(pieces),
                attributes=self._attributes(body),
                mode="create" if conditional else "overwrite",
                use_multipart=in_parts,
                chunk_size=part_bytes,
                max_concurrency=_PARTS_IN_FLIGHT,
            )
        except AlreadyExistsError:
            if not conditional:
                raise
            # Azure responds 409 for other reasons too; without the object this raises an error.
            obstore.head(self.store, key)
            return False
        return True

    def _delete(self, key: str) -> None:
        import obstore  # noqa: PLC0415 - see the module's docstring

        with suppress(FileNotFoundError):
            obstore.delete(self.store, key)

    def _size(self, key: str) -> int | None:
        import obstore  # noqa: PLC0415 - see the module's docstring
        from obstore.exceptions import PermissionDeniedError  # noqa: PLC0415

        try:
            return obstore.head(self.store, key)["size"]
        except FileNotFoundError:
            return None
        except PermissionDeniedError:
            raise StorageRefused(f"{self.at.bucket}: the object may not be read") from None

    def _is_stored(self, key: str, body: Body) -> bool:
        """Whether an earlier attempt has stored the bytes of the body."""
        import obstore  # noqa: PLC0415 - see the module's docstring

        try:
            stored = obstore.get(self.store, key, options={"head": True})
        except FileNotFoundError:  # deleted meanwhile
            return False
        return bool(stored.meta["size"] == body.size and stored.attributes.get(_SHA256) == body.sha256)

    def _attributes(self, body: Body) -> dict[str, str]:
        metadata = marked_metadata(body, _SHA256)
        if self.at.scheme == "az":
            names = ((name.replace("-", "_"), value) for name, value in metadata.items())
            metadata = {name: value for name, value in names if _AZURE_NAME.fullmatch(name)}
        headers = {"Content-Type": body.mime_type, "Content-Disposition": body.content_disposition}
        return metadata | {name: value for name, value in headers.items() if value}


def _open_bucket(at: BucketUrl, settings: ConnectionSettings, threads: Threads, *, own: bool) -> Bucket:
    """Make a client. Blocks; no network.

    Raises:
        PluginError: the options are invalid.
    """
    from obstore.exceptions import BaseError  # noqa: PLC0415 - see the module's docstring
    from obstore.store import AzureStore, GCSStore  # noqa: PLC0415

    make: Any = GCSStore if at.scheme == "gs" else AzureStore  # the options are typed by name
    limit = timedelta(seconds=settings.timeout)
    try:
        store = make(
            at.name,
            config=settings.options(at.scheme),
            client_options={
                "allow_http": settings.base_url(at.scheme).startswith("http://"),
                "connect_timeout": limit / 2,
                "pool_idle_timeout": timedelta(seconds=_IDLE_S),
                "timeout": limit,
            },
            retry_config={
                "max_retries": _RETRIES,
                "retry_timeout": limit,
                "backoff": {
                    "init_backoff": timedelta(seconds=0.2),
                    "max_backoff": timedelta(seconds=1),
                    "base": 2,
                },
            },
        )
    except (BaseError, ValueError) as exc:
        raise PluginError(
            f"{at.scheme}: obstore refuses the options: {str(exc).partition(chr(10))[0]}"
        ) from None
    return Bucket(store=store, threads=threads, settings=settings, at=at, own=own)


def _object_url(at: BucketUrl, settings: ConnectionSettings, key: str) -> str:
    return f"{settings.base_url(at.scheme)}/{at.name}/{quote(at.prefix + key)}"


def _pieces(body: Body, part_bytes: int, call: Call) -> Iterator[bytes]:
    """The file in pieces. Before the last request is sent, checks that the job is not another instance's.

    Raises:
        GivenUp: the call was cancelled.
        StorageError: the file cannot be read or is shorter than it was, or another instance has the job.
    """
    if body.path is None:
        yield body.data or b""
    else:
        yield from _read(body.path, body.size, part_bytes, call)
    call.check()
    check_ours(body)


def _read(path: Path, size: int, part_bytes: int, call: Call) -> Iterator[bytes]:
    try:
        with path.open("rb", buffering=0) as file:
            while size > 0:
                call.check()
                piece = file.read(min(size, part_bytes))
                if not piece:
                    raise StorageError("the file to be sent is shorter than it was")
                size -= len(piece)
                yield piece
    except OSError as exc:
        text = f"the file to be sent cannot be read: {exc.strerror or type(exc).__name__}"
        raise StorageError(text) from exc


def _explain(exc: Exception, *, bucket: str, own: bool) -> StorageError:
    """The `StorageError` for an error of obstore, without its text, which may contain secrets.

    A file that is too large is refused for good (`StorageRefused`), and so is a bucket of a job that is
    missing or forbidden. The service's `own` bucket may be mended, so its other errors are not final.
    """
    secret_text = str(exc)
    match = _STATUS.search(secret_text)
    if match is None:
        return StorageError(f"{bucket}: {_reason_without_status(secret_text)}")
    if "<Code>InvalidBlockList</Code>" in secret_text:
        return PassingError(f"{bucket}: another upload of the same key has ended meanwhile")
    status = int(match[1])
    text = f"{bucket}: status {status}" + (f": {_MEANING[status]}" if status in _MEANING else "")
    at_fault = 400 <= status < 500 and status not in _NOT_THE_BUCKET  # noqa: PLR2004 - the client errors
    return StorageRefused(text) if status == _TOO_LARGE or (at_fault and not own) else StorageError(text)


def _reason_without_status(secret_text: str) -> str:
    if _CREDENTIALS.search(secret_text):
        return "the credentials cannot be obtained"
    return "no answer in time" if _TIMEOUT.search(secret_text) else "the request failed"
