"""Turns the predecessor's configuration (JSON) into ours (TOML), with comments for what has changed. Pure.

A key that has another name or unit here is converted. One that we have too, in the same table, is taken as it
is. Every other key is named in a comment, and left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import tomli_w

from downloader.config.models import Settings
from downloader.config.read import known_keys
from downloader.errors import ConfigError

HEAD = """\
Made by `downloader import-config`. What has changed has a comment; docs/migration.md has the reasons.
A password in this file is better given as { env = "NAME" } or { file = "PATH" }."""

API_NOTE = """\
Only this machine reaches the API unless host says otherwise:
host = "0.0.0.0\""""

EGRESS_NOTE = """\
Private addresses are refused, for downloads and for callbacks, unless they are listed:
allow = ["10.0.0.0/8", "media.internal"]"""

KAFKA_KEYS: Mapping[str, str] = {
    "bootstrap.servers": "bootstrap_servers",
    "metadata.broker.list": "bootstrap_servers",
    "client.id": "client_id",
    "compression.codec": "compression_type",
    "compression.type": "compression_type",
    "message.max.bytes": "max_request_size",
    "delivery.timeout.ms": "timeout",
    "message.timeout.ms": "timeout",
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "sasl.kerberos.service.name": "sasl_kerberos_service_name",
    "ssl.ca.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
    "ssl.endpoint.identification.algorithm": "ssl_check_hostname",
}
"""librdkafka's name, and ours."""

KAFKA_FIXED: Mapping[str, str] = {
    **dict.fromkeys(
        ("acks", "request.required.acks"), "a callback is delivered when all in-sync replicas have it"
    ),
    "enable.idempotence": "callbacks are delivered at least once; receivers know repetitions by job_id",
}
"""What cannot be set any more, and why."""

_LARGEST = 1e15
"""More than any number of a configuration."""

_COMPRESSORS = ("snappy", "lz4", "zstd")
_BACKENDS = ("http", "kafka", "sqs", "storage")
_MASTER = ("master", "master_name", "mastername", "masterName", "name")
_NODES = ("nodes", "addrs", "addresses", "sentinels", "addr")


def import_config(text: str) -> str:
    """The TOML for the predecessor's JSON.

    Raises:
        ConfigError: it is not JSON, or a value is not what its key takes; the text names the key. Whether the
            result is a valid configuration is for `load_settings` to say.
    """
    try:
        values = json.loads(text)
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ConfigError("has half of a surrogate pair") from None
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}") from None
    except RecursionError:
        raise ConfigError("is nested too deeply") from None
    if not isinstance(values, dict):
        raise ConfigError("must be a JSON object")
    old = _Table(values)
    new = _Sections()
    new.note("", HEAD)
    new.open("redis")
    _redis(old.table("redis"), new)
    api = old.table("api")
    new.note("api", API_NOTE)
    api.copy_rest("api", new)
    _processor(old.table("processor"), new)
    _notifier(old.table("notifier"), new)
    new.note("egress.downloads", EGRESS_NOTE)
    new.open("egress.callbacks")
    backends = old.table("backends")
    for name in list(backends.values):
        _backend(name, backends.table(name), new)
    old.copy_rest("", new)
    return new.text()


@dataclass(slots=True)
class _Table:
    """A table of the predecessor's; its keys are removed as they are read."""

    values: dict[str, Any]
    path: str = ""

    def name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def take(self, *keys: str, kind: type | tuple[type, ...], what: str) -> Any:
        """The value of the first of these keys that is there; `None` if none is."""
        found = [key for key in keys if key in self.values]
        taken = [self.values.pop(key) for key in found]
        if not taken or taken[0] is None:
            return None
        if not isinstance(taken[0], kind) or (isinstance(taken[0], bool) and kind is not bool):
            raise ConfigError(f"{self.name(found[0])} must be {what}")
        return taken[0]

    def table(self, key: str) -> _Table:
        return _Table(self.take(key, kind=dict, what="an object") or {}, self.name(key))

    def text(self, *keys: str) -> str:
        return str(self.take(*keys, kind=str, what="a string") or "")

    def number(self, key: str) -> float | None:
        value = self.take(key, kind=(int, float), what="a number")
        if value is not None and not 0 <= value <= _LARGEST:
            raise ConfigError(f"{self.name(key)} must be a number that is not negative")
        return None if value is None else float(value)

    def copy_rest(self, section: str, new: _Sections) -> None:
        """Copy the keys that we have too; name the others in comments."""
        known = set(known_keys(Settings))
        for key, value in self.values.items():
            if f"{section}.{key}" in known and not isinstance(value, dict):
                new.set(section, key, value)
            else:
                new.note(section, f"{self.name(key)} has no counterpart")
        self.values = {}


@dataclass(slots=True)
class _Sections:
    """Our configuration as it is made: for each table its lines."""

    tables: dict[str, list[str]] = field(default_factory=dict)

    def open(self, section: str) -> list[str]:
        return self.tables.setdefault(section, [f"[{section}]"] if section else [])

    def note(self, section: str, text: str) -> None:
        """Add a comment."""
        self.open(section).extend(f"# {line}" for line in text.splitlines())

    def set(self, section: str, key: str, value: Any, note: str = "") -> None:
        """Set a key, unless the value is `None` or empty; with a comment in its line."""
        if value is None or value == "":
            return
        try:
            line = tomli_w.dumps({key: value}).strip()
        except (TypeError, ValueError, RecursionError):
            line = "["
        if line.startswith("["):  # a table, or null in a list
            self.note(section, f"{key} cannot be taken over")
        else:
            self.open(section).append(f"{line}  # {note}" if note else line)

    def text(self) -> str:
        return "\n\n".join("\n".join(lines) for lines in self.tables.values() if lines) + "\n"


def _redis(old: _Table, new: _Sections) -> None:
    address = old.text("addr", "address", "host")
    password, database = old.text("password"), old.number("db")
    sentinel = old.take("sentinel", kind=(dict, list), what="an object or a list")
    auth = f":{quote(password, safe='')}@" if password else ""
    path = f"/{int(database)}" if database else ""
    nodes: list[Any] = []
    if isinstance(sentinel, list):
        nodes = sentinel
        sentinel = {}
    inner = _Table(sentinel or {}, "redis.sentinel")
    master = inner.text(*_MASTER) or old.text("master_name", "master")
    found = inner.take(*_NODES, kind=(list, str), what="a list of host:port")
    nodes = nodes or (found.split(",") if isinstance(found, str) else found or [])
    for left in inner.values:
        new.note("redis.sentinel", f"redis.sentinel.{left} has no counterpart")
    if nodes or master:
        if not nodes or not master:
            raise ConfigError(
                "redis.sentinel must have the name of the master and the addresses of the Sentinels"
            )
        new.set("redis", "url", f"redis://{auth}{path}" if auth or path else None)
        new.set("redis.sentinel", "master", master)
        new.set("redis.sentinel", "nodes", [str(node).strip() for node in nodes])
    elif address:
        url = address if "://" in address else f"redis://{auth}{address}{path}"
        new.set("redis", "url", url)
    else:
        new.note("redis", "Without url the service starts a Valkey of its own")
    new.note(
        "redis",
        "The predecessor's jobs are not read. Our keys begin with key_prefix, so both can share a server.",
    )
    old.copy_rest("redis", new)


def _processor(old: _Table, new: _Sections) -> None:
    folder = old.text("storage_dir")
    new.set("processor", "storage_dir", folder)
    _stats_interval(old, "processor", new)
    agent, headers = old.text("user_agent"), old.table("request_headers").values
    storage = old.table("filestorage").values
    old.copy_rest("processor", new)
    if agent or headers:
        given = {str(name): str(value) for name, value in headers.items()}
        if agent and "user-agent" not in map(str.lower, given):
            given["User-Agent"] = agent
        for name, value in given.items():
            new.set("processor.request_headers", name, value)
        if "accept" not in map(str.lower, given):
            new.note("processor.request_headers", "This replaces our default, which has Accept: */* too")
    if storage:
        for key, value in storage.items():
            new.set("processor.filestorage", key, value)
        if storage.get("type", "filesystem") not in ("filesystem", "s3"):
            new.note("processor.filestorage", "This type needs a storage plugin of that name")
    elif folder:
        new.set("processor.filestorage", "type", "filesystem")
        new.set("processor.filestorage", "rootdir", folder, "files were kept in processor.storage_dir")


def _notifier(old: _Table, new: _Sections) -> None:
    new.set("processor", "download_url", old.text("download_url"), "it was notifier.download_url")
    _stats_interval(old, "notifier", new)
    minutes = old.number("deletion_interval")
    if minutes is not None:
        new.set(
            "notifier",
            "deletion_interval",
            _plain(minutes * 60),
            f"seconds; it was {_plain(minutes)} minutes",
        )
    for key in ("max_retries", "retry_backoff", "backoff"):
        if old.values.pop(key, None) is not None:
            new.note(
                "notifier", f"notifier.{key} has no counterpart: retry_schedule has the delays in seconds"
            )
    old.copy_rest("notifier", new)


def _stats_interval(old: _Table, section: str, new: _Sections) -> None:
    interval = old.number("stats_interval")
    if interval:
        note = f"seconds; it was {_plain(interval)} milliseconds"
        new.set(section, "stats_interval", _plain(interval / 1000), note)


def _backend(name: str, old: _Table, new: _Sections) -> None:
    section = f"backends.{name}"
    if name not in _BACKENDS:
        new.note("", f"{section} is left out: it needs a notifier plugin (docs/plugins.md)")
        return
    new.open(section)
    if name == "kafka":
        _kafka(old, new)
        return
    for key, value in old.values.items():
        new.set(section, key, value)


def _kafka(old: _Table, new: _Sections) -> None:
    section = "backends.kafka"
    protocol = str(old.values.get("security.protocol", "plaintext")).upper()
    for key, value in old.values.items():
        name = KAFKA_KEYS.get(key)
        if name is None:
            fixed = KAFKA_FIXED.get(key)
            new.note(section, f"{key}: {fixed}" if fixed else f"{key} has no counterpart")
        elif name[:4] in ("ssl_", "sasl") and name.partition("_")[0].upper() not in protocol.split("_"):
            new.note(section, f"{key} had no effect: security.protocol is {protocol}")
        else:
            new.set(section, name, *_kafka_value(key, name, value))


def _kafka_value(key: str, name: str, value: Any) -> tuple[Any, str]:
    """The value in our terms, and the comment on it."""
    if name == "timeout":
        try:
            milliseconds = float(value)
        except (TypeError, ValueError, OverflowError):
            milliseconds = math.nan
        if not abs(milliseconds) <= _LARGEST:
            raise ConfigError(f"backends.kafka.{key} must be a number")
        return _plain(milliseconds / 1000), f"seconds; it was {_plain(milliseconds)} milliseconds"
    if name == "ssl_check_hostname":
        return str(value).lower() != "none", ""
    if name == "security_protocol":
        return str(value).upper(), ""
    if name == "compression_type" and value in _COMPRESSORS:
        return value, f"{value} needs the package cramjam"
    return value, f"it was {key}" if key.replace(".", "_") != name else ""


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number
