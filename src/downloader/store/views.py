"""What clients see of jobs, aggregations and destinations, made from the scripts' answers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from downloader.model import ErrorName, JobSpec, Kind, State, StateName, callback_queue
from downloader.net import redact_url
from downloader.store import ended
from downloader.store.codec import Unseal, fields, moment_in, number_in, outcome_in
from downloader.store.values import Backlog, JobView, Load, Waiting
from downloader.wire import (
    Aggregation,
    AggregationLoad,
    FailedDestination,
    Failure,
    FailureGroup,
    ListedJob,
    Task,
    WaitingDestination,
    moment,
)

_TAGS = '"tags":['
"""Text in the JSON of each job with tags."""

_GROUP = '"group":"'
"""Text in the JSON of each job that belongs to a group of jobs."""

_COMPLETES = '"completes":"'
"""Text in the JSON of the job that carries the callback of a group of jobs."""


def listed_jobs(
    flats: Iterable[Sequence[Any]], matches: Callable[[ListedJob], bool], unseal: Unseal
) -> Iterator[ListedJob]:
    """The jobs from rows of `list.lua` that match; `matches` is asked before the URL is known."""
    for flat in flats:
        row = fields(flat)
        if "ended" in row:
            row = _listed_row(row["id"], row["ended"], unseal)
        if _COMPLETES in row["spec"] and row["callback"] != State.FAILED:
            continue
        job = _listed_job(row)
        if _TAGS in row["spec"] or _GROUP in row["spec"]:
            spec = JobSpec.from_json(job.id, row["spec"], unseal)
            job = job.model_copy(update={"tags": spec.tags, "group": spec.group})
        if matches(job):
            spec = JobSpec.from_json(job.id, row["spec"], unseal)
            yield job.model_copy(update={"url": redact_url(spec.url)})


def _listed_row(job_id: str, record: str, unseal: Unseal) -> dict[str, str]:
    """A row of `list.lua` from the record of an ended job."""
    job = ended.parse(record)
    spec = JobSpec.from_json(job_id, job.spec, unseal)
    return {
        "id": job_id,
        "queue": spec.aggr_id,
        "state": job.download["state"],
        "callback": job.callback.get("state", ""),
        "finished": job.download["finished"],
        "destination": callback_queue(*spec.callback(success=True)) if job.callback else "",
        "spec": job.spec,
        "failed": "",
        "error": job.download.get("error", ""),
        "code": job.download["code"],
    }


def _listed_job(row: Mapping[str, str]) -> ListedJob:
    return ListedJob(
        id=row["id"],
        aggr_id=row["queue"],
        state=cast("StateName", row["state"]),
        callback=cast("StateName", row["callback"]) or None,
        finished_at=moment_in(row["finished"]),
        failed_at=moment_in(row["failed"]),
        error=row["error"],
        error_code=cast("ErrorName", row["code"]),
        destination=row["destination"],
    )


def failures(kind: Kind, flat: Sequence[Any]) -> FailureGroup:
    """Failed jobs with the same reason, from a row of `tally.lua`."""
    row = fields(flat)
    return FailureGroup(
        kind=kind.value,
        aggr_id=row["queue"],
        error_code=row["code"],
        error=row["error"],
        jobs=row["jobs"],
        newest_at=moment_in(row["newest"]),
        newest=row["id"],
    )


def job_view(job_id: str, flat: Sequence[Any], unseal: Unseal) -> JobView:
    """A job from the answer of `get.lua`."""
    row = fields(flat)
    if "ended" in row:
        job = ended.parse(row["ended"])
        spec, download, callback = JobSpec.from_json(job_id, job.spec, unseal), job.download, job.callback
    else:
        spec = JobSpec.from_json(job_id, row["spec"], unseal)
        download, callback = fields(row["download"]), fields(row["callback"])
    return JobView(
        spec=spec,
        download=_task(download, due_ms=str(max(spec.created_ms, spec.not_before))),
        outcome=outcome_in(download, unseal) if "code" in download else None,
        callback=_task(callback, due_ms="") if "state" in callback else None,
        kept_until=moment_in(row["keep_until"]),
    )


def _task(row: Mapping[str, str], *, due_ms: str) -> Task:
    """A task from a hash; `due_ms` is the time at which the task was due first."""
    state = row.get("state", State.PENDING)
    log = [line.partition(" ") for line in row.get("log", "").splitlines()]
    return Task(
        state=cast("StateName", state),
        attempts=number_in(row.get("attempts")),
        deliveries=number_in(row.get("deliveries")),
        crashes=number_in(row.get("crashes")),
        instance=row.get("owner") or row.get("settled", "").partition(" ")[2],
        due_at=moment_in(row.get("due") or due_ms) if state == State.PENDING else None,
        started_at=moment_in(row.get("started", "")),
        finished_at=moment_in(row.get("finished", "")),
        errors=[Failure(at=moment_in(at), error=error) for at, _, error in log],
    )


def load(answers: Iterable[Sequence[Any]], count: int) -> Load:
    """Merge the answers of `busiest.lua` from all shards; at most `count` aggregations."""
    shards = [fields(answer) for answer in answers]
    aggregations = [_aggregation(fields(flat)) for shard in shards for flat in shard["aggregations"]]
    aggregations.sort(key=lambda load: (-load.pending - load.in_flight, load.aggr_id))
    return Load(
        aggregations=aggregations[:count],
        paused=any(shard.get("paused") for shard in shards),
        total=sum(shard["total"] for shard in shards),
        downloads=sum(shard["downloads"] for shard in shards),
        callbacks=sum(shard["callbacks"] for shard in shards),
    )


def _aggregation(row: Mapping[str, str]) -> AggregationLoad:
    pending, running = counts(row["score"])
    return AggregationLoad(
        aggr_id=row["name"],
        pending=pending,
        in_flight=running,
        limit=number_in(row["limit"]) or 1,
        paused=row["paused"] == "1",
        cooling_until=moment_in(row["cooling"]),
        pace=_number(row.get("pace", "")),
    )


def aggregation(flat: Sequence[Any]) -> Aggregation:
    """An aggregation from a row of `describe_aggregation` in `_lib.lua`."""
    row = fields(flat)
    pending, running = counts(row["score"])
    values, overridden = fields(row["values"]), fields(row["asked"])
    return Aggregation(
        aggr_id=row["name"],
        limit=number_in(values["limit"]) or 1,
        rate=_number(values["rate"]),
        delay=_number(values["delay"]),
        overridden={name: _number(value) for name, value in overridden.items()},
        proxy=redact_url(row["proxy"]) if row["proxy"] else "",
        paused=row["paused"] == "1",
        in_flight=running,
        pending=pending,
        cooling_until=moment_in(row["cooling"]),
        cooling_reason=row["why"],
        pace=_number(row["pace"]),
        next_due_at=moment_in(row["due"]),
    )


def counts(score: str | float) -> tuple[int, int]:
    """Numbers of pending and running tasks of a queue, from the score in `queues`."""
    tasks, _, running = f"{float(score):.6f}".partition(".")
    return int(tasks) - int(running), int(running)


def _number(text: str) -> float | None:
    """The number in a text, an integer if written without a point; `None` for an empty text."""
    return (int(text) if text.isdecimal() else float(text)) if text else None


def backlog(answers: Iterable[Sequence[Any]], count: int) -> Backlog:
    """Merge the answers of `backlog.lua` from all shards; at most `count` destinations."""
    shards = [fields(answer) for answer in answers]
    destinations: dict[str, WaitingDestination] = {}
    for flat in (flat for shard in shards for flat in shard["destinations"]):
        load = _destination(fields(flat))
        in_other_shards = destinations.get(load.destination)
        destinations[load.destination] = _sum(load, in_other_shards) if in_other_shards else load
    largest = sorted(
        destinations.values(), key=lambda load: (-load.pending - load.in_flight, load.destination)
    )
    failed = Counter[str]()
    for shard in shards:
        names = iter(shard["failed_to"])
        for name, number in zip(names, names, strict=True):
            failed[name] += number
    return Backlog(
        now_ms=max(shard["now"] for shard in shards),
        downloads=_waiting([fields(shard[Kind.DOWNLOAD]) for shard in shards]),
        oldest_due_ms=min((int(shard["oldest"]) for shard in shards if shard.get("oldest")), default=None),
        callbacks=_waiting([fields(shard[Kind.CALLBACK]) for shard in shards]),
        failed_callbacks=sum(shard["failed"] for shard in shards),
        destinations=largest[:count],
        failed_to=[
            FailedDestination(destination=name, failed=number)
            for name, number in sorted(failed.items(), key=lambda item: (-item[1], item[0]))[:count]
        ],
        # A sealed group is in all shards, any other in those that have jobs of it.
        job_groups=max(shard["job_groups"] for shard in shards),
        sealed_groups=max(shard["sealed"] for shard in shards),
    )


def _waiting(shards: Sequence[Mapping[str, Any]]) -> Waiting:
    return Waiting(
        pending=sum(shard["pending"] for shard in shards),
        queues=sum(shard["queues"] for shard in shards),
        next_ms=min((int(float(shard["next"])) for shard in shards if shard["next"] != "0"), default=None),
    )


def _destination(row: Mapping[str, Any]) -> WaitingDestination:
    return WaitingDestination(
        destination=row["name"],
        pending=row["pending"],
        in_flight=row["running"],
        limit=number_in(row["limit"]) or 1,
        due_at=moment(int(float(row["due"]))),
    )


def _sum(first: WaitingDestination, second: WaitingDestination) -> WaitingDestination:
    """The load of a destination in two shards; each shard has a separate limit."""
    return WaitingDestination(
        destination=first.destination,
        pending=first.pending + second.pending,
        in_flight=first.in_flight + second.in_flight,
        limit=first.limit + second.limit,
        due_at=min((due for due in (first.due_at, second.due_at) if due), default=None),
    )
