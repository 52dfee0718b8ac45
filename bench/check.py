"""Whether the work was done right: a fast service that loses jobs is not fast."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.origin import content, size_of

FILE_BYTES = 10 * 1024
_SHOWN = 3


def callback_faults(
    bodies: Iterable[bytes], *, ids: set[str] | None = None, size: int = FILE_BYTES
) -> list[str]:
    """What is wrong with these callbacks: each a success with the right facts, each job's exactly once.

    Args:
        bodies: the payloads.
        ids: the jobs that were accepted; `None`: not known.
        size: of each file, as given to the origin.
    """
    payloads: list[dict[str, Any]] = [json.loads(body) for body in bodies]
    faults = []
    wrong = [
        payload
        for payload in payloads
        if not _expected(size_of(size, payload["resource_url"])).items() <= payload.items()
    ]
    if wrong:
        faults.append(f"{len(wrong)} callbacks are not the expected success, such as {wrong[:_SHOWN]}")
    counts = Counter(payload["job_id"] for payload in payloads)
    repeated = sum(1 for count in counts.values() if count > 1)
    if repeated:
        faults.append(f"{repeated} jobs had more than one callback")
    if ids is not None and ids != counts.keys():
        faults.append(
            f"{len(ids - counts.keys())} jobs without a callback, {len(counts.keys() - ids)} unknown"
        )
    return faults


@lru_cache(maxsize=1)
def _expected(size: int) -> dict[str, Any]:
    return {"success": True, "size": size, "sha256": hashlib.sha256(content(size)).hexdigest()}


def file_faults(root: Path, *, sizes: Counter[int]) -> list[str]:
    """What is wrong with the stored files; `sizes` says how many of each size there should be."""
    stored = Counter(
        path.stat().st_size for path in root.glob("*/*") if path.is_file() and path.parent.name != ".tmp"
    )
    faults = []
    if stored.total() != sizes.total():
        faults.append(f"{stored.total()} files are stored instead of {sizes.total()}")
    wrong = (stored - sizes).total()
    if wrong:
        faults.append(f"{wrong} files have the wrong size")
    return faults
