"""Whether the work was done right: a fast service that loses jobs is not fast."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.origin import content

FILE_BYTES = 10 * 1024
_SHOWN = 3


def callback_faults(
    bodies: Iterable[bytes], *, ids: set[str] | None = None, size: int = FILE_BYTES
) -> list[str]:
    """What is wrong with these callbacks: each a success with the right facts, each job's exactly once.

    Args:
        bodies: the payloads.
        ids: the jobs that were accepted; `None`: not known.
        size: of each file.
    """
    expected = {
        "success": True,
        "size": size,
        "sha256": hashlib.sha256(content(size)).hexdigest(),
    }
    payloads: list[dict[str, Any]] = [json.loads(body) for body in bodies]
    faults = []
    wrong = [payload for payload in payloads if not expected.items() <= payload.items()]
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


def file_faults(root: Path, *, count: int, size: int = FILE_BYTES) -> list[str]:
    """What is wrong with the stored files: so many, each complete."""
    sizes = [
        path.stat().st_size for path in root.glob("*/*") if path.is_file() and path.parent.name != ".tmp"
    ]
    faults = []
    if len(sizes) != count:
        faults.append(f"{len(sizes)} files are stored instead of {count}")
    partial = sum(1 for each in sizes if each != size)
    if partial:
        faults.append(f"{partial} files have the wrong size")
    return faults
