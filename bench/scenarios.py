"""The scenarios of the performance page. Each answers its measures; targets are judged by the report."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import client
from bench._check import callback_faults, file_faults
from bench._processes import Service, Sink, python, service, usage

LIMIT = 8
"""`aggr_limit` of S2."""
CONNECTIONS = 16
"""Connections over which the client of S2 POSTs."""
CONCURRENCY = 256
"""Downloads in flight per process: the service's default, and so the floor's."""
_WARM_UP = 10
"""POSTs before S1 counts: the first ones pay for imports and connections, not for the work."""
_SILENCE_S = 30.0
"""No callback for so long: the rest will not come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all scenarios share."""

    folder: Path
    """An empty folder on the disk to be measured."""
    origin: int
    sink: Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One scenario's outcome."""

    name: str
    measures: dict[str, float]
    faults: list[str] = field(default_factory=list)
    """What was wrong; empty: every job did what it should."""


def s1(setup: Setup, *, samples: int) -> Result:
    """An idle service, a cold aggregation each time: from POST to callback received."""
    times: list[float] = []
    faults: list[str] = []
    setup.sink.clear()
    with service(setup.folder / "s1", processes=1) as running:
        for number in range(_WARM_UP + samples):
            body = client.job(
                aggr_id=f"cold-{number}",
                limit=LIMIT,
                url=f"http://127.0.0.1:{setup.origin}/file/{number}.png",
                callback=f"http://127.0.0.1:{setup.sink.port}/callback",
            )
            sent = _post(running.port, body)
            if not setup.sink.wait(number + 1, silence_s=_SILENCE_S):
                faults.append(f"no callback for sample {number} in {_SILENCE_S} s")
                break
            if number >= _WARM_UP:
                times.append((setup.sink.records[number][0] - sent) / 1e6)
    faults += callback_faults(body for _, body in setup.sink.records)
    times.sort()
    if not times:
        return Result(name="S1", measures={}, faults=faults)
    measures = {
        "p50_ms": statistics.median(times),
        "p99_ms": times[min(len(times) - 1, len(times) * 99 // 100)],
        "max_ms": times[-1],
        "samples": len(times),
    }
    return Result(name="S1", measures=measures, faults=faults)


def _post(port: int, body: bytes) -> int:
    """POST over a connection of its own; CLOCK_MONOTONIC in ns right before it was sent."""
    buffer = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=_SILENCE_S) as sock:
        sent = time.monotonic_ns()
        sock.sendall(client.request(body))
        while (answer := client.take_answer(buffer)) is None:
            data = sock.recv(65536)
            if not data:
                raise ConnectionError("the API closed the connection")
            buffer += data
    if answer[0] != 201:
        raise ConnectionError(f"the API answered {answer[0]} {answer[1]!r}")
    return sent


def floor(setup: Setup, *, jobs: int, aggregations: int, processes: int, label: str) -> Result:
    """The least that does S2's work, in as many processes as the service has."""
    setup.sink.clear()
    root = setup.folder / f"floor-{processes}-{label}"
    commands = [
        python(
            "floor",
            setup.origin,
            setup.sink.port,
            jobs,
            aggregations,
            LIMIT,
            CONCURRENCY,
            first,
            processes,
            root,
        )
        for first in range(processes)
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    results = [json.loads(process.communicate()[0] or b"null") for process in running]
    if None in results:
        return Result(name="floor", measures={}, faults=["a floor process failed"])
    setup.sink.wait(jobs, silence_s=_SILENCE_S)
    seconds = (max(r["last_ns"] for r in results) - min(r["first_ns"] for r in results)) / 1e9
    measures = {
        "jobs": jobs,
        "processes": processes,
        "jobs_per_s": jobs / seconds,
        "cpu_ms_per_job": 1000 * sum(r["cpu_s"] for r in results) / jobs,
    }
    faults = callback_faults(body for _, body in setup.sink.records) + file_faults(root, count=jobs)
    return Result(name="floor", measures=measures, faults=faults)


def s2(setup: Setup, *, jobs: int, aggregations: int, processes: int) -> Result:
    """Jobs by single POSTs: from the first POST to the last callback, and the CPU that it took."""
    setup.sink.clear()
    with service(setup.folder / f"s2-{processes}", processes=processes) as running:
        before = usage(running.pid)
        posted = _post_all(setup, running, jobs=jobs, aggregations=aggregations)
        complete = setup.sink.wait(jobs, silence_s=_SILENCE_S)
        used = usage(running.pid).since(before)
        faults = [f"{posted['error_count']} POSTs failed: {posted['errors']}"] * bool(posted["error_count"])
        if not complete:
            faults.append(f"only {len(setup.sink.records)} of {jobs} callbacks came")
        faults += callback_faults((body for _, body in setup.sink.records), ids=set(posted["ids"]))
        faults += file_faults(running.files, count=jobs)
    last = max((at for at, _ in setup.sink.records), default=posted["last_ns"])
    measures = {
        "jobs": jobs,
        "processes": processes,
        "jobs_per_s": jobs / ((last - posted["first_ns"]) / 1e9),
        "posts_per_s": jobs / ((posted["last_ns"] - posted["first_ns"]) / 1e9),
        "cpu_ms_per_job": 1000 * used.cpu_s / jobs,
        "store_cpu_ms_per_job": 1000 * used.store_cpu_s / jobs,
        "rss_mib": used.rss_bytes / 2**20,
    }
    return Result(name="S2", measures=measures, faults=faults)


def _post_all(setup: Setup, running: Service, *, jobs: int, aggregations: int) -> dict[str, Any]:
    command = python(
        "client", running.port, setup.origin, setup.sink.port, jobs, aggregations, LIMIT, CONNECTIONS
    )
    answer: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return answer
