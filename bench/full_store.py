"""S4: what a lease and a completion cost with few and with very many jobs pending."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.processes import helper
from bench.result import Result, Setup
from bench.service import Build

PENDING = (1_000, 100_000, 1_000_000)
AGGREGATIONS = (1, 1_000, 100_000)
COUNT = 5_000
"""Jobs leased and completed in each store."""


def s4(setup: Setup, builds: Sequence[Build], *, largest: int) -> Iterator[Result]:
    """A store of its own for each combination and version; the cost beside that of the smallest, first one.

    Versions whose bench has no such load are left out.
    """
    smallest: dict[str, float] = {}
    for pending in [number for number in PENDING if number <= largest] or [largest]:
        for aggregations in [number for number in AGGREGATIONS if number <= pending]:
            for build in builds:
                with helper("store", setup.new_folder()) as store:
                    count = min(COUNT, 5 * pending)
                    used = build.answer_of("store_load", store.first, pending, aggregations, count)
                if used is None:
                    continue
                cpu_us, store_us = (1e6 * used[name] / count for name in ("cpu_s", "store_cpu_s"))
                yield Result(
                    name=f"S4 {pending:,} in {aggregations:,}",
                    build=build.label,
                    measures={
                        "cpu_us_per_job": cpu_us,
                        "store_cpu_us_per_job": store_us,
                        "of_smallest": (cpu_us + store_us)
                        / smallest.setdefault(build.label, cpu_us + store_us),
                    },
                )
