"""Conversion of the predecessor's configuration (JSON) to TOML, with comments about changes. Pure.

A key with another name or unit here is converted. A key that exists here in the same table is copied. Every
other key is left out, and named in a comment. As in the predecessor, names of keys are compared without case,
and text behind the JSON object is ignored.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from urllib.parse import quote

import tomli_w

from downloader.config.read import known_keys
from downloader.errors import ConfigError

HEAD = """\
Made by `downloader import-config`. What has changed has a comment; docs/migration.md has the reasons.
A password in this file is better given as { env = "NAME" } or { file = "PATH" }."""

API_NOTE = """\
Only this machine reaches the API unless host says otherwise:
host = "0.0.0.0\""""

HEARTBEAT = ".new"
"""Added to the predecessor's `heartbeat_path`: with one file for both, it would take both out of service."""

HEARTBEAT_NOTE = "not the predecessor's file, or both services would leave the load balancer together"

MODE = "0644"
"""The predecessor's mode of stored files."""

BACKENDS_NOTE = """\
There are no backends: the API refuses all jobs with a callback, and no notifier starts. If each role of the
predecessor has a file of its own, convert all files together: downloader import-config FILE FILE FILE"""

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
"""Names of keys in librdkafka, and in the service."""

KAFKA_FIXED: Mapping[str, str] = {
    **dict.fromkeys(
        ("acks", "request.required.acks"), "a callback is delivered when all in-sync replicas have it"
    ),
    "enable.idempotence": "callbacks are delivered at least once; receivers know repetitions by job_id",
}
"""Keys that have no counterpart, and the reason."""

_EXPECTED: Mapping[type, str] = {str: "a string", float: "a number", dict: "an object"}

_LARGEST = 1e15
"""Bound of numbers: larger than any reasonable value."""

_BACKENDS = ("http", "kafka", "sqs", "storage")

_T = TypeVar("_T")


def read_old_config(text: str) -> dict[str, Any]:
    """Parse a file of the predecessor.

    Raises:
        ConfigError: the text is not a JSON object.
    """
    try:
        values, _ = json.JSONDecoder().raw_decode(text.lstrip())
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ConfigError("has half of a surrogate pair") from None
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}") from None
    except RecursionError:
        raise ConfigError("is nested too deeply") from None
    if not isinstance(values, dict):
        raise ConfigError("must be a JSON object")
    return values


def import_config(*files: dict[str, Any]) -> str:
    """Convert the predecessor's configuration to TOML.

    Args:
        files: the JSON objects of all files, for example one for each role.

    Raises:
        ConfigError: a value has a wrong type, or two files differ; the message names the key. The result is
            not validated: `load_settings` does.
    """
    values: dict[str, Any] = {}
    for file in files:
        _merge(values, file)
    old, new = _Table(values), _Sections()
    new.note("", HEAD)
    _redis(old.table("redis"), new)
    new.note("api", API_NOTE)
    _api(old.table("api"), new)
    _processor(old.table("processor"), new)
    _notifier(old.table("notifier"), new)
    new.note("egress.downloads", EGRESS_NOTE)
    new.open("egress.callbacks")
    backends = old.table("backends")
    for name in list(backends):
        _backend(name, backends.table(name), new)
    if not any(section.startswith("backends.") for section in new.values):
        new.note("", BACKENDS_NOTE)
    old.copy_rest(new)
    return new.text()


def _merge(into: dict[str, Any], values: Mapping[str, Any], path: str = "") -> None:
    """Add the keys of another file."""
    for key, value in values.items():
        name = f"{path}.{key}".removeprefix(".")
        present = into.setdefault(key, {} if isinstance(value, dict) else value)
        if isinstance(present, dict) and isinstance(value, dict):
            _merge(present, value, name)
        elif present != value:
            raise ConfigError(f"{name} differs from an earlier file")


class _Table(dict[str, Any]):
    """A table of the predecessor; keys are compared without case, and reading a key removes the key."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        super().__init__({key.lower(): value for key, value in values.items()})
        self.path = path

    def name(self, key: str) -> str:
        return f"{self.path}.{key}".removeprefix(".")

    def take(self, kind: type[_T], *keys: str) -> _T:
        """Remove the keys; return the value of the first key that is present, else an empty one."""
        values = {key: self.pop(key) for key in keys if key in self}
        key = next(iter(values), "")
        value: Any = values.get(key)
        if value is None:
            return kind()
        types: Any = (int, float) if kind is float else kind
        if not isinstance(value, types) or isinstance(value, bool):
            raise ConfigError(f"{self.name(key)} must be {_EXPECTED[kind]}")
        if kind is float and not 0 <= value <= _LARGEST:
            raise ConfigError(f"{self.name(key)} must be a number that is not negative")
        return cast("_T", value)

    def table(self, key: str) -> _Table:
        return _Table(self.take(dict, key), self.name(key))

    def copy_rest(self, new: _Sections) -> None:
        """Copy keys that exist in the service too; name all other keys in comments."""
        existing = set(known_keys())
        for key, value in self.items():
            if self.name(key) in existing and not isinstance(value, dict):
                new.set(self.path, key, value)
            else:
                new.note(self.path, f"{self.name(key)} has no counterpart")


@dataclass(slots=True)
class _Sections:
    """The new configuration while being built, by dotted names of tables."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    comments: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def open(self, section: str) -> dict[str, Any]:
        return self.values.setdefault(section, {})

    def note(self, section: str, text: str) -> None:
        """Add a comment."""
        self.open(section)
        self.comments[section] += text.splitlines()

    def set(self, section: str, key: str, value: Any, note: str = "", *, old: str = "") -> None:
        """Set a key with a comment, unless the key is set already, or the value is `None` or empty.

        `old` is the predecessor's name of the key, if different.
        """
        values = self.open(section)
        if value is None or value == "":
            return
        if key in values:
            self.note(section, f"{old or key} is left out: {key} is set already")
        elif not _is_writable(value):
            self.note(section, f"{key} cannot be taken over")
        else:
            values[key] = value
            self.note(section, f"{key}: {note}" if note else "")

    def text(self) -> str:
        return "\n\n".join(self._table(section) for section in self.values) + "\n"

    def _table(self, section: str) -> str:
        """The TOML of one table, with comments in front of the keys."""
        values = self.values[section]
        for part in reversed(section.split(".") if section else ()):
            values = {part: values}
        lines = tomli_w.dumps(values).split("\n")[:-1]
        keys_at = 1 if section else 0
        lines[keys_at:keys_at] = [f"# {line}" for line in self.comments[section]]
        return "\n".join(lines)


def _is_writable(value: Any) -> bool:
    """Whether TOML can express a value that is no table; null in a list cannot be expressed."""
    try:
        return not isinstance(value, dict) and bool(tomli_w.dumps({"key": value}))
    except (TypeError, ValueError, RecursionError):
        return False


def _redis(old: _Table, new: _Sections) -> None:
    new.open("redis")
    address = old.take(str, "addr", "address", "host")
    password, database = old.take(str, "password"), int(old.take(float, "db"))
    auth = f":{quote(password, safe='')}@" if password else ""
    path = f"/{database}" if database else ""
    master, nodes = _sentinel(old, new)
    if nodes:
        new.set("redis", "url", f"redis://{auth}{path}" if auth or path else "")
        new.set("redis.sentinel", "master", master)
        new.set("redis.sentinel", "nodes", nodes)
    elif address:
        new.set("redis", "url", address if "://" in address else f"redis://{auth}{address}{path}")
    else:
        new.note("redis", "Without url the service starts a Valkey of its own")
    new.note(
        "redis",
        "The predecessor's jobs are not read. Our keys begin with key_prefix, so both can share a server.",
    )
    old.copy_rest(new)


def _sentinel(old: _Table, new: _Sections) -> tuple[str, list[str]]:
    """The master's name and the Sentinels, from an object or a list; both empty without Sentinels."""
    sentinel = old.pop("sentinel", None) or {}
    table = _Table(sentinel if isinstance(sentinel, dict) else {"nodes": sentinel}, "redis.sentinel")
    master = table.take(str, "master", "master_name", "mastername", "name")
    master = master or old.take(str, "master_name", "master")
    spellings = ("nodes", "addrs", "addresses", "sentinels", "addr")
    nodes: Any = next(filter(None, [table.pop(key, None) for key in spellings]), [])
    for key in table:
        new.note("redis.sentinel", f"redis.sentinel.{key} has no counterpart")
    if isinstance(nodes, str):
        nodes = nodes.split(",")
    if bool(nodes) != bool(master) or not isinstance(nodes, list):
        raise ConfigError(
            "redis.sentinel must have the name of the master and the addresses of the Sentinels"
        )
    return master, [str(node).strip() for node in nodes]


def _api(old: _Table, new: _Sections) -> None:
    if path := old.take(str, "heartbeat_path"):
        new.set("api", "heartbeat_path", path + HEARTBEAT, HEARTBEAT_NOTE)
    old.copy_rest(new)


def _processor(old: _Table, new: _Sections) -> None:
    folder = old.take(str, "storage_dir")
    new.set("processor", "storage_dir", folder)
    _duration(old, "stats_interval", "milliseconds", new)
    agent, headers = old.take(str, "user_agent"), old.take(dict, "request_headers")
    storage = old.table("filestorage")
    old.copy_rest(new)
    if agent or headers:
        merged = {str(name): str(value) for name, value in headers.items()}
        if agent and "user-agent" not in map(str.lower, merged):
            merged["User-Agent"] = agent
        for name, value in merged.items():
            new.set("processor.request_headers", name, value)
        if "accept" not in map(str.lower, merged):
            new.note("processor.request_headers", "This replaces our default, which has Accept: */* too")
    for key, value in storage.items():
        new.set("processor.filestorage", key, value)
    if storage.get("type", "filesystem") not in ("filesystem", "s3"):
        new.note("processor.filestorage", "This type needs a storage plugin of that name")
    if folder and not storage:
        new.set("processor.filestorage", "type", "filesystem")
        new.set("processor.filestorage", "rootdir", folder, "files were kept in processor.storage_dir")
    if (folder or storage) and storage.get("type", "filesystem") == "filesystem":
        new.set("processor.filestorage", "mode", MODE, "as before; our default is 0640")


def _notifier(old: _Table, new: _Sections) -> None:
    url = "notifier.download_url"
    new.set("processor", "download_url", old.take(str, "download_url"), f"it was {url}", old=url)
    _duration(old, "stats_interval", "milliseconds", new)
    _duration(old, "deletion_interval", "minutes", new)
    for key in ("max_retries", "retry_backoff", "backoff"):
        if old.pop(key, None) is not None:
            new.note(
                "notifier", f"notifier.{key} has no counterpart: retry_schedule has the delays in seconds"
            )
    old.copy_rest(new)


def _duration(old: _Table, key: str, unit: str, new: _Sections) -> None:
    if value := old.take(float, key):
        new.set(old.path, key, *_in_seconds(value, unit))


def _in_seconds(value: float, unit: str) -> tuple[float, str]:
    """The value in seconds, and a comment."""
    seconds = value * 60 if unit == "minutes" else value / 1000
    return _plain(seconds), f"in seconds; it was {_plain(value)} {unit}"


def _backend(name: str, old: _Table, new: _Sections) -> None:
    if name not in _BACKENDS:
        new.note("", f"{old.path} is left out: it needs a notifier plugin (docs/plugins.md)")
        return
    if not old and name != "http":
        new.note("", f"{old.path} is left out: it is empty")
        return
    new.open(old.path)
    if old.get("timeout") == 0:
        del old["timeout"]
        new.note(old.path, "timeout: 0 was no limit, the default applies")
    if name == "kafka":
        _kafka(old, new)
        return
    for key, value in old.items():
        new.set(old.path, key, value)


def _kafka(old: _Table, new: _Sections) -> None:
    protocol = str(old.get("security.protocol", "plaintext")).upper()
    for key, value in old.items():
        name = KAFKA_KEYS.get(key)
        if name is None:
            reason = KAFKA_FIXED.get(key)
            new.note(old.path, f"{key}: {reason}" if reason else f"{key} has no counterpart")
        elif name == "timeout" and value in (0, "0"):
            new.note(old.path, f"{key}: 0 was no limit, the default applies")
        elif name[:4] in ("ssl_", "sasl") and name.partition("_")[0].upper() not in protocol.split("_"):
            new.note(old.path, f"{key} had no effect: security.protocol is {protocol}")
        else:
            new.set(old.path, name, *_KAFKA_VALUES.get(name, _renamed)(key, value), old=key)


def _renamed(key: str, value: Any) -> tuple[Any, str]:
    renamed = key.replace(".", "_") != KAFKA_KEYS[key]
    return value, "" if not renamed else f"it was {key}"


def _timeout(key: str, value: Any) -> tuple[Any, str]:
    try:
        milliseconds = float(value)
    except (TypeError, ValueError, OverflowError):
        milliseconds = math.nan
    if not abs(milliseconds) <= _LARGEST:
        raise ConfigError(f"backends.kafka.{key} must be a number")
    return _in_seconds(milliseconds, "milliseconds")


_KAFKA_VALUES: Mapping[str, Callable[[str, Any], tuple[Any, str]]] = {
    "security_protocol": lambda _, value: (str(value).upper(), ""),
    "ssl_check_hostname": lambda _, value: (str(value).lower() != "none", ""),
    "timeout": _timeout,
}
"""Functions from the predecessor's key and value to the new value and a comment. Other keys keep the
value."""


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number
