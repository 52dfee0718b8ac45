"""`downloader size`: how many processes, and how large a store, a load needs.

The coefficients are measured by `bench/`; docs/performance.md has the runs and a worked example.
"""

from __future__ import annotations

import math
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.cli.options import Json, parse_bytes
from downloader.cli.output import write_result

JOB_MS, BULK_JOB_MS = 1.2, 0.7
"""CPU of a job with a file of 10 KiB, from the POST to the callback by HTTP: submitted alone, and in bulk."""

FIRST_MB_MS, NEXT_MB_MS, TLS_MB_MS = 2.7, 1.7, 0.5
"""CPU of the first megabyte of a file and of each further one, and what TLS adds to each."""

TLS_CONNECTION_MS = 0.9
"""Additional CPU of a new HTTPS connection, compared with a kept one."""

STORE_MS, RECORD_BYTES = 0.26, 400
"""The store's CPU per job, and its memory for a job that waits or has ended."""

KEPT_S, BACKLOG_S = 3 * 3600, 3600
"""Time until a job's file and record are deleted, by default; and how long all jobs of the peak may wait."""

NEW_JOBS_SHARE = 0.4
"""The share of the store's memory that new jobs may fill."""

USED_SHARE = 0.6
"""Share of a core that a process may use at the peak; the rest is a reserve."""

Positive = Annotated[float, Parameter(validator=Number(gt=0))]


def size(
    *,
    rate: Positive,
    size: str = "100KB",
    https: bool = False,
    bulk: bool = False,
    peak: Annotated[float, Parameter(validator=Number(gte=1))] = 3.0,
    seconds: Positive = 0.5,
    json_: Json = False,
) -> None:
    """Estimate processes, store, disk and network for a load.

    One download in ten over HTTPS is assumed to need a new connection. Measure
    your own load with the bench before you order machines.

    For example:
      downloader size --rate 231 --size 100KB --https

    Args:
        rate: Jobs per second, the mean of a day.
        size: Mean size of a file, such as 100KB or 2MiB.
        https: The files come over HTTPS.
        bulk: The jobs come by POST /downloads, not one by one.
        peak: Jobs per second at the peak, as a multiple of the mean.
        seconds: How long a download takes.
        json_: Print JSON.
    """
    megabytes = parse_bytes(size, "--size") / 1e6
    cpu_ms = BULK_JOB_MS if bulk else JOB_MS
    cpu_ms += FIRST_MB_MS * min(megabytes, 1) + NEXT_MB_MS * max(0.0, megabytes - 1)
    if https:
        cpu_ms += TLS_MB_MS * megabytes + TLS_CONNECTION_MS / 10
    highest = rate * peak
    records = rate * KEPT_S + highest * BACKLOG_S
    needs = {
        "cpu_ms_per_job": round(cpu_ms, 2),
        "processes": math.ceil(highest * cpu_ms / 1000 / USED_SHARE),
        "store_cores": round(highest * STORE_MS / 1000, 2),
        "store_gb": round(records * RECORD_BYTES / NEW_JOBS_SHARE / 1e9, 1),
        "disk_gb": round(rate * KEPT_S * megabytes / 1e3),
        "network_mbit_per_s": round(highest * megabytes * 8),
        "downloads_at_once": math.ceil(highest * seconds),
    }
    rows = {
        "CPU of a job": "{cpu_ms_per_job} ms",
        "processes": "{processes}, each on a core of its own, and one more for the loss of a machine",
        "store": "{store_cores} cores, maxmemory {store_gb} GB",
        "disk": "{disk_gb} GB for the files of three hours",
        "network": "{network_mbit_per_s} Mbit/s in",
        "at once": "{downloads_at_once} downloads; the limits of the aggregations must allow them",
    }
    title = f"{rate:g} jobs/s, {highest:g} at the peak"
    write_result(needs, title, ((name, text.format(**needs)) for name, text in rows.items()), as_json=json_)
