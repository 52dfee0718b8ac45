"""The checks of all parts but the store. Each function returns one line, or raises what is wrong."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import secrets
import ssl
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import trio
from rich.filesize import decimal

from downloader.config import ApiSettings, EgressList, Settings
from downloader.errors import ConfigError, StorageError
from downloader.fetch import disk_used_percent
from downloader.net import local_host
from downloader.notify import Checkable, open_notifiers
from downloader.plugins import BUCKETS, missing_package
from downloader.service.instance import open_host
from downloader.service.start import listen
from downloader.storage import OWN_BUCKETS, Body, Storage, StoredFile, open_buckets, open_storage

OPENING_S = 10.0
"""Time limit for a plugin to open; shorter than the service's, because a person waits."""

ASK_S = 3.0
"""Time limit of the request to the program that has our port."""

TEXT = b"downloader doctor was here; this object may be deleted\n"


class Note(Exception):
    """Nothing is broken, but the operator should know; the text says what."""


async def examine_storage(settings: Settings) -> str:
    """Store a small object under a key that no job has, look at it, delete it."""
    key = f"doctor/{secrets.token_hex(8)}"
    name, digest = settings.storage_name, hashlib.sha256(TEXT).hexdigest()
    body = Body(size=len(TEXT), sha256=digest, mime_type="text/plain", data=TEXT)
    began = trio.current_time()
    async with open_storage(name, settings.storage_section, opening_s=OPENING_S) as storage:
        try:
            await storage.put(key, body)
            stored = await storage.local(key)
            if stored is not None and stored.size != len(TEXT):
                raise StorageError(f"stored {len(TEXT)} bytes, and found {stored.size}")
        finally:
            await storage.delete(key)
        if await storage.local(key) is not None:
            raise StorageError("deleted an object, which is still there")
        did = "wrote, found and deleted" if stored is not None else "wrote and deleted"
        return f"{name}: {did} an object{_where(storage.url(key), settings)} in {_ms(began)}"


def _where(url: str, settings: Settings) -> str:
    if url:
        return f" ({url})"
    root = settings.storage_section.get("rootdir")
    return f" in {root}" if root else ""


def unreachable_files(settings: Settings) -> str:
    """A warning if only this machine can reach the `download_url` of callbacks; otherwise empty."""
    base = settings.processor.download_url
    if settings.storage_name == "filesystem" and not base:
        base = settings.api.local_url
    host = urlsplit(base).hostname or ""
    if host != "localhost" and not host.endswith(".localhost") and not _is_loopback(host):
        return ""
    return f"callbacks name files below {base}, which no other machine can fetch"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def examine_buckets(settings: Settings) -> str:
    """Open the plugin for buckets of jobs; there is no bucket to try before a job names one."""
    section = settings.processor.s3
    if not section.is_set and (missing := missing_package(BUCKETS, OWN_BUCKETS)):
        raise Note(f"jobs' own buckets are refused: the plugin {missing}")
    async with open_buckets(OWN_BUCKETS, section.section):
        where = section.endpoint_url or "AWS"
        raise Note(f"jobs' own buckets, at {where}: nothing to try until a job brings one")


async def examine_backend(settings: Settings, name: str, storage: Storage) -> str:
    """Open one backend and have it try its peer, if it can."""
    section = {name: settings.backends[name]}
    async with (
        open_host(settings, storage) as host,
        open_notifiers(section, host, opening_s=OPENING_S) as notifiers,
    ):
        notifier = notifiers[name]
        if not isinstance(notifier, Checkable):
            return "opens; nothing to try until there is a callback"
        return str(await notifier.check())


class NoStorage:
    """Stands in for a file storage that does not open; that is a finding of its own."""

    async def put(self, key: str, body: Body) -> None:  # noqa: ARG002  # the protocol's
        """Raises StorageError."""
        raise StorageError("the file storage does not open")

    async def delete(self, key: str) -> None:  # noqa: ARG002  # the protocol's
        """Raises StorageError."""
        raise StorageError("the file storage does not open")

    async def local(self, key: str) -> StoredFile | None:  # noqa: ARG002  # the protocol's
        """`None`."""
        return None

    def url(self, key: str) -> str:  # noqa: ARG002  # the protocol's
        """Nowhere."""
        return ""


async def examine_spool(settings: Settings) -> str:
    """Write a temporary file in the spool, and check how full its disk is."""
    folder = settings.spool_dir
    text, used = await trio.to_thread.run_sync(_try_folder, folder, abandon_on_cancel=True)
    if used >= settings.processor.disk_high:
        raise StorageError(
            f"{text}; no download starts at disk_high = {settings.processor.disk_high:g}% or more"
        )
    if used >= settings.processor.disk_low:
        raise Note(f"{text}; at disk_high = {settings.processor.disk_high:g}% downloads pause")
    return text


def _try_folder(folder: Path) -> tuple[str, float]:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(TEXT)
            file.flush()
            os.fsync(file.fileno())
        used, disk = disk_used_percent(there), os.statvfs(there)
    except OSError as error:
        raise ConfigError(f"{there} cannot be written: {error.strerror or error}") from error
    what = "can be written" if there == folder else "can be made"
    return (
        f"{folder} {what}; the disk is {used:.0f}% full, {decimal(disk.f_bavail * disk.f_frsize)} free",
        used,
    )


async def examine_api(settings: Settings) -> str:
    """Bind the API's port for a moment, or find a running downloader on it."""
    api = settings.api
    where = f"{api.host}:{api.port}"
    try:
        [listener] = await trio.to_thread.run_sync(listen, api, abandon_on_cancel=True)
    except ConfigError as error:
        ask = partial(_is_ours, api)
        if not await trio.to_thread.run_sync(ask, abandon_on_cancel=True):
            raise ConfigError(f"{str(error).partition(': ')[2]}; another program has it") from None
        text = f"{where} is served by a downloader that runs"
        loopback = api.host == "localhost" or _is_loopback(api.host)
    else:
        loopback = _is_loopback(listener.getsockname()[0])
        listener.close()
        text = f"{where} is free"
    if not api.tokens and not loopback:
        raise Note(f"{text}; there are no [[api.tokens]]: every client that reaches it may do everything")
    if api.heartbeat_path and await trio.Path(api.heartbeat_path).exists():
        raise Note(f"{text}; {api.heartbeat_path} exists, which takes it out of rotation")
    tokens = len(api.tokens)
    return (
        f"{text}; {f'{tokens} tokens' if tokens != 1 else '1 token'}"
        if tokens
        else f"{text}; open to all who reach it"
    )


def _is_ours(api: ApiSettings) -> bool:
    """Whether a downloader answers there, by the one route that needs no token."""
    host = local_host(api.host)
    connection = http.client.HTTPConnection(host, api.port, timeout=ASK_S)
    if api.certfile:
        # Which program it is does not depend on the certificate's name, which is seldom the address.
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, api.port, timeout=ASK_S, context=tls)
    try:
        connection.request("GET", "/health/ready")
        answer = json.loads(connection.getresponse().read(10_000))
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return isinstance(answer, dict) and {"store", "roles"} <= answer.keys()


async def examine_egress(lists: EgressList) -> str:
    """Show which addresses may be connected to. Opens no connection."""
    await trio.lowlevel.checkpoint()
    allowed = ["public addresses", *lists.allow]
    text = f"may connect to {', '.join(allowed)}"
    return f"{text}; never to {', '.join(lists.deny)}" if lists.deny else text


def _ms(began: float) -> str:
    return f"{(trio.current_time() - began) * 1000:.0f} ms"


@dataclass(frozen=True, slots=True)
class MissingFolders:
    """Folders that do not exist yet and that the examination creates."""

    folders: Sequence[Path]
    """The innermost first."""

    @classmethod
    def of(cls, settings: Settings) -> MissingFolders:
        """The service's folders that are missing now."""
        made = [settings.data_dir]
        root = settings.storage_section.get("rootdir")
        if isinstance(root, str) and "\0" not in root:
            made.append(Path(root).expanduser() / ".tmp")
        missing = {path for leaf in made for path in (leaf, *leaf.absolute().parents) if not _exists(path)}
        return cls(sorted(missing, key=lambda path: -len(path.absolute().parts)))

    def remove_again(self) -> None:
        """Remove those that exist now and are empty."""
        for folder in self.folders:
            with suppress(OSError):
                folder.rmdir()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True
