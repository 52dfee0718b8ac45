"""`python -m bench`: run scenarios, print a table, write JSON; exit status 1 if any job went wrong.

Targets that are missed do not change the exit status: machines are noisy, wrong answers are not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import report
from bench.check import FILE_BYTES
from bench.idle import Fleet
from bench.processes import helper, sink
from bench.result import Result, Setup
from bench.run import FILES, SCENARIOS, Plan, run
from bench.service import Build

_TMPFS = Path("/dev/shm")
_ROOM_BYTES = 2 * 2**30
"""For the files and the append-only files of a run, with room for what else needs memory."""
_PROBE_FILES = 200
_SMALL_RUN_JOBS = 1000
"""Below this many jobs the run is a check that the bench works: everything is smaller."""
_FEW = ("S2c", "S2e-10KiB-new")
_FLEETS = (
    *(Fleet(processors=processors) for processors in (1, 5, 20, 100)),
    Fleet(processors=20, rate=10),
    Fleet(processors=20, cluster=True),
)
_SMALL_FLEETS = (Fleet(processors=20, rate=10), Fleet(processors=2, cluster=True))


def main() -> int:
    options = _options()
    console = Console()
    builds = [_build(text) for text in options.python]
    plan = _plan(options, builds)
    with _work_folder(options.dir) as folder:
        facts = _machine(folder, builds)
        for name, fact in facts.items():
            console.print(f"{name}: {fact}", style="dim", markup=False, highlight=False)
        results: list[Result] = []
        with helper("origin", FILE_BYTES) as origin, sink() as callbacks:
            setup = Setup(folder=folder, origin=int(origin.first), sink=callbacks)
            for result in run(setup, plan, say=console.print):
                results.append(result)
                for fault in result.faults:
                    console.print(f"{result.name}: {fault}", style="bold red", markup=False)
    console.print(report.table(results, [build.label for build in builds]))
    if options.json:
        text = json.dumps({"machine": facts, **report.as_json(results)}, indent=2)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")
    return 1 if any(result.faults for result in results) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the service, beside a reference that runs before and after.",
    )
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument(
        "--jobs",
        type=int,
        default=20_000,
        help="jobs of S2, S2b, S3 and S10 (default 20000); S2c to S2e have fewer",
    )
    parser.add_argument("--aggregations", type=int, default=100)
    parser.add_argument("--processes", type=int, nargs="+", help="for S2 and S2b (default 1 2)")
    parser.add_argument("--rates", type=int, nargs="+", default=[50, 200, 500], help="jobs a second of S11")
    parser.add_argument("--rounds", type=int, default=1, help="repeat so often and show medians (default 1)")
    parser.add_argument(
        "--python",
        nargs="+",
        metavar="LABEL=PATH",
        default=[f"here={sys.executable}"],
        help="interpreters whose environments have the service; they take turns, the last one is judged",
    )
    parser.add_argument(
        "--dir", type=Path, help="folder for all files (default: /dev/shm if it has room, else here)"
    )
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()
    options.dir = options.dir or _default_folder()
    return options


def _plan(options: argparse.Namespace, builds: list[Build]) -> Plan:
    small = options.jobs < _SMALL_RUN_JOBS
    return Plan(
        scenarios=frozenset(options.scenario),
        variants=_FEW if small else FILES,
        builds=builds,
        rounds=options.rounds,
        processes=options.processes or ([1] if small else [1, 2]),
        jobs=options.jobs,
        aggregations=options.aggregations,
        samples=min(options.jobs, 5) if small else 200,
        large_bytes=2**24 if small else 2**30,
        waiting=options.jobs if small else 5_000,
        at_limit=options.jobs if small else 10_000,
        watched_s=1.0 if small else 10.0,
        delayed_s=1 if small else 5,
        rates=[50] if small else options.rates,
        steady_s=1 if small else 10,
        idle_jobs=min(options.jobs, 20) if small else 600,
        fleets=_SMALL_FLEETS if small else _FLEETS,
        limited=options.jobs if small else 1_000,
        limits=[4] if small else [1, 4, 16],
        fetched=options.jobs if small else 3_000,
        largest_store=options.jobs if small else 1_000_000,
    )


def _default_folder() -> Path:
    with suppress(OSError):
        if shutil.disk_usage(_TMPFS).free >= _ROOM_BYTES:
            return _TMPFS
    return Path()


def _build(text: str) -> Build:
    label, _, path = text.rpartition("=")
    # Not resolved: the link in an environment names the environment.
    return Build(label or path, str(Path.cwd() / path))


@contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=parent)).absolute()
    with suppress(OSError):  # ext4: has each run's files laid elsewhere, far from what was just deleted
        subprocess.run(["chattr", "+T", str(folder)], check=False, capture_output=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _machine(folder: Path, builds: list[Build]) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(": ")[2] for line in info.splitlines() if line.startswith("model name")), "")
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "folder": f"{folder} ({kind}; {_create_us(folder / 'probe')} us to create a file)",
        "reference": f"Python {platform.python_version()}",
        **{build.label: build.facts() for build in builds},
    }


def _create_us(folder: Path) -> float:
    """Microseconds to create a file here now; on ext4 many when files were deleted lately."""
    folder.mkdir()
    begun = time.perf_counter()
    for number in range(_PROBE_FILES):
        (folder / str(number)).touch()
    return round((time.perf_counter() - begun) / _PROBE_FILES * 1e6, 1)


if __name__ == "__main__":
    sys.exit(main())
