"""A script that becomes another program, which gets SIGTERM when the process that started it ends.

`python with_parent.py PARENT PROGRAM ARGUMENTS...`. It is a script because `subprocess` has no option for
this, and because Python code must not run between fork and exec in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From `<linux/prctl.h>`. On other systems the next start ends a server that was left behind."""


def main(parent: int, command: list[str]) -> None:
    """Become `command`, unless the parent has ended meanwhile."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:
        os.execv(command[0], command)  # noqa: S606 - the purpose of this script


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
