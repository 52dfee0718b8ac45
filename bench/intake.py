"""S3 and S7: the API alone, against a store in which the jobs stay."""

from __future__ import annotations

from typing import Any

import redis

from bench.processes import Helper, answer_of, helper, usage
from bench.result import LIMIT, Result, Setup
from bench.service import Build, Service, service

CONNECTIONS = {"client": 64, "stream": 4}
"""Connections over which each client sends; single POSTs are many clients' work."""
STREAMED = 5
"""So many times as many jobs are streamed as are POSTed, as that is so much faster."""
_MISSING = (404, 405)


def s3_s7(setup: Setup, build: Build, *, jobs: int, aggregations: int) -> list[Result]:
    """How fast one process takes jobs, one by one and streamed, and the memory that jobs take.

    The jobs are ended by the store of `build`, or by that of this version if the bench of `build` cannot.
    """
    folder = setup.new_folder()
    with (
        helper("store", folder) as store,
        redis.Redis.from_url(store.first) as database,
        service(setup.new_folder(), build, role="api", store=store.first) as running,
    ):
        empty = database.info("memory")["used_memory"]
        posts, faults = _send(setup, running, store, "client", jobs=jobs, aggregations=aggregations)
        full = database.info("memory")["used_memory"]
        lines, more = _send(setup, running, store, "stream", jobs=jobs * STREAMED, aggregations=aggregations)
        ended = (build.answer_of("ended", store.first) or answer_of("ended", store.first))["jobs"]
        of_ended = (database.info("memory")["used_memory"] - empty) / max(ended, 1)
    measures = {f"post_{name}": value for name, value in posts.items()}
    measures |= {f"stream_{name}": value for name, value in lines.items()}
    return [
        Result(name="S3", build=build.label, measures=measures, faults=faults + more),
        Result(
            name="S7",
            build=build.label,
            measures={"bytes_per_job": (full - empty) / jobs, "bytes_per_ended_job": of_ended},
        ),
    ]


def _send(
    setup: Setup, running: Service, store: Helper, by: str, *, jobs: int, aggregations: int
) -> tuple[dict[str, float], list[str]]:
    before = usage(running.pid, store.pid)
    places = (running.port, setup.origin_url, setup.sink.port)
    posted: dict[str, Any] = answer_of(by, *places, jobs, aggregations, LIMIT, CONNECTIONS[by])
    if posted.get("status") in _MISSING:
        return {}, []
    used = usage(running.pid, store.pid).since(before)
    measures = {
        "jobs": jobs,
        "jobs_per_s": jobs / ((posted["last_ns"] - posted["first_ns"]) / 1e9),
        "cpu_ms_per_job": 1000 * used.cpu_s / jobs,
        "store_cpu_ms_per_job": 1000 * used.store_cpu_s / jobs,
    }
    faults = [f"{posted['error_count']} jobs not taken: {posted['errors']}"] * bool(posted["error_count"])
    if len(set(posted["ids"])) != jobs:
        faults.append(f"{len(set(posted['ids']))} ids for {jobs} jobs")
    return measures, faults
