"""The check of relative paths from outside, for example a folder in the storage."""

from __future__ import annotations

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
