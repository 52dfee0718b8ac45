"""Settings that all roles of a fleet must share: in the reports of instances, and compared by the doctor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from downloader.config import Settings, redacted

ROLES = ("api", "processor", "notifier")

SHARED: Mapping[str, Sequence[str]] = {
    "backends": ("api", "notifier"),
    "processor.filestorage": ROLES,
    "processor.download_url": ROLES,
}
"""The settings, and the roles that use them: the API refuses jobs for other backends, the processor stores
the files that the notifier deletes, and the notifier makes the links of callbacks."""

_MOST_NAMED = 3
"""Instances named for each value."""


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
