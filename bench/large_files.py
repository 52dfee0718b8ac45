"""S6: files of a gigabyte through the service, beside `curl -o` and `sync` of the same files."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import replace

from bench import end_to_end
from bench.processes import helper
from bench.result import Result, Setup
from bench.service import Build


def s6(setup: Setup, build: Build, *, size: int, at_once: int) -> Result:
    """So many files at once, each of an aggregation of its own."""
    with helper("origin", size) as origin:
        url = f"http://127.0.0.1:{origin.first}"
        before = _curl_s(setup, url, at_once)
        result = end_to_end.s2(
            setup,
            build,
            name=f"S6-{at_once}",
            by="client",
            jobs=at_once,
            aggregations=at_once,
            size=size,
            origin=url,
        )
        after = _curl_s(setup, url, at_once)
    assert result is not None, "each version takes single POSTs"
    seconds = at_once / result.measures["jobs_per_s"]
    measures = {
        "mb_per_s": at_once * size / seconds / 1e6,
        "of_curl": (before + after) / 2 / seconds,
        "cores": result.measures["cpu_ms_per_job"] * at_once / 1000 / seconds,
        "cpu_ms_per_gib": result.measures["cpu_ms_per_job"] / size * 2**30,
        "grown_mib": result.measures["grown_mib"],
    }
    return replace(result, measures=measures)


def _curl_s(setup: Setup, url: str, at_once: int) -> float:
    """Seconds until all files are on the disk."""
    folder = setup.new_folder()
    folder.mkdir()
    begun = time.monotonic()
    running = [
        subprocess.Popen(["curl", "-s", "-o", folder / str(number), f"{url}/{number}"])
        for number in range(at_once)
    ]
    for process in running:
        process.wait()
    subprocess.run(["sync", *folder.iterdir()], check=True)
    seconds = time.monotonic() - begun
    shutil.rmtree(folder)
    return seconds
