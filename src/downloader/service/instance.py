"""State that all roles of a process share: settings, store, files, and how the process stops."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from downloader.config import EMBEDDED, ProcessorSettings, RedisSettings, Settings, redacted
from downloader.errors import StorageError
from downloader.fetch import CompleteBody
from downloader.globs import Allows, text_globs
from downloader.lifetimes import ExitTimer, opened
from downloader.model import JobSpec, callback_queue, now_ms
from downloader.net import guarded_client, open_transport, tls_context
from downloader.notify import Bulkhead, Host
from downloader.observe import Counters, Traces
from downloader.plugins import BUCKETS, missing_package
from downloader.scheduler import Stop
from downloader.service.shared_files import SharedFiles
from downloader.storage import (
    CLOUD_BUCKETS,
    OWN_BUCKETS,
    Body,
    Buckets,
    Storage,
    buckets_plugin,
    storage_plugin,
)
from downloader.store import JobStore, embedded_valkey, limit_of_shard

SEALED = "the job is encrypted with a key that is not in redis.encryption_keys"
"""Another instance may have the key."""

RESERVE = 0.25
"""Part of the grace period reserved for handing back leases, sending callbacks, and closing."""

ROLES = ("api", "processor", "notifier")

SHARED: Mapping[str, Sequence[str]] = {
    "backends": ("api", "notifier"),
    "processor.filestorage": ROLES,
    "processor.download_url": ROLES,
}
"""The settings, and the roles that use them: the API refuses jobs for other backends, the processor stores
the files that the notifier deletes, and the notifier makes the links of callbacks."""

_MOST_NAMED = 3
"""Most instances named for each value of a setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The stored files of all jobs."""

    settings: Settings
    storage: Storage
    buckets: Buckets
    """In S3."""
    clouds: Buckets
    """In Google Cloud Storage and Azure."""
    shared: SharedFiles | None = None
    """Counts the jobs of each shared file; `None`: shared files are never deleted."""

    async def put(
        self, spec: JobSpec, body: CompleteBody, mime_type: str, still_ours: Callable[[], bool]
    ) -> None:
        """Store a job's file, in the bucket that the job names, if any; see `Fetcher`."""
        storage, metadata = self.storage, {}
        if spec.is_shared and self.shared is not None and not await self.shared.share(spec, body):
            return
        if spec.bucket:
            storage = await self._buckets(spec).bucket(spec.bucket, spec.s3_region)
            metadata = object_metadata(spec.extra)
        await storage.put(
            spec.storage_key(body.sha256),
            Body(
                size=body.size,
                sha256=body.sha256,
                mime_type=spec.content_type or mime_type,
                content_disposition=spec.content_disposition,
                key_exists=spec.key_exists if spec.key else None,
                data=body.data,
                path=body.path,
                metadata=metadata,
                still_ours=still_ours,
            ),
        )

    async def delete(self, spec: JobSpec, digests: Sequence[str]) -> None:
        """Delete a job's file from the service's storage; a shared file is deleted with the last job.

        `digests`: the SHA-256 digests of the job's shared files; empty for a file of its own.

        A file under a `key`, or in a bucket that the job names, is not deleted: it belongs to the client, and
        another job may have replaced it.

        Raises:
            StorageError: the file could not be deleted; a later try may succeed.
        """
        if digests and spec.sealed:
            raise StorageError(SEALED)
        if digests and self.shared is not None:
            for sha256 in digests:
                await self.shared.delete(spec, sha256)
        elif not spec.bucket and not spec.key:
            await self.storage.delete(spec.storage_key(""))

    def url(self, spec: JobSpec, sha256: str) -> str:
        """`download_url` of a job's file with this SHA-256.

        In a bucket that the job named, the object's URL. Otherwise the first of: a URL below the configured
        `download_url`, the storage's own URL, a URL below the API's `/files`.
        """
        key = spec.storage_key(sha256)
        if spec.bucket:
            return self._buckets(spec).url(spec.bucket, spec.s3_region, key)
        base = self.settings.processor.download_url
        if not base and (url := self.storage.url(key)):
            return url
        return f"{(base or f'{self.settings.api.local_url}/files').rstrip('/')}/{quote(key)}"

    def _buckets(self, spec: JobSpec) -> Buckets:
        return self.buckets if spec.s3_bucket else self.clouds


@dataclass(slots=True, kw_only=True)
class Instance:
    """State that all roles of a process share."""

    settings: Settings
    roles: frozenset[str]
    store: JobStore
    files: Files
    owner: str
    rng: random.Random
    counters: Mapping[str, Counters]
    """By role."""
    traces: Traces | None
    """`None`: no traces are recorded."""
    timer: ExitTimer
    """Ends the process if a stop takes longer than `grace_s`."""
    stop: Stop = field(default_factory=Stop)
    """The stop of downloads and the API."""
    stop_callbacks: Stop = field(default_factory=Stop)
    """The stop of callbacks; begins when no more downloads can finish in this process."""
    running: dict[str, bool] = field(default_factory=dict)
    """Whether each role runs; for readiness."""
    bulkhead: Bulkhead | None = None
    """Divides the slots among the backends; notifiers only."""
    troubles: dict[str, Callable[[], str]] = field(default_factory=dict)
    """Functions by the names in `TROUBLES`; each describes the trouble in a line, empty without one."""
    started_ms: int = field(default_factory=now_ms)

    def present_troubles(self) -> Mapping[str, str]:
        """The troubles that the instance has now, by name."""
        return {name: text for name, trouble in self.troubles.items() if (text := trouble())}

    @property
    def grace_s(self) -> float:
        """Seconds from the first signal to the exit."""
        return grace_of(self.settings, self.roles)


def grace_of(settings: Settings, roles: frozenset[str]) -> float:
    """Time limit in seconds for the stop of a process with `roles`."""
    return settings.processor.grace if "processor" in roles else settings.notifier.grace


@asynccontextmanager
async def running_redis(settings: Settings) -> AsyncIterator[RedisSettings]:
    """The settings of the store's connection; an embedded store runs while the context is open.

    Raises:
        ConfigError, StoreUnavailable: see `embedded_valkey`.
    """
    if settings.redis.url != EMBEDDED:
        yield settings.redis
        return
    async with embedded_valkey(settings.data_dir, settings.redis.max_memory) as url:
        yield settings.redis.model_copy(update={"url": url})


@asynccontextmanager
async def open_files(settings: Settings, store: JobStore) -> AsyncIterator[Files]:
    """The file storage and the buckets of jobs.

    Raises:
        PluginError: one of them cannot be opened.
    """
    s3, cloud = settings.processor.s3, settings.processor.cloud
    plugins = (
        storage_plugin(settings.storage_name, settings.storage_section),
        buckets_plugin(OWN_BUCKETS, s3.section, required=s3.is_set),
        buckets_plugin(CLOUD_BUCKETS, cloud.section, required=bool(cloud.buckets)),
    )
    async with opened(*plugins) as (storage, buckets, clouds):
        shared = SharedFiles(store=store, storage=storage)
        yield Files(settings=settings, storage=storage, buckets=buckets, clouds=clouds, shared=shared)


def allowed_buckets(processor: ProcessorSettings) -> Allows:
    """Whether jobs may name a `JobSpec.bucket`; none if the plugin needs a package that is missing."""
    s3, cloud = (
        text_globs([] if missing_package(BUCKETS, name) else patterns)
        for name, patterns in (
            (OWN_BUCKETS, processor.s3.buckets),
            (CLOUD_BUCKETS, processor.cloud.buckets),
        )
    )
    return lambda bucket: (cloud if "://" in bucket else s3)(bucket)


@asynccontextmanager
async def open_host(settings: Settings, storage: Storage) -> AsyncIterator[Host]:
    """The host for notifiers, with an HTTP client under `egress.callbacks`, and `storage`."""
    async with open_transport(settings.egress.policy("callbacks"), tls=tls_context()) as transport:
        yield Host(client=guarded_client(transport), transport=transport, storage=storage)


def object_metadata(extra: str) -> dict[str, str]:
    """The strings and numbers of a JSON object, numbers as written; empty for anything but an object."""
    try:
        # A constant (NaN, Infinity) is no JSON number; numbers stay text, so that none loses a digit.
        fields: Any = json.loads(extra, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict):
        return {}
    return {name: value for name, value in fields.items() if isinstance(value, str)}


def _destinations(settings: Settings) -> Sequence[object]:
    destinations = settings.backends.get("http", {}).get("destinations")
    return destinations if isinstance(destinations, list) else ()


def own_limits(settings: Settings) -> Mapping[str, int]:
    """The limit per shard of each destination that has its own `concurrency`, by queue of callbacks.

    Malformed destinations are left out: only the plugin checks them, when a notifier opens it.
    """
    limits = {}
    for destination in _destinations(settings):
        match destination:
            case {"match": str(url), "concurrency": int(concurrency)} if concurrency > 0:
                limits[callback_queue("http", url)] = limit_of_shard(concurrency, settings.redis)
    return limits


def own_rates(settings: Settings) -> Mapping[str, float]:
    """The starts per second of each destination that has its own `rate`, by queue; as in `own_limits`."""
    rates = {}
    for destination in _destinations(settings):
        match destination:
            case {"match": str(url), "rate": int(rate) | float(rate)} if rate > 0:
                rates[callback_queue("http", url)] = rate
    return rates


def shared_settings(settings: Settings) -> Mapping[str, str]:
    """The values of the shared settings as texts without secrets, for the report of an instance."""
    processor = redacted(settings)["processor"]
    hidden = {key: value for key, value in processor.get("filestorage", {}).items() if value != ""}
    section = {**settings.storage_section, **hidden, "type": settings.storage_name}
    return {
        "backends": ", ".join(sorted(settings.backends)) or "none",
        "processor.filestorage": ", ".join(f"{key} = {value}" for key, value in sorted(section.items())),
        "processor.download_url": processor["download_url"] or "none",
    }


def differences(reports: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each shared setting in which live instances differ.

    A report of an older version has no settings, and is not compared.
    """
    rows = [row for row in reports if isinstance(row.get("settings"), Mapping)]
    for setting, roles in SHARED.items():
        instances: defaultdict[str, list[str]] = defaultdict(list)
        for row in rows:
            if row.get("role") in roles and setting in row["settings"]:
                instances[str(row["settings"][setting])].append(f"{row['role']} on {row.get('host')}")
        if len(instances) > 1:
            values = (f"{value} ({_named(names)})" for value, names in sorted(instances.items()))
            yield f"{setting} differs: {'; '.join(values)}"


def _named(names: Sequence[str]) -> str:
    unique = sorted(set(names))
    more = len(unique) - _MOST_NAMED
    return ", ".join(unique[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
