"""Named points at which a test can kill the process; off unless the environment says otherwise."""

from __future__ import annotations

import os
import signal
from functools import cache

VARIABLE = "DOWNLOADER_FAILPOINT"
"""Environment variable with the name of the point at which to die."""


def failpoint(name: str) -> None:
    """Kill this process with SIGKILL if `DOWNLOADER_FAILPOINT` names this point; else do nothing.

    Points: `after-lease`, `first-byte`, `before-fsync`, `after-rename`, `before-complete`, `after-complete`,
    `after-group-seal`, `after-group-complete`.
    """
    if _armed() == name:
        os.kill(os.getpid(), signal.SIGKILL)


@cache
def _armed() -> str | None:
    # Cached, because it is called several times for each job.
    return os.environ.get(VARIABLE)
