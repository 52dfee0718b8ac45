"""The order of a run: versions take turns, and the reference runs between them.

A machine's speed drifts by half within minutes, so what is compared runs close together: each version's
result is divided by the mean of the reference's before and after. The medians of these ratios are shown.
In each round S2 with one process is the measure of the scenarios whose target is a ratio to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import callbacks, end_to_end, fetch, full_store, idle, intake, large_files
from bench.check import FILE_BYTES
from bench.end_to_end import Files
from bench.idle import Fleet
from bench.origin import FEED
from bench.result import Result, Setup
from bench.service import Build

CLIENTS = {"S2": "client", "S2b": "stream"}
SCENARIOS = (
    "S1",
    *CLIENTS,
    "S2c",
    "S2d",
    "S2e",
    "S3",
    "S4",
    "S5",
    "S6",
    "S8",
    "S9",
    "S10",
    "S11",
    "S12",
    "S13",
    "S14",
)
"""S7 comes with S3: it is the memory of the jobs that S3 has left pending."""

FILES = {
    "S2c": Files(size=FEED, fewer=4, tls=True),
    "S2d-10KiB": Files(size=FILE_BYTES, fewer=4),
    "S2d-100KB": Files(size=100_000, fewer=4),
    "S2d-1MiB": Files(size=2**20, fewer=20),
    "S2d-10MiB": Files(size=10 * 2**20, fewer=200),
    "S2e-10KiB-kept": Files(size=FILE_BYTES, fewer=4, tls=True),
    "S2e-10KiB-new": Files(size=FILE_BYTES, fewer=4, tls=True, close=True),
    "S2e-100KB-kept": Files(size=100_000, fewer=4, tls=True),
}
"""The variants of S2; the part before the hyphen is the scenario."""

_FEED_OF_S2, _FEED_MS_A_MB = 1.5, 0.5
"""What a job of S2c may cost: so many times the CPU of S2, and so much for each MB."""

REFERENCE, NET_FLOOR = "floor", "net_floor"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run."""

    scenarios: frozenset[str]
    variants: Collection[str]
    """Of S2, from `FILES`."""
    builds: Sequence[Build]
    rounds: int
    processes: Sequence[int]
    jobs: int
    aggregations: int
    samples: int
    """Of S1."""
    large_bytes: int
    """Of a file of S6."""
    waiting: int
    """Downloads in flight in S8."""
    at_limit: int
    """Aggregations of S5."""
    watched_s: float
    """How long S5 and S8 watch."""
    delayed_s: int
    """How long S9 has work."""
    rates: Sequence[int]
    """Jobs a second of S11."""
    steady_s: int
    """How long S11 sends."""
    idle_jobs: int
    """Jobs of S12; enough to last longer than any processor's pause between two looks."""
    fleets: Sequence[Fleet]
    """Of S12."""
    limited: int
    """Jobs of S13."""
    limits: Sequence[int]
    """The limits of the aggregation of S13."""
    fetched: int
    """Files of S14."""
    largest_store: int
    """Most jobs pending in S4."""


def run(setup: Setup, plan: Plan, *, say: Say) -> Iterator[Result]:
    """Every scenario of the plan; those of the service once a round and version."""
    for number in range(plan.rounds):
        say(f"round {number + 1} of {plan.rounds}")
        drowned: dict[str, Result] = {}
        for result in _one_round(setup, plan, say):
            if (result.name, result.processes) == ("S2", 1):
                drowned[result.build] = result
            yield _beside_s2(result, drowned.get(result.build))
    if "S4" in plan.scenarios:
        say(f"S4: up to {plan.largest_store} jobs pending ...")
        yield from full_store.s4(setup, plan.builds, largest=plan.largest_store)


def _one_round(setup: Setup, plan: Plan, say: Say) -> Iterator[Result]:
    if "S1" in plan.scenarios:
        for build in plan.builds:
            say(f"S1 {build.label}: {plan.samples} samples ...")
            yield end_to_end.s1(setup, build, samples=plan.samples)
    yield from _beside_reference(setup, plan, say)
    yield from _variants(setup, plan, say)
    for build in plan.builds:
        yield from _one_build(setup, plan, build, say)


def _variants(setup: Setup, plan: Plan, say: Say) -> Iterator[Result]:
    for name, files in FILES.items():
        if name in plan.variants and name.partition("-")[0] in plan.scenarios:
            for build in plan.builds:
                say(f"{name} {build.label}: {max(1, plan.jobs // files.fewer)} jobs ...")
                yield end_to_end.s2_files(
                    setup, build, name=name, files=files, jobs=plan.jobs, aggregations=plan.aggregations
                )
    for at_once in (1, 4) if "S6" in plan.scenarios else ():
        for build in plan.builds:
            say(f"S6 {build.label}: {at_once} files of {plan.large_bytes >> 20} MiB at once ...")
            yield large_files.s6(setup, build, size=plan.large_bytes, at_once=at_once)


def _one_build(setup: Setup, plan: Plan, build: Build, say: Say) -> Iterator[Result]:
    if "S3" in plan.scenarios:
        say(f"S3 {build.label}: intake alone ...")
        yield from intake.s3_s7(setup, build, jobs=plan.jobs, aggregations=plan.aggregations)
    if "S5" in plan.scenarios:
        say(f"S5 {build.label}: {plan.at_limit} aggregations at their limit ...")
        yield idle.s5(setup, build, aggregations=plan.at_limit, watched_s=plan.watched_s)
    if "S8" in plan.scenarios:
        say(f"S8 {build.label}: {plan.waiting} downloads from a silent origin ...")
        yield idle.s8(setup, build, downloads=plan.waiting, watched_s=plan.watched_s)
    if "S9" in plan.scenarios:
        say(f"S9 {build.label}: one, two and four processes, {plan.delayed_s} s each ...")
        yield from end_to_end.s9(setup, build, seconds=plan.delayed_s, aggregations=plan.aggregations)
    yield from _queue(setup, plan, build, say)
    if "S10" in plan.scenarios:
        say(f"S10-http {build.label}: {plan.jobs} callbacks ...")
        yield callbacks.s10_http(setup, build, jobs=plan.jobs)
        say(f"S10-batches {build.label}: {plan.jobs} callbacks ...")
        if batches := callbacks.s10_batches(setup, build, jobs=plan.jobs):
            yield batches
        say(f"S10 {build.label}: {plan.jobs} callbacks to Kafka ...")
        yield callbacks.s10(setup, build, jobs=plan.jobs)
    if "S14" in plan.scenarios:
        say(f"S14 {build.label}: fetch of {plan.fetched} files ...")
        yield fetch.s14(setup, build, files=plan.fetched)


def _queue(setup: Setup, plan: Plan, build: Build, say: Say) -> Iterator[Result]:
    """What shows the cost of the queue: jobs that come one by one, and limits."""
    if "S11" in plan.scenarios:
        for rate in plan.rates:
            say(f"S11 {build.label}: {rate} jobs/s ...")
            yield end_to_end.s11(
                setup, build, rate=rate, seconds=plan.steady_s, aggregations=plan.aggregations
            )
    if "S12" in plan.scenarios:
        for fleet in plan.fleets:
            say(f"S12 {build.label}: {fleet.processors} idle processors ...")
            if result := idle.s12(setup, build, fleet, jobs=plan.idle_jobs):
                yield result
    if "S13" in plan.scenarios:
        for limit in plan.limits:
            say(f"S13 {build.label}: one aggregation of limit {limit} ...")
            result = end_to_end.s2(
                setup, build, name=f"S13 {limit}", by="client", jobs=plan.limited, aggregations=1, limit=limit
            )
            assert result is not None, "each version takes single POSTs"
            yield result


def _beside_reference(setup: Setup, plan: Plan, say: Say) -> Iterator[Result]:
    """S2 and S2b with one reference run before, between and after."""
    legs = [(name, count) for count in plan.processes for name in CLIENTS if name in plan.scenarios]
    if not legs:
        return
    size: dict[str, Any] = {"jobs": plan.jobs, "aggregations": plan.aggregations}
    say(f"reference: {plan.jobs} jobs ...")
    before = end_to_end.floor(setup, REFERENCE, **size)
    yield before
    ran = [end_to_end.floor(setup, NET_FLOOR, **size)]
    for name, processes in legs:
        for build in plan.builds:
            say(f"{name} {build.label}: {plan.jobs} jobs, processes: {processes} ...")
            result = end_to_end.s2(setup, build, name=name, by=CLIENTS[name], processes=processes, **size)
            if result is None and build is plan.builds[-1]:
                yield Result(name=name, build=build.label, measures={}, faults=["there is no such route"])
            elif result is not None:
                ran.append(result)
        say("reference again ...")
        after = end_to_end.floor(setup, REFERENCE, **size)
        yield after
        yield from (_with_ratios(result, before, after) for result in ran)
        before, ran = after, []


def _with_ratios(result: Result, before: Result, after: Result) -> Result:
    """The result with its share of what the reference needed and did around it."""
    ratios = {
        ratio: 2 * result.measures[measure] / (before.measures[measure] + after.measures[measure])
        for ratio, measure in (
            ("cpu_of_reference", "cpu_ms_per_job"),
            ("jobs_of_reference", "jobs_per_s"),
        )
    }
    return replace(result, measures={**result.measures, **ratios})


def _beside_s2(result: Result, s2: Result | None) -> Result:
    """The result with what its target compares with S2 of its round, with one process of the same version."""
    if s2 is None or result is s2:
        return result
    one = s2.measures["cpu_ms_per_job"]
    measures = result.measures
    shares: dict[str, float] = {}
    if result.name == "S2":
        shares["jobs_of_s2"] = measures["jobs_per_s"] / s2.measures["jobs_per_s"]
    elif result.name == "S2c":
        budget_ms = _FEED_OF_S2 * one + _FEED_MS_A_MB * measures["mb_per_job"]
        shares["cpu_of_budget"] = measures["cpu_ms_per_job"] / budget_ms
    elif result.name.startswith(("S2d", "S11")):
        shares["cpu_of_s2"] = measures["cpu_ms_per_job"] / one
    elif result.name.startswith("S2e"):
        shares["cpu_ms_more_than_s2"] = measures["cpu_ms_per_job"] - one
    return replace(result, measures={**measures, **shares})
