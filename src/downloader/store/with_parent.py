"""A script that becomes another program, which gets SIGTERM when the process that started it ends.

`python with_parent.py PARENT PROGRAM ARGUMENTS...`: a process of its own, because `subprocess` has no option
for this, and in a process with threads Python code must not run between fork and exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of Linux; elsewhere the next start ends a server that was left behind."""


def main(parent: int, command: list[str]) -> None:
    """Become `command`, unless the parent has ended meanwhile."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:
        os.execv(command[0], command)  # noqa: S606 - what it is for


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
