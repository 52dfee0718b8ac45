"""The effective settings without secrets (`downloader config`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from downloader.config.models import Settings
from downloader.net import HIDDEN, redact_url

_SECRET_NAME = re.compile(r"passw|passphrase|secret|token|key|credential|auth", re.IGNORECASE)
"""Names of keys in a plugin's table that may be secrets; some matches are not."""

_PLUGINS = (("processor", "filestorage"), ("processor", "cloud"))

_SECRET_HEADER = re.compile(r"(proxy-)?authorization|cookie", re.IGNORECASE)


def redacted(settings: Settings) -> dict[str, Any]:
    """The settings as plain TOML values, each secret replaced by `***`.

    Secrets are: settings of the type `SecretStr`; values from `{ env = ... }` or `{ file = ... }`; user,
    password and query in any URL; in plugins' tables, keys with a name such as `password` or `token`, and all
    headers; and of the other headers `Authorization`, `Cookie` and those with such a name.
    """
    paths = settings._secret_paths  # noqa: SLF001 - kept for this module
    return {key: _table(value, (key,), paths) for key, value in settings.model_dump().items()}


def _table(value: Any, path: tuple[str | int, ...], paths: frozenset[tuple[str | int, ...]]) -> Any:
    if path in paths or isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, Mapping):
        return {
            key: _table(item, (*path, key), paths)
            if not (_names_secret((*path, str(key))) and _may_be_secret(item))
            else _hidden(item)
            for key, item in value.items()
            if item is not None
        }
    if isinstance(value, list | tuple):
        return [_table(item, (*path, index), paths) for index, item in enumerate(value)]
    if isinstance(value, str) and "//" in value:
        return redact_url(value, userinfo=HIDDEN)
    return str(value) if isinstance(value, Path) else value


def _names_secret(path: tuple[str | int, ...]) -> bool:
    """Whether the name of a key in a plugin's table, or of a header, suggests a secret."""
    name = str(path[-1])
    if path[:2] == ("processor", "request_headers"):
        return _SECRET_HEADER.fullmatch(name) is not None or _SECRET_NAME.search(name) is not None
    in_plugin = (path[0] == "backends" and len(path) > 2) or path[:2] in _PLUGINS  # noqa: PLR2004 - below NAME
    return in_plugin and (_SECRET_NAME.search(name) is not None or "headers" in path[2:-1])


def _may_be_secret(value: Any) -> bool:
    return not isinstance(value, bool) and value not in ("", None)


def _hidden(value: Any) -> Any:
    """`***`; for a list, a `***` for each item."""
    return [HIDDEN for _ in value] if isinstance(value, list) else HIDDEN
