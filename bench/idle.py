"""S5 and S8: what the service costs while it waits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from bench.processes import answer_of, helper, usage
from bench.result import Result, Setup
from bench.service import Build, service

_SETTLE_S = 2.0
"""Between the last connection and the watching."""
_REACHED_S = 20.0
_POLL_S = 0.1
_IDLE_PER_S = 20
"""Jobs a second of S12."""


def s8(setup: Setup, build: Build, *, downloads: int, watched_s: float) -> Result:
    """That many downloads, each in an aggregation of its own, from an origin that accepts and says nothing.

    `watched_s` has to be well under the 30 s in which an origin has to begin its answer.
    """
    with (
        helper("silent") as origin,
        service(setup.new_folder(), build, concurrency=downloads) as running,
    ):
        others = _descriptors(origin.pid)  # all that come after are connections
        places = (running.port, f"http://127.0.0.1:{origin.first}", setup.sink.port)
        posted = answer_of("client", *places, downloads, downloads, 1, 16)
        faults = [f"{posted['error_count']} jobs not taken: {posted['errors']}"] * bool(posted["error_count"])
        deadline = time.monotonic() + _REACHED_S
        while (reached := _descriptors(origin.pid) - others) < downloads and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        time.sleep(_SETTLE_S)
        measures = _watch(running.pid, watched_s=watched_s)
        in_flight = min(reached, _descriptors(origin.pid) - others)
        if in_flight < downloads:
            faults.append(f"only {in_flight} of {downloads} downloads were in flight all the time")
    return Result(name="S8", build=build.label, measures={"downloads": downloads, **measures}, faults=faults)


def s5(setup: Setup, build: Build, *, aggregations: int, watched_s: float) -> Result:
    """That many aggregations at their limit, with a job more in each; their leases are somebody else's."""
    folder = setup.new_folder()
    with helper("store", folder) as store:
        call = ("held", store.first, aggregations)
        held = build.answer_of(*call) or answer_of(*call)
        with service(setup.new_folder(), build, store=store.first) as running:
            time.sleep(_SETTLE_S)
            measures = _watch(running.pid, store.pid, watched_s=watched_s)
    faults = [] if held["leased"] == aggregations else [f"only {held['leased']} leases"]
    measures = {"aggregations": aggregations, **measures}
    return Result(name="S5", build=build.label, measures=measures, faults=faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Idle processors, and where their jobs come from."""

    processors: int
    rate: int = 0
    """Of the one aggregation of all jobs; 0: no rate, and each job has an aggregation of its own."""
    cluster: bool = False

    def name(self) -> str:
        """The scenario and its size."""
        return f"S12{'-cluster' * self.cluster} {self.processors}{f', rate {self.rate}' * bool(self.rate)}"


def s12(setup: Setup, build: Build, fleet: Fleet, *, jobs: int) -> Result | None:
    """Idle processors in one process, and 20 jobs a second; `None`: this version's bench has none."""
    with helper("cluster" if fleet.cluster else "store", setup.new_folder()) as store:
        arguments = (fleet.processors, jobs, _IDLE_PER_S, fleet.rate, int(fleet.cluster))
        measures = build.answer_of("idle_fleet", store.first, *arguments)
    if measures is None:
        return None
    begun = measures.pop("begun")
    faults = [] if fleet.rate or begun == jobs else [f"{begun} of {jobs} jobs have begun"]
    return Result(name=fleet.name(), build=build.label, measures=measures, faults=faults)


def _watch(service_pid: int, *pids: int, watched_s: float) -> dict[str, float]:
    before, begun = usage(service_pid, *pids), time.monotonic()
    time.sleep(watched_s)
    used, seconds = usage(service_pid, *pids).since(before), time.monotonic() - begun
    cpu, store = 100 * used.cpu_s / seconds, 100 * used.store_cpu_s / seconds
    return {
        "percent_of_core": cpu + store,
        "store_percent_of_core": store,
        "rss_mb": usage(service_pid).rss_bytes / 1e6,
    }


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
