"""`nox -s chaos -- --minutes 60 --seed 7`: break a fleet for that long, and print the result."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

import trio

from chaos.driver import run_chaos
from servers.fleet import say

NESTED = 50
"""How many levels of nested exception groups are printed. The default, 10, can hide the cause."""


def main() -> int:
    """Exit status 1 if a promise was broken, 2 if the run itself failed."""
    parser = argparse.ArgumentParser(prog="nox -s chaos --", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long faults are caused")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="repeats a schedule of faults")
    parser.add_argument("--pace", type=float, default=1.2, help="seconds from one fault to the next")
    parser.add_argument("--processors", type=int, default=2, help="besides `run --processes 2`")
    parser.add_argument(
        "--cluster", action="store_true", help="on a Cluster, without faults of the links to it"
    )
    chosen = parser.parse_args()
    # The path must be short, because it has unix sockets in it.
    folder = Path(tempfile.mkdtemp(prefix="dlx-"))
    try:
        report = trio.run(
            partial(
                run_chaos,
                folder,
                seed=chosen.seed,
                seconds=60 * chosen.minutes,
                say=say,
                pace_s=chosen.pace,
                processors=chosen.processors,
                clustered=chosen.cluster,
            )
        )
    except BaseExceptionGroup as group:
        traceback.TracebackException.from_exception(group, max_group_depth=NESTED).print()
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for line in report.lines():
        say(line)
    return bool(report.violations)


if __name__ == "__main__":
    sys.exit(main())
