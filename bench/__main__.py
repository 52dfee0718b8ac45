"""`python -m bench`: run scenarios, print a table, write JSON; exit status 1 if any job went wrong.

Targets that are missed do not change the exit status: machines are noisy, wrong answers are not.

Note for ext4 without a journal: for some minutes after many files were deleted, creating files near them is
slow (the allocator steps over every inode deleted lately). `create_us` among the machine's facts shows it.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import _processes, kafka, scenarios
from bench._check import FILE_BYTES

SCENARIOS = ("floor", "S1", "S2", "S10")
_PROBE_FILES = 200
_SMALL_RUN_JOBS = 1000
"""Below this many jobs the run is a check that the bench works; S1 takes fewer samples too."""

TARGETS: dict[tuple[str, str, int], tuple[str, float]] = {
    ("S1", "p50_ms", 1): ("<=", 15),
    ("S1", "p99_ms", 1): ("<=", 50),
    ("S2", "jobs_per_s", 1): (">=", 800),
    ("S2", "jobs_per_s", 2): (">=", 1500),
    ("S2", "cpu_ms_per_job", 1): ("<=", 1.0),
    ("S2", "cpu_ms_per_job", 2): ("<=", 1.0),
    ("S2", "of_floor", 1): (">=", 0.6),
    ("S2", "of_floor", 2): (">=", 0.6),
    ("S10", "deliveries_per_s", 1): (">=", 5000),
    ("S10", "callbacks_per_s", 1): (">=", 5000),
}


def main() -> int:
    options = _options()
    console = Console()
    facts: dict[str, Any] = {}
    with _work_folder(options.dir) as folder:
        facts = _machine(folder)
        results = list(_run(folder, options, console))
    console.print(_table(results))
    console.print(" · ".join(f"{key} {value}" for key, value in facts.items()), style="dim")
    for result in results:
        for fault in result.faults:
            console.print(f"{result.name}: {fault}", style="bold red", markup=False)
    if options.json:
        text = json.dumps({"machine": facts, "results": [_as_json(result) for result in results]}, indent=2)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")
    return 1 if any(result.faults for result in results) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the service.")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument(
        "--jobs", type=int, default=20_000, help="jobs of S2, S10 and the floor (default 20000)"
    )
    parser.add_argument("--aggregations", type=int, default=100)
    parser.add_argument("--samples", type=int, help="samples of S1 (default 200; fewer in a small run)")
    parser.add_argument("--processes", type=int, nargs="+", help="for S2 and the floor (default 1 2)")
    parser.add_argument("--dir", type=Path, default=Path(), help="folder on the disk to use (default: here)")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()
    small = options.jobs < _SMALL_RUN_JOBS
    options.samples = options.samples or (min(options.jobs, 20) if small else 200)
    options.processes = options.processes or ([1] if small else [1, 2])
    return options


@contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=parent)).absolute()
    with suppress(OSError):  # ext4: has each run's files laid elsewhere, far from what was just deleted
        subprocess.run(["chattr", "+T", str(folder)], check=False, capture_output=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _machine(folder: Path) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(": ")[2] for line in info.splitlines() if line.startswith("model name")), "")
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("downloader", "trio", "httpcore2")},
        "create_us": _create_us(folder / "probe"),
    }


def _create_us(folder: Path) -> float:
    """Microseconds to create a file on this disk now."""
    folder.mkdir()
    begun = time.perf_counter()
    for number in range(_PROBE_FILES):
        (folder / str(number)).touch()
    return round((time.perf_counter() - begun) / _PROBE_FILES * 1e6, 1)


def _run(folder: Path, options: argparse.Namespace, console: Console) -> Iterator[scenarios.Result]:
    with _processes.server("origin", FILE_BYTES) as (origin, _), _processes.sink() as sink:
        setup = scenarios.Setup(folder=folder, origin=origin, sink=sink)
        if "S1" in options.scenario:
            console.print(f"S1: {options.samples} samples ...")
            yield scenarios.s1(setup, samples=options.samples)
        size = {"jobs": options.jobs, "aggregations": options.aggregations}
        for processes in options.processes:
            floors = []
            if "floor" in options.scenario:
                console.print(f"floor: {options.jobs} jobs, processes: {processes} ...")
                floors.append(scenarios.floor(setup, **size, processes=processes, label="before"))
                yield floors[0]
            if "S2" in options.scenario:
                console.print(f"S2: {options.jobs} jobs, processes: {processes} ...")
                result = scenarios.s2(setup, **size, processes=processes)
                if floors:
                    console.print("floor again ...")
                    floors.append(scenarios.floor(setup, **size, processes=processes, label="after"))
                    yield floors[1]
                    # The mean of one before and one after: the machine's mood changes within a run.
                    floor = sum(each.measures.get("jobs_per_s", 0.0) for each in floors) / len(floors)
                    result.measures["of_floor"] = result.measures["jobs_per_s"] / floor if floor else 0.0
                yield result
        if "S10" in options.scenario:
            console.print(f"S10: {options.jobs} callbacks to Kafka ...")
            yield kafka.s10(setup, jobs=options.jobs)


def _verdict(result: scenarios.Result, measure: str) -> tuple[str, bool] | None:
    """The target as text and whether it is met; `None`: there is none."""
    target = TARGETS.get((result.name, measure, int(result.measures.get("processes", 1))))
    if target is None:
        return None
    relation, bound = target
    value = result.measures[measure]
    return f"{relation} {bound:g}", value <= bound if relation == "<=" else value >= bound


def _as_json(result: scenarios.Result) -> dict[str, Any]:
    verdicts = {name: verdict for name in result.measures if (verdict := _verdict(result, name))}
    targets = {name: {"target": text, "met": met} for name, (text, met) in verdicts.items()}
    return {"name": result.name, "measures": result.measures, "targets": targets, "faults": result.faults}


def _table(results: list[scenarios.Result]) -> Table:
    table = Table("scenario", "measure", "value", "to reach", "met")
    table.columns[2].justify = "right"
    for result in results:
        for measure, value in result.measures.items():
            verdict = _verdict(result, measure)
            text, met = verdict or ("", True)
            shown = f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:.2f}"
            table.add_row(result.name, measure, shown, text, ("yes" if met else "NO") if verdict else "")
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main())
