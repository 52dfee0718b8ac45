"""The record of a job that has succeeded or was cancelled: one text in place of three keys.

Most jobs in a store have ended and wait for their deletion, so the record leaves out fields that are no
longer needed. The first line has the marks of the leases that ended download and callback, see `mark_of` in
`_lib.lua`. Each further line has a letter and a value. `D` and `C` stand for a further field (`name=value`)
in the hash of the download or the callback, `J` for the further fields of the job (JSON). `R` marks a job
that was given to a reaper.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from downloader.model import JobSpec, Outcome, Verdict, sealed
from downloader.net import redact_url

MAX_EXTRA = 1000
"""Most characters of `extra` that are kept, for `GET /jobs/<id>`."""

_UNNEEDED = frozenset(
    {
        "aggr_limit",
        *("callback_type", "callback_dst", "callback_error_type", "callback_error_dst"),
        *("aggr_proxy", "aggr_rate", "aggr_delay", "request_headers", "user_agent", "host", "traceparent"),
        *("max_retries", "download_timeout", "not_before", "deadline", "if_none_match", "if_modified_since"),
        *("mime_type", "sha256", "size", "max_size", "min_size", "min_width", "min_height", "max_pixels"),
        *("extract_image_size", "key_exists", "content_type", "content_disposition"),
    }
)
"""Fields of a job that only the download or the callback needs. `record` keeps the callback that was sent."""

MARK_LENGTH = 4
"""Characters of the mark of a lease."""

_OF_JOB = {"a": "aggr_id", "u": "url", "t": "callback_type", "d": "callback_dst", "n": "created_ms"}
_OF_DOWNLOAD = {"f": "finished", "s": "started", "z": "size", "m": "mime"}
_OF_CALLBACK = {"F": "finished", "S": "started"}
_SHA256 = "h"
_RELATIVE = "sFS"
"""Times that are stored as the difference to the end of the download."""

_DEFAULTS = {"state": "succeeded", "attempts": "1", "deliveries": "1"}
"""Values of fields of both hashes that are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The parsed record of a job that has ended."""

    spec: str
    """The job in the JSON of `JobSpec.to_json`."""
    download: dict[str, str]
    callback: dict[str, str]
    """Fields as of the hash `task`; empty without a callback."""


def record(spec: JobSpec, outcome: Outcome, seal: Callable[[str], str] | None) -> str:
    """The lines that the caller knows; the script that ends the job adds the others."""
    callback_type, destination = spec.callback(success=outcome.verdict is Verdict.SUCCEEDED)
    job = {name: value for name, value in spec.stored().items() if name not in _UNNEEDED}
    job["url"] = redact_url(spec.url)
    if callback_type:
        job["callback_type"] = callback_type
    if destination:
        job["callback_dst"] = redact_url(destination)
    if len(spec.extra) > MAX_EXTRA:
        del job["extra"]
    job = sealed(job, seal)
    lines = []
    for letter, name in _OF_JOB.items():
        if name in job and (text := str(job[name])).isprintable():
            lines.append(f"{letter}{text}")
            del job[name]
    if job:
        lines.append("J" + json.dumps(job, separators=(",", ":")))
    if outcome.file.sha256:
        lines.append(_SHA256 + urlsafe_b64encode(bytes.fromhex(outcome.file.sha256)).decode().rstrip("="))
    if outcome.response.final_url:
        final_url = redact_url(outcome.response.final_url)
        lines.append(f"Dfinal_url={seal(final_url) if seal else final_url}")
    return "\n".join(lines)


def parse(text: str) -> Ended:
    """The inverse of `record` and of `end_job` in `_ended.lua`; `spec` is empty for a damaged record."""
    try:
        return _parse(text)
    except (ValueError, TypeError, LookupError, RecursionError):
        return Ended(spec="", download=dict(_DEFAULTS, code="", finished=""), callback={})


def _parse(text: str) -> Ended:
    marks, *lines = text.split("\n")
    job: dict[str, Any] = {"aggr_limit": 1}
    download = dict(_DEFAULTS, code="", finished="")
    callback = dict(_DEFAULTS) if len(marks) > MARK_LENGTH else {}
    by_letter = {line[0]: line[1:] for line in lines if line[0] not in "DCJ"}
    for letter in _RELATIVE:
        if letter in by_letter:
            by_letter[letter] = str(int(by_letter["f"]) + int(by_letter[letter]))
    for names, values in ((_OF_JOB, job), (_OF_DOWNLOAD, download), (_OF_CALLBACK, callback)):
        values |= {name: by_letter[letter] for letter, name in names.items() if letter in by_letter}
    if "created_ms" in job:
        job["created_ms"] = int(job["created_ms"])
    if _SHA256 in by_letter:
        digest = by_letter[_SHA256]
        download["sha256"] = urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
    for line in lines:
        if line[0] == "J":
            job |= json.loads(line[1:])
        elif line[0] in "DC":
            name, _, value = line[1:].partition("=")
            (download if line[0] == "D" else callback)[name] = value.replace("\r", "\n")
    download.setdefault("status", "200")
    return Ended(spec=json.dumps(job, separators=(",", ":")), download=download, callback=callback)
