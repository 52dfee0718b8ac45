"""Reading of settings: flags override the environment, which overrides the TOML file.

All errors are in one `ConfigError`, a line each. A line names the file (or variable, or flag), the key and
what was expected. It never contains a value, which may be a secret.

Environment: `DOWNLOADER_` and the key in capitals, `__` between tables: `DOWNLOADER_REDIS__URL`. Lists,
tables and secret references are given as JSON. Keys in the plugins' tables have no known type: a value that
is valid JSON is read as JSON, and any other as a string. Tables are merged key by key; all other values
(`processor.request_headers` too) are replaced.

Variables that begin with `DOWNLOADER_` and have `__` must be known keys. A variable without `__` is refused
if it differs from a known key only by underscores (`DOWNLOADER_REDIS_URL`, `DOWNLOADER_DATADIR`) or is
similar to a key of the top level; otherwise it is ignored. So the service starts in spite of the variables
that Kubernetes sets for a service named `downloader` or `downloader-api` (`DOWNLOADER_PORT=tcp://...`,
`DOWNLOADER_SERVICE_HOST`).
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from downloader.config.checks import Section
from downloader.config.models import FileStorageSettings, HostSettings, Settings
from downloader.errors import ConfigError
from downloader.net import EgressPolicy

PREFIX = "DOWNLOADER_"
"""Prefix of the environment variables that are settings."""

OTHER_VARIABLES = frozenset(
    {"DOWNLOADER_API", "DOWNLOADER_FAILPOINT", "DOWNLOADER_SECRET", "DOWNLOADER_TOKEN"}
)
"""Variables of the project that are not settings; three are for commands."""

SECRET_BYTES = 64 * 1024
"""Most bytes read of a secret's file; a wrong path may be an endless device."""

_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
"""The value of `DOWNLOADER_API_PORT` as set by Kubernetes for a service; a configured port is a number."""

_FREE = object()
"""Marks a table with keys that only a plugin knows."""

Path_ = tuple[str | int, ...]


@dataclass(slots=True)
class _Layers:
    """Values from all sources, each with the name of the source."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path_, str] = field(default_factory=dict)
    secrets: set[Path_] = field(default_factory=set)
    missing: set[Path_] = field(default_factory=set)
    """Secrets that could not be read."""
    problems: list[str] = field(default_factory=list)

    def origin(self, path: Path_) -> str:
        """The source of the value at `path`, or of the innermost enclosing table."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return "configuration"


def load_settings(path: Path | None, *, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Settings:
    """The effective settings.

    Args:
        path: the TOML file, or `None`.
        environ: the environment, also for `{ env = "NAME" }`.
        overrides: values of flags by dotted key (`{"api.port": 8000}`); `None` means not given.

    Raises:
        ConfigError: a source or a value is wrong; see the module's docstring.
    """
    layers = _Layers()
    if path is not None:
        layers.origins[()] = str(path)
        _add(layers, _read_toml(path), source=str(path))
    for name, value in _variables(environ, layers.problems):
        path_ = tuple(name.removeprefix(PREFIX).lower().split("__"))
        try:
            _add(layers, _nest(path_, value, name), source=name)
        except ConfigError as error:
            layers.problems.append(str(error))
    for key, value in overrides.items():
        if value is not None:
            _add(layers, _nested(tuple(key.split(".")), value), source="command line")
    values = _resolve(layers.values, (), layers, environ)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        layers.problems += _explain(error, layers)
    if layers.problems:
        raise ConfigError(*layers.problems)
    settings._secret_paths = frozenset(layers.secrets)  # noqa: SLF001 - set only here
    return settings


def allow_also(settings: Settings, entries: Iterable[str]) -> Settings:
    """The settings with addresses or hosts added to both egress lists (`downloader run --allow`).

    Raises:
        ConfigError: an entry is neither a CIDR range, an address nor a host name.
    """
    more = list(entries)
    try:
        EgressPolicy.parse(more, setting="--allow")
    except ValueError as error:
        raise ConfigError(f"--allow: {str(error).partition(': ')[2]}") from None
    egress = settings.egress
    lists = {
        name: old.model_copy(update={"allow": [*old.allow, *more]})
        for name, old in (("downloads", egress.downloads), ("callbacks", egress.callbacks))
    }
    return settings.model_copy(update={"egress": egress.model_copy(update=lists)})


def known_keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """All dotted keys of a file, including tables, without the keys of plugins."""
    for name, info in model.model_fields.items():
        yield prefix + name
        inner = _inner(info.annotation)
        if isinstance(inner, type):
            yield from known_keys(inner, f"{prefix}{name}.")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if text.lstrip("\ufeff \t\r\n").startswith("{"):
            raise ConfigError(f"{path}: is JSON: convert it with downloader import-config") from None
        raise ConfigError(f"{path}: not valid TOML: {_one_line(str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from None
    except ValueError:  # Python limits the digits of a number
        raise ConfigError(f"{path}: not valid TOML: a number is too long") from None


def _variables(environ: Mapping[str, str], problems: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the variables that are settings; append a problem for each variable that looks misspelt."""
    keys = [*known_keys()]
    names = {PREFIX + key.replace(".", "__").upper() for key in keys}
    flat = {_letters(name): name for name in sorted(names)}
    top = [name for name in sorted(names) if "__" not in name]
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name == PREFIX or name in OTHER_VARIABLES:
            continue
        if "__" in name or name in names:
            yield name, environ[name]
        elif not _SERVICE_URL.match(environ[name]):
            suggestion = flat.get(_letters(name)) or next(
                iter(difflib.get_close_matches(name, top, 1, 0.9)), ""
            )
            if suggestion:
                problems.append(f"unknown environment variable {name}; did you mean {suggestion}?")


def _nest(path: tuple[str, ...], text: str, name: str) -> dict[str, Any]:
    """The nested tables for a variable, as read from a file."""
    annotation: Any = Settings
    for part in path:
        inner = _inner(annotation)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            annotation = inner
            continue
        info = inner.model_fields.get(part)
        annotation = (
            info.annotation if info is not None else (_FREE if inner is FileStorageSettings else None)
        )
    value: Any = text
    wants_json = _inner(annotation) is not None or get_origin(annotation) in (dict, list)
    if wants_json or text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except ValueError:
            if wants_json and annotation is not _FREE:
                raise ConfigError(f"{name} must be JSON") from None
        except RecursionError:
            raise ConfigError(f"{name} must be JSON that is not nested so deeply") from None
    return _nested(path, value)


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    return dict(value)


def _inner(annotation: Any) -> Any:
    """The model in the annotation of a table; `_FREE` for a plugin's table, `None` for other annotations."""
    if annotation is _FREE:
        return _FREE
    if isinstance(annotation, type) and issubclass(annotation, (Section, FileStorageSettings)):
        return annotation
    if annotation == dict[str, dict[str, Any]]:
        return _FREE
    if get_origin(annotation) in (Union, UnionType, list):
        return next((inner for arg in get_args(annotation) if (inner := _inner(arg))), None)
    return None


def _add(layers: _Layers, values: dict[str, Any], *, source: str) -> None:
    """Merge the values of one source over the values of earlier sources."""
    layers.problems += _remove_unknown(values, Settings, (), source)
    _merge(layers.values, values, (), layers.origins, source)


def _merge(
    into: dict[str, Any], new: Mapping[str, Any], at: Path_, origins: dict[Path_, str], source: str
) -> None:
    for key, value in new.items():
        path = (*at, key)
        old = into.get(key)
        if isinstance(value, dict) and not _is_reference(value) and path != ("processor", "request_headers"):
            if not isinstance(old, dict) or _is_reference(old):
                old = into[key] = {}
            _merge(old, value, path, origins, source)
        else:
            into[key] = value
            origins[path] = source


def _remove_unknown(values: dict[str, Any], model: type[BaseModel], at: Path_, source: str) -> Iterator[str]:
    """Remove unknown keys, and return a line for each."""
    for key, value in list(values.items()):
        path = (*at, key)
        info = model.model_fields.get(key)
        if info is None:
            if model is not FileStorageSettings:
                del values[key]
                yield _unknown(path, source)
            continue
        inner = _inner(info.annotation)
        if not isinstance(inner, type):
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and not _is_reference(item):
                yield from _remove_unknown(item, inner, path, source)


def _unknown(path: Path_, source: str) -> str:
    of_variable = source.startswith(PREFIX)
    key = source.removeprefix(PREFIX).lower().replace("__", ".") if of_variable else _dotted(path)
    keys = list(known_keys())
    same_name = [name for name in keys if "." in name and name.rpartition(".")[2] == key.rpartition(".")[2]]
    same_letters = [name for name in keys if _letters(name) == _letters(key)]
    close = same_letters or difflib.get_close_matches(key, keys, 1, 0.7) or same_name
    if of_variable:
        hint = f"; did you mean {PREFIX}{close[0].replace('.', '__').upper()}?" if close else ""
        return f"unknown environment variable {source}{hint}"
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{source}: unknown key {key}{hint}"


def _letters(key: str) -> str:
    return key.replace("_", "").replace(".", "")


def _is_reference(value: Any) -> bool:
    """Whether a value is `{ env = "NAME" }` or `{ file = "PATH" }`."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    [(key, name)] = value.items()
    return key in ("env", "file") and isinstance(name, str)


def _resolve(value: Any, at: Path_, layers: _Layers, environ: Mapping[str, str]) -> Any:
    """The value with references replaced by secrets."""
    if _is_reference(value) and at:
        layers.secrets.add(at)
        where = f"{layers.origin(at)}: {_dotted(at)}"
        try:
            if "env" in value:
                return _secret_of_variable(value["env"], where, environ)
            return _secret_of_file(value["file"], where)
        except ConfigError as error:
            layers.problems.append(str(error))
            layers.missing.add(at)
            return ""
    if isinstance(value, dict):
        return {key: _resolve(item, (*at, key), layers, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, (*at, index), layers, environ) for index, item in enumerate(value)]
    return value


def _secret_of_variable(name: str, where: str, environ: Mapping[str, str]) -> str:
    secret = environ.get(name, "")
    if not secret:
        raise ConfigError(f"{where}: the environment variable {name!r} is not set or empty")
    return secret


def _secret_of_file(name: str, where: str) -> str:
    try:
        with Path(name).expanduser().open("rb") as file:
            secret = file.read(SECRET_BYTES).decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: the file {name!r} is not text in UTF-8") from None
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name; no such user in ~name
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{where}: the file {name!r} cannot be read: {reason}") from None
    if not secret:
        raise ConfigError(f"{where}: the file {name!r} is empty")
    return secret


def _dotted(path: Path_) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return _one_line(text)


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


_EXPECTED = {
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "list_type": "must be a list",
    "missing": "is missing",
    "byte_size": 'must be a size in bytes, or like "64MiB"',
    "byte_size_unit": 'must be a size in bytes, or like "64MiB"',
    "path_type": "must be the path of a folder",
}
"""Messages instead of pydantic's, by type of error."""


def _explain(error: ValidationError, layers: _Layers) -> Iterator[str]:
    """A line for each of pydantic's errors, except errors about secrets that could not be read."""
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        if not any(detail["loc"][: len(path)] == path for path in layers.missing):
            yield _line(detail, layers)


def _line(detail: ErrorDetails, layers: _Layers) -> str:
    path = detail["loc"]
    if detail["type"] == "extra_forbidden":  # of a host; `_remove_unknown` removed those of other tables
        near = difflib.get_close_matches(str(path[-1]), HostSettings.model_fields, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{layers.origin(path)}: unknown key {_dotted(path)}{hint}"
    expected = _EXPECTED.get(detail["type"], _one_line(detail["msg"]))
    expected = (
        expected.removeprefix("Value error, ")
        .replace("Input should be", "must be")
        .replace("String should", "must")
    )
    if not path:
        text = expected
    elif expected.startswith(("must ", "is ")):
        text = f"{_dotted(path)} {expected}"
    else:
        text = f"{_dotted(path)}: {expected}"
    return f"{layers.origin(path)}: {text}"
