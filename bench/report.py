"""From runs to a table: medians over the rounds, and whether the targets are met."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench.result import Result

Case = tuple[str, int]
"""A scenario and its number of processes."""

TARGETS: dict[tuple[str, int, str], tuple[str, float]] = {
    ("S1", 1, "p50_ms"): ("<=", 8),
    ("S1", 1, "p99_ms"): ("<=", 25),
    ("S2", 1, "cpu_of_reference"): ("<=", 0.95),
    ("S2", 1, "post_p99_ms"): ("<=", 25),
    ("S2", 2, "jobs_of_s2"): (">=", 1.4),
    ("S2", 2, "post_p99_ms"): ("<=", 25),
    ("S2b", 1, "cpu_of_reference"): ("<=", 0.6),
    ("S2b", 2, "cpu_of_reference"): ("<=", 0.6),
    ("S2c", 1, "cpu_of_budget"): ("<=", 1),
    ("S2d-100KB", 1, "cpu_of_s2"): ("<=", 1.4),
    ("S2d-1MiB", 1, "cpu_ms_per_job"): ("<=", 3),
    ("S2d-10MiB", 1, "cpu_ms_per_job"): ("<=", 14),
    ("S2e-10KiB-new", 1, "cpu_ms_more_than_s2"): ("<=", 0.45),
    ("S3", 1, "post_jobs_per_s"): (">=", 4500),
    ("S3", 1, "stream_jobs_per_s"): (">=", 25_000),
    ("S4", 1, "of_smallest"): ("<=", 1.3),
    ("S5", 1, "percent_of_core"): ("<=", 1),
    ("S6-1", 1, "of_curl"): (">=", 1),
    ("S6-1", 1, "grown_mib"): ("<=", 32),
    ("S6-4", 1, "of_curl"): (">=", 1),
    ("S6-4", 1, "cores"): (">", 1),
    ("S6-4", 1, "grown_mib"): ("<=", 32),
    ("S7", 1, "bytes_per_job"): ("<=", 360),
    ("S7", 1, "bytes_per_ended_job"): ("<=", 400),
    ("S8", 1, "rss_mb"): ("<=", 200),
    ("S8", 1, "percent_of_core"): ("<=", 2),
    ("S9", 2, "jobs_of_one"): (">=", 0.9),
    ("S9", 4, "jobs_of_one"): (">=", 0.9),
    ("S10", 1, "deliveries_per_s"): (">=", 5000),
    ("S10", 1, "callbacks_per_s"): (">=", 5000),
    ("S10-http", 1, "callbacks_per_core_s"): (">=", 2500),
    ("S11", 1, "p50_ms"): ("<=", 25),
    ("S11", 1, "p99_ms"): ("<=", 80),
    ("S11 50/s", 1, "cpu_of_s2"): ("<=", 2.2),
    ("S11 200/s", 1, "cpu_of_s2"): ("<=", 1.8),
    ("S11 200/s", 1, "store_cpu_ms_per_job"): ("<=", 0.35),
    ("S11 500/s", 1, "cpu_of_s2"): ("<=", 1.4),
    ("S12", 1, "lease_calls_per_job"): ("<=", 2),
    ("S12-cluster", 1, "lease_calls_per_job"): ("<=", 4),
    ("S13 1", 1, "jobs_per_s"): (">=", 170),
    ("S13 4", 1, "jobs_per_s"): (">=", 550),
    ("S13 16", 1, "jobs_per_s"): (">=", 900),
    ("S14", 1, "files_per_s"): (">=", 2000),
    ("S14", 1, "cpu_ms_per_file"): ("<=", 0.45),
}
"""By scenario, or its first word for all its sizes; by number of processes; by measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measure of one case, over all rounds."""

    case: Case
    measure: str
    values: dict[str, float]
    """The median by build; key `""` where no build ran."""
    target: tuple[str, float] | None

    @property
    def met(self) -> bool | None:
        """Whether the last build meets the target; `None`: there is none."""
        if self.target is None:
            return None
        relation, bound = self.target
        value = list(self.values.values())[-1]
        return {"<=": value <= bound, ">=": value >= bound, ">": value > bound}[relation]


def rows(results: Sequence[Result]) -> Iterator[Row]:
    """The cases in the order in which they first ran, each measure once."""
    found: dict[tuple[Case, str], dict[str, list[float]]] = {}
    for result in results:
        for measure, value in result.measures.items():
            builds = found.setdefault(((result.name, result.processes), measure), {})
            builds.setdefault(result.build, []).append(value)
    for case in dict.fromkeys(case for case, _ in found):
        for (its_case, measure), builds in found.items():
            if its_case == case:
                values = {build: statistics.median(each) for build, each in builds.items()}
                names = (case[0], case[0].split()[0])
                target = next(
                    (TARGETS[key] for name in names if (key := (name, case[1], measure)) in TARGETS), None
                )
                yield Row(case=case, measure=measure, values=values, target=target)


def table(results: Sequence[Result], builds: Sequence[str]) -> Table:
    """A column a build, and with two or more the last one's share of the first one's value."""
    compared = len(builds) > 1
    shown = Table("scenario", "measure", *builds, *(["ratio"] if compared else []), "to reach", "met")
    for column in shown.columns[2 : 2 + len(builds) + compared]:
        column.justify = "right"
    last: Case | None = None
    for row in rows(results):
        name, processes = row.case
        if last is not None and row.case != last:
            shown.add_section()
        title = f"{name}, {processes} processes" if processes > 1 else name
        values = [row.values.get(build) for build in builds]
        if row.values.keys() == {""}:
            values = [*[None] * (len(builds) - 1), row.values[""]]
        ratio = _number(values[-1] / values[0]) if compared and values[0] and values[-1] else ""
        shown.add_row(
            title if row.case != last else "",
            row.measure,
            *("" if value is None else _number(value) for value in values),
            *([ratio] if compared else []),
            f"{row.target[0]} {row.target[1]:g}" if row.target else "",
            {None: "", True: "met", False: "NO"}[row.met],
        )
        last = row.case
    return shown


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:.2f}"


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """Every run, and the medians with their verdicts."""
    return {
        "medians": [
            {
                "scenario": row.case[0],
                "processes": row.case[1],
                "measure": row.measure,
                "values": row.values,
                "target": f"{row.target[0]} {row.target[1]:g}" if row.target else None,
                "met": row.met,
            }
            for row in rows(results)
        ],
        "runs": [
            {
                "scenario": result.name,
                "build": result.build,
                "processes": result.processes,
                "measures": result.measures,
                "faults": result.faults,
            }
            for result in results
        ],
    }
