"""S1 and S2: from POST to callback; and the reference, which does the same work without queue and states."""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import redis
import trustme

from bench import client
from bench.check import FILE_BYTES, callback_faults, file_faults
from bench.origin import size_of
from bench.processes import answer_of, helper, peak_bytes, usage
from bench.result import LIMIT, SILENCE_S, Result, Setup
from bench.service import CONCURRENCY, Build, service

CONNECTIONS = {"client": 16, "stream": 4}
"""Connections over which each client sends."""
_WARM_UP = 10
"""POSTs before S1 counts: the first ones pay for imports and connections, not for the work."""
_DELAY_MS, _DELAYED_CONCURRENCY = 50, 6
"""Of S9: the origin's delay, and downloads in flight per process. So a process has 120 jobs a second at most,
and four of them leave room on two cores."""
_MISSING = (404, 405)


def s1(setup: Setup, build: Build, *, samples: int) -> Result:
    """An idle service, a cold aggregation each time: from POST to callback received."""
    times: list[float] = []
    faults: list[str] = []
    setup.sink.clear()
    with service(setup.new_folder(), build) as running:
        for number in range(_WARM_UP + samples):
            body = client.job(
                aggr_id=f"cold-{number}",
                limit=LIMIT,
                url=f"http://127.0.0.1:{setup.origin}/file/{number}.png",
                callback=f"http://127.0.0.1:{setup.sink.port}/callback",
            )
            sent = _post(running.port, body)
            if not setup.sink.wait(number + 1, silence_s=SILENCE_S):
                faults.append(f"no callback for sample {number} in {SILENCE_S} s")
                break
            if number >= _WARM_UP:
                times.append((setup.sink.records[number][0] - sent) / 1e6)
    faults += callback_faults(body for _, body in setup.sink.records)
    times.sort()
    if not times:
        return Result(name="S1", build=build.label, measures={}, faults=faults)
    measures = {
        "p50_ms": statistics.median(times),
        "p99_ms": times[min(len(times) - 1, len(times) * 99 // 100)],
        "max_ms": times[-1],
        "samples": len(times),
    }
    return Result(name="S1", build=build.label, measures=measures, faults=faults)


def _post(port: int, body: bytes) -> int:
    """POST over a connection of its own; CLOCK_MONOTONIC in ns right before it was sent."""
    buffer = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=SILENCE_S) as sock:
        sent = time.monotonic_ns()
        sock.sendall(client.request(body, port))
        while (answer := client.take_answer(buffer)) is None:
            data = sock.recv(65536)
            if not data:
                raise ConnectionError("the API closed the connection")
            buffer += data
    if answer[0] != 201:
        raise ConnectionError(f"the API answered {answer[0]} {answer[1]!r}")
    return sent


def floor(setup: Setup, module: str, *, jobs: int, aggregations: int) -> Result:
    """S2's work in one process without API, queue and states: `floor` is the reference, `net_floor` ours."""
    setup.sink.clear()
    root = setup.new_folder()
    ports = (setup.origin, setup.sink.port)
    answer = answer_of(module, *ports, jobs, aggregations, LIMIT, CONCURRENCY, 0, 1, root)
    complete = setup.sink.wait(jobs, silence_s=SILENCE_S)
    measures = {
        "jobs": jobs,
        "jobs_per_s": jobs / ((answer["last_ns"] - answer["first_ns"]) / 1e9),
        "cpu_ms_per_job": 1000 * answer["cpu_s"] / jobs,
    }
    faults = callback_faults(body for _, body in setup.sink.records) + file_faults(
        root, sizes=Counter({FILE_BYTES: jobs})
    )
    faults += [] if complete else [f"only {len(setup.sink.records)} of {jobs} callbacks came"]
    return Result(name=module, measures=measures, faults=faults)


def s2(
    setup: Setup,
    build: Build,
    *,
    name: str,
    by: str,
    jobs: int,
    aggregations: int,
    processes: int = 1,
    limit: int = LIMIT,
    size: int = FILE_BYTES,
    origin: str = "",
    ca_file: str = "",
    concurrency: int = CONCURRENCY,
) -> Result | None:
    """From the first job sent to the last callback, and the CPU that it took.

    Args:
        setup: as ever.
        build: which version.
        name: the scenario's.
        by: the client: `client` sends single POSTs, `stream` NDJSON.
        jobs: how many.
        aggregations: among how many they take turns.
        processes: of the service.
        limit: of each aggregation.
        size: of each file, as given to the origin.
        origin: URL of an origin; empty: that of `setup`.
        ca_file: the authority of an HTTPS origin.
        concurrency: downloads in flight per process.

    Returns:
        `None`: this version has no such route.
    """
    setup.sink.clear()
    sizes = Counter(size_of(size, client.path(index)) for index in range(jobs))
    with (
        helper("store", setup.new_folder()) as store,
        redis.Redis.from_url(store.first) as database,
        service(
            setup.new_folder(),
            build,
            processes=processes,
            store=store.first,
            concurrency=concurrency,
            ca_file=ca_file,
        ) as running,
    ):
        before, calls = usage(running.pid, store.pid), _calls(database)
        at_start = usage(running.pid).rss_bytes
        places = (running.port, origin or setup.origin_url, setup.sink.port)
        posted = answer_of(by, *places, jobs, aggregations, limit, CONNECTIONS[by])
        if posted.get("status") in _MISSING:
            return None
        complete = setup.sink.wait(len(posted["ids"]), silence_s=SILENCE_S)
        used, calls = usage(running.pid, store.pid).since(before), _calls(database) - calls
        memory, peak = usage(running.pid).rss_bytes, peak_bytes(running.pid)
        faults = [f"{posted['error_count']} jobs not taken: {posted['errors']}"] * bool(posted["error_count"])
        if not complete:
            faults.append(f"only {len(setup.sink.records)} of {jobs} callbacks came")
        faults += callback_faults((body for _, body in setup.sink.records), ids=set(posted["ids"]), size=size)
        faults += file_faults(running.files, sizes=sizes)
    last = max((at for at, _ in setup.sink.records), default=posted["last_ns"])
    measures = {
        "jobs": jobs,
        "jobs_per_s": jobs / ((last - posted["first_ns"]) / 1e9),
        "taken_per_s": jobs / ((posted["last_ns"] - posted["first_ns"]) / 1e9),
        "cpu_ms_per_job": 1000 * used.cpu_s / jobs,
        "store_cpu_ms_per_job": 1000 * used.store_cpu_s / jobs,
        "store_calls_per_job": calls / jobs,
        **{f"post_{name}": posted[name] for name in ("p50_ms", "p99_ms") if name in posted},
        "mb_per_job": sum(bytes_ * number for bytes_, number in sizes.items()) / jobs / 1e6,
        "rss_mib": memory / 2**20,
        "peak_mib": peak / 2**20,
        "grown_mib": (peak - at_start) / 2**20,
    }
    return Result(name=name, build=build.label, processes=processes, measures=measures, faults=faults)


def s9(setup: Setup, build: Build, *, seconds: int, aggregations: int) -> Iterator[Result]:
    """One, two and four processes, each with as many downloads at once as need a small part of a core."""
    possible = seconds * _DELAYED_CONCURRENCY * 1000 // _DELAY_MS
    one: float | None = None
    with helper("origin", FILE_BYTES, "", "", _DELAY_MS) as origin:
        for processes in (1, 2, 4):
            result = s2(
                setup,
                build,
                name="S9",
                by="stream",
                jobs=possible * processes,
                aggregations=aggregations,
                processes=processes,
                origin=f"http://127.0.0.1:{origin.first}",
                concurrency=_DELAYED_CONCURRENCY,
            )
            if result is None:
                return
            each = result.measures["jobs_per_s"] / processes
            one = one or each
            measures = {
                "jobs_per_s_and_process": each,
                "jobs_of_one": each / one,
                "cpu_ms_per_job": result.measures["cpu_ms_per_job"],
            }
            yield replace(result, measures=measures)


def s11(setup: Setup, build: Build, *, rate: int, seconds: int, aggregations: int) -> Result:
    """Jobs that come one by one at a rate: CPU, calls of the store, and the time from POST to callback."""
    setup.sink.clear()
    count = rate * seconds
    with (
        helper("store", setup.new_folder()) as store,
        redis.Redis.from_url(store.first) as database,
        service(setup.new_folder(), build, store=store.first) as running,
    ):
        before, calls = usage(running.pid, store.pid), _calls(database)
        places = (running.port, setup.origin_url, setup.sink.port)
        posted = answer_of("paced", *places, count, aggregations, LIMIT, rate)
        complete = setup.sink.wait(len(posted["sent"]), silence_s=SILENCE_S)
        used, calls = usage(running.pid, store.pid).since(before), _calls(database) - calls
    faults = [f"{posted['error_count']} jobs not taken: {posted['errors']}"] * bool(posted["error_count"])
    faults += [] if complete else [f"only {len(setup.sink.records)} of {count} callbacks came"]
    faults += callback_faults((body for _, body in setup.sink.records), ids=set(posted["sent"]))
    came = {json.loads(body)["job_id"]: at for at, body in setup.sink.records}
    times = sorted((at - posted["sent"][job]) / 1e6 for job, at in came.items() if job in posted["sent"])
    measures = {
        "cpu_ms_per_job": 1000 * used.cpu_s / count,
        "store_cpu_ms_per_job": 1000 * used.store_cpu_s / count,
        "store_calls_per_job": calls / count,
        "p50_ms": statistics.median(times) if times else 0.0,
        "p99_ms": times[len(times) * 99 // 100] if times else 0.0,
    }
    return Result(name=f"S11 {rate}/s", build=build.label, measures=measures, faults=faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of a variant of S2, and how their origin serves them."""

    size: int
    """Bytes, as given to the origin."""
    fewer: int
    """By how many times fewer jobs than S2 it is done with."""
    tls: bool = False
    close: bool = False
    """Whether each file needs a connection of its own."""


def s2_files(setup: Setup, build: Build, *, name: str, files: Files, jobs: int, aggregations: int) -> Result:
    """S2 with other files, from an origin of its own."""
    certificate = ca_file = ""
    if files.tls:
        folder = setup.new_folder()
        folder.mkdir()
        certificate, ca_file = str(folder / "certificate.pem"), str(folder / "ca.pem")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(ca_file)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    words = [files.size, *([certificate] if certificate else []), *(["close"] if files.close else [])]
    with helper("origin", *words) as origin:
        result = s2(
            setup,
            build,
            name=name,
            by="client",
            jobs=max(1, jobs // files.fewer),
            aggregations=aggregations,
            size=files.size,
            origin=f"http{'s' * files.tls}://127.0.0.1:{origin.first}",
            ca_file=ca_file,
        )
    assert result is not None, "every version takes single POSTs"
    return result


def _calls(database: redis.Redis) -> int:
    """How many scripts the store has run."""
    stats = database.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval", "fcall"))
