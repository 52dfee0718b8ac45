"""The `key` of a job: the path of the file, in which names in braces are filled in."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import unquote

from downloader.api.fields import FieldError, check_path
from downloader.ids import ID_LENGTH, ID_PREFIX_LENGTH
from downloader.model import SHA256_FILLING, JobSpec
from downloader.net import Url
from downloader.paths import is_device_name, safe_name, split_name

_FILLING = re.compile(r"\{(host|path|name|ext|id|sha256|date)\}")

_MEANT = re.compile(r"[%{}]")
"""Characters with a meaning in keys and URLs, which no value may bring in."""

_NO_NAME = "index"
"""Name of the file of a URL whose path ends with a slash."""

_ANY_ID = "~" * ID_LENGTH
"""As long as an id, and never equal to a part of another job's file."""


def check_key(template: str, url: str) -> None:
    """Check the key of a job for this valid URL, with the fillings.

    Raises:
        FieldError: the key is not the path of a file that the job may have.
    """
    if _MEANT.search(_FILLING.sub("", template)):
        names = "{host}, {path}, {name}, {ext}, {id}, {sha256}, {date}"
        raise FieldError("key", f"has a % or a brace that belongs to none of {names}")
    path = _filled(template, url=url, job_id=_ANY_ID, created_ms=0).replace(SHA256_FILLING, "0" * 64)
    if path.endswith("/"):
        raise FieldError("key", "must not end with a slash")
    parts = check_path(path, "key")
    if len(parts) == 1 and len(path) == ID_PREFIX_LENGTH:
        raise FieldError("key", "of three characters could be the folder of another job's file")
    if any(map(is_device_name, parts)):
        raise FieldError("key", "has a part that is the name of a device on Windows")


def filled_key(spec: JobSpec) -> str:
    """The checked key of a job with everything filled in that is known before the download."""
    return _filled(spec.key, url=spec.url, job_id=spec.id, created_ms=spec.created_ms)


def _filled(template: str, *, url: str, job_id: str, created_ms: int) -> str:
    parsed = Url.parse(url, "download")
    path = parsed.target.decode().partition("?")[0]
    parts = [_MEANT.sub("_", safe_name(unquote(part))) for part in path.split("/")]
    parts = [part for part in parts[:-1] if part] + [parts[-1] or _NO_NAME]
    name, extension = split_name(parts[-1])
    values = {
        "host": safe_name(parsed.origin.host),
        "path": "/".join(parts),
        "name": name,
        "ext": extension,
        "id": job_id,
        "sha256": SHA256_FILLING,
        "date": datetime.fromtimestamp(created_ms / 1000, UTC).date().isoformat(),
    }
    return _FILLING.sub(lambda match: values[match[1]], template)
