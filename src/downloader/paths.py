"""Paths and file names from outside, made safe, and folders that other users cannot read."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from pathlib import Path
from urllib.parse import unquote_to_bytes

from downloader.errors import ConfigError
from downloader.ids import ID_LENGTH, ID_PREFIX_LENGTH

MAX_FOLDER_BYTES = 512
"""Longest folder that a job may name. An S3 key has at most 1024 bytes, including prefix and file name."""


def split_path(path: str) -> tuple[str, ...]:
    """Split a relative path into parts; refuse a path that can leave the base folder.

    Raises:
        ValueError: the path is absolute, has a backslash or invisible characters, or has a part that is
            empty, `.` or `..`.
    """
    if path.startswith("/"):
        raise ValueError("must not be an absolute path")
    if not path.isprintable() or "\\" in path:
        raise ValueError("has control or invisible characters or a backslash")
    parts = tuple(path.split("/"))
    if not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError("has an empty part, or one that is . or ..")
    return parts


def split_folder(path: str) -> tuple[str, ...]:
    """Split the path of a folder that a job names; a slash at the end is ignored.

    Raises:
        ValueError: as for `split_path`; or the path begins with a dot, has a `%` or has too many bytes.
    """
    parts = split_path(path.removesuffix("/"))
    if parts[0].startswith("."):
        raise ValueError("must not begin with a dot")
    if "%" in path:
        raise ValueError("has a %")
    if len(path.encode()) > MAX_FOLDER_BYTES:
        raise ValueError(f"has more than {MAX_FOLDER_BYTES} bytes")
    return parts


def is_safe_path(path: str) -> bool:
    """Whether `split_path` can split the path."""
    try:
        split_path(path)
    except ValueError:
        return False
    return True


_JOB_FILE = re.compile(
    rf"(?:^|/)(?P<folder>[0-9A-Za-z]{{{ID_PREFIX_LENGTH}}})/(?P=folder)"
    rf"[0-9A-Za-z]{{{ID_LENGTH - ID_PREFIX_LENGTH}}}(?:/|$)"
)


def has_job_file(path: str) -> bool:
    """Whether the path has two parts that look like the path of a file stored by a job's id."""
    return _JOB_FILE.search(path) is not None


NAME_BYTES = 200
"""Longest file name, in bytes. File systems allow 255; a suffix such as ` (2)` may be added later."""

_MAX_CHARS = 1024
"""A longer text is cut to the first half and the last half of this number of characters. Normalising takes
time quadratic in the length: 60 KB of combining marks would block the process for seconds."""

_FORBIDDEN = re.compile(r'[/\\:*?"<>|]')
"""Separators, and characters that Windows refuses."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
"""Names of devices on Windows, with any extension."""

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of characters that are invisible or reorder the surrounding text."""

_PARAMETER = re.compile(rb';[ \t]*([^ \t=;"]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;"]*)', re.DOTALL)
_ESCAPED = re.compile(rb'\\(["\\])')
_CHARSETS = {b"utf-8": "utf-8", b"iso-8859-1": "latin-1"}


def safe_name(text: str) -> str:
    """The text as a file name; empty if no legal character is left.

    The name has no separators, no control or invisible characters, no leading dots or dashes, and is not the
    name of a Windows device. It has at most `NAME_BYTES` bytes; a cut keeps the extension.
    """
    if len(text) > _MAX_CHARS:
        text = text[: _MAX_CHARS // 2] + text[-_MAX_CHARS // 2 :]
    text = unicodedata.normalize("NFC", text)
    text = "".join(char for char in text if unicodedata.category(char) not in _INVISIBLE)
    text = _FORBIDDEN.sub("_", text).lstrip(".- ").rstrip(". ")
    if is_device_name(text):
        text = f"_{text}"
    stem, extension = split_name(text)
    return stem.encode()[: NAME_BYTES - len(extension.encode())].decode(errors="ignore") + extension


def is_device_name(text: str) -> bool:
    """Whether Windows takes the name for that of a device."""
    return _RESERVED.fullmatch(text) is not None


def split_name(name: str) -> tuple[str, str]:
    """Stem and extension; `.tar.gz` is one extension, and a very long one counts as none."""
    match = re.search(r"(\.tar)?\.[A-Za-z0-9]{1,10}$", name)
    return (name[: match.start()], match[0]) if match and match.start() else (name, "")


def disposition_name(value: bytes) -> str:
    """The file name in a `Content-Disposition` (RFC 6266), made safe; empty if there is none.

    `filename*` (RFC 8187) is preferred; a malformed one is ignored. Of a path only the last part counts.
    """
    parameters: dict[bytes, bytes] = {}
    for name, text in _PARAMETER.findall(value):
        parameters.setdefault(name.lower(), text.strip(b" \t"))
    text = _extended(parameters.get(b"filename*", b"")) or _plain(parameters.get(b"filename", b""))
    return safe_name(re.split(r"[/\\]", text)[-1])


def _extended(value: bytes) -> str:
    charset, _, language_and_text = value.strip(b'"').partition(b"'")
    encoding = _CHARSETS.get(charset.lower())
    if encoding is None:
        return ""
    try:
        return unquote_to_bytes(language_and_text.partition(b"'")[2]).decode(encoding)
    except UnicodeDecodeError:
        return ""


def _plain(value: bytes) -> str:
    if value.startswith(b'"'):
        value = _ESCAPED.sub(rb"\1", value[1:-1])
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


_PRIVATE_MODE = 0o700


def private_folder(path: Path, *, setting: str) -> None:
    """Create a folder and all missing parents with mode 0700; an existing folder gets the same mode.

    The mode of a shared folder is not changed. A folder is shared if it is directly under the root, has the
    sticky bit or belongs to the superuser. A symbolic link is refused, because its owner could change where
    it points.

    Raises:
        ConfigError: it cannot be created, is a symbolic link, or belongs to another user; the text begins
            with `setting`, the key of the configuration.
    """
    try:
        path.mkdir(mode=_PRIVATE_MODE, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise ConfigError(
                f"{setting}: {path} is a symbolic link; name the folder that it points to"
            ) from None
        raise ConfigError(f"{setting}: {path} cannot be used: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"{setting}: {path} is another user's ({status.st_uid}, we are {os.geteuid()})")
        shared = status.st_mode & stat.S_ISVTX or path.resolve().parent == Path("/")
        if status.st_uid == os.geteuid() and not shared:
            os.fchmod(descriptor, _PRIVATE_MODE)
    finally:
        os.close(descriptor)
