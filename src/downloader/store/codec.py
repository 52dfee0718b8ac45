"""Conversion of values to arguments of the scripts, and of the scripts' answers to values. Pure.

Numbers that a script stores are sent as strings. States and error codes that are unknown come from a newer
version; they stay plain strings and are passed on.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar, cast

from downloader.model import (
    ErrorCode,
    ErrorName,
    FileFacts,
    JobSpec,
    Kind,
    Lease,
    Outcome,
    ResponseMetadata,
    State,
    StateName,
    Verdict,
    callback_queue,
)
from downloader.net import host_of, redact_url
from downloader.phases import Phases
from downloader.store import ended
from downloader.store.values import (
    Backlog,
    CallbackPlan,
    JobView,
    Load,
    Reapable,
    Settlement,
    Submission,
    Waiting,
)
from downloader.wire import (
    Aggregation,
    AggregationLoad,
    FailedDestination,
    Failure,
    FailureGroup,
    Group,
    ListedJob,
    Task,
    WaitingDestination,
    moment,
)

Seal = Callable[[str], str]
"""Encrypts a text that may contain a secret."""

# Arguments


def given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not `None`; the scripts take the others as absent."""
    return {name: value for name, value in arguments.items() if value is not None}


def submit(item: Submission, permitted: str, seal: Seal | None, *, with_host: bool = False) -> dict[str, Any]:
    """Arguments for a job; `permitted` is the proxy that the aggregation may have, if not every proxy.

    `with_host`: store the host of the URL for the scripts.
    """
    spec = replace(item.spec, host=host_of(item.spec.url)) if with_host else item.spec
    return given(
        id=spec.id,
        queue=spec.aggr_id,
        limit=str(spec.aggr_limit),
        rate=None if spec.aggr_rate is None else str(spec.aggr_rate),
        delay=None if spec.aggr_delay is None else str(spec.aggr_delay),
        due=spec.not_before,
        priority=spec.priority or None,
        proxy=spec.aggr_proxy,
        spec=spec.to_json(seal),
        idempotency=item.idempotency_key,
        values=item.value_digest,
        body=item.body_digest,
        permitted=permitted if item.permits else None,
        token=spec.token or None,
        quota=item.quota,
        job_group=spec.group or None,
    )


def script_of(settlement: Settlement) -> str:
    """The name of the transition for a settlement."""
    match settlement.verdict:
        case Verdict.RELEASE:
            return "release"
        case Verdict.RETRY | Verdict.THROTTLED:
            return "retry_later"
        case _:
            return "finish" if settlement.lease.kind is Kind.DOWNLOAD else "close_callback"


def settle(script: str, settlement: Settlement, seal: Seal | None) -> dict[str, Any]:
    """Arguments of the transition `script`, which is `script_of(settlement)`."""
    match script:
        case "release":
            return {
                **leased(settlement.lease),
                "error": settlement.error,
                "delay_ms": ms(settlement.delay_s),
            }
        case "retry_later":
            return _retry_later(settlement, seal)
        case "finish":
            return _finish(settlement, seal)
        case _:
            return _close_callback(settlement, seal)


def leased(lease: Lease) -> dict[str, Any]:
    """The arguments that name a lease."""
    return {"id": lease.spec.id, "generation": str(lease.generation)}


def _retry_later(settlement: Settlement, seal: Seal | None) -> dict[str, Any]:
    outcome = settlement.outcome
    return {
        **leased(settlement.lease),
        "error": settlement.error,
        "code": outcome.error_code if outcome else "",
        "status": str(outcome.response_code if outcome else 0),
        "attempts": "0" if settlement.verdict is Verdict.THROTTLED else "1",
        "delay_ms": ms(settlement.delay_s),
        **given(phases=_phases(outcome, seal), slow=settlement.slow or None),
        **_cooldown(outcome),
    }


def _finish(settlement: Settlement, seal: Seal | None) -> dict[str, Any]:
    outcome = settlement.outcome
    assert outcome is not None, "a download that ended has an outcome"
    file = outcome.file
    # A poisoned job has no attempt under this lease, and the attempt that a deadline cuts off does not count.
    counts = outcome.error_code not in (ErrorCode.POISON, ErrorCode.DEADLINE)
    return {
        **_ended(settlement),
        **callback(settlement.callback),
        **_of_job(settlement.lease.spec),
        "attempts": "1" if counts else "0",
        "code": outcome.error_code,
        "status": str(outcome.response_code),
        "size": str(file.size),
        "sha256": file.sha256,
        "mime": file.mime_type,
        "image": file.image_size,
        **given(
            record=None if settlement.callback else _record(settlement, outcome, seal),
            more=_more(outcome, seal) or None,
            phases=_phases(outcome, seal),
        ),
        **_cooldown(outcome),
    }


def _more(outcome: Outcome, seal: Seal | None) -> list[str]:
    """Names and values of the fields that few jobs have."""
    response = outcome.response
    final_url = seal(response.final_url) if seal and response.final_url else response.final_url
    values = {
        "filename": outcome.file.filename,
        "etag": response.etag,
        "last_modified": response.last_modified,
        "content_type": response.content_type,
        "final_url": final_url,
        "not_modified": "1" if response.not_modified else "",
    }
    return [text for name, value in values.items() if value for text in (name, value)]


def _phases(outcome: Outcome | None, seal: Seal | None) -> str | None:
    return outcome.phases.to_text(seal) if outcome and outcome.phases else None


def _close_callback(settlement: Settlement, seal: Seal | None) -> dict[str, Any]:
    assert settlement.callback is not None, "a callback that ended has a queue"
    return {
        **_ended(settlement),
        "limit": str(settlement.callback.limit),
        **given(
            job_group=settlement.lease.spec.group or None,
            slow=settlement.slow or None,
            record=_record(settlement, settlement.lease.result, seal),
        ),
    }


def _record(settlement: Settlement, outcome: Outcome | None, seal: Seal | None) -> str | None:
    """The argument `record` if the job ends with this success; `outcome` is the download's.

    A cancelled download counts as ended, because it cannot be retried.
    """
    if outcome is None or settlement.verdict is not Verdict.SUCCEEDED or settlement.lease.spec.damage:
        return None
    if outcome.verdict is not Verdict.SUCCEEDED and outcome.error_code != ErrorCode.CANCELLED:
        return None
    return ended.record(settlement.lease.spec, outcome, seal)


def _ended(settlement: Settlement) -> dict[str, Any]:
    """Arguments for a task of either kind that reaches a terminal state."""
    return {
        **leased(settlement.lease),
        "error": settlement.error,
        "state": State.SUCCEEDED if settlement.verdict is Verdict.SUCCEEDED else State.FAILED,
        "keep_ms": ms(settlement.keep_s),
    }


def callback(plan: CallbackPlan | None) -> dict[str, str]:
    """The arguments `callback`, `limit` and `token`; an empty queue stands for no callback."""
    if plan is None:
        return {"callback": "", "limit": "0"}
    return given(callback=plan.queue, limit=str(plan.limit), token=plan.token or None)


def cancelled(spec: JobSpec, plan: CallbackPlan | None, seal: Seal | None) -> dict[str, str]:
    """The arguments about the end of a job that a client cancels."""
    kept = plan is None and not spec.sealed and not spec.damage
    record = ended.record(spec, Outcome(verdict=Verdict.FAILED), seal) if kept else None
    return {**callback(plan), **_of_job(spec), **given(record=record)}


def _of_job(spec: JobSpec) -> dict[str, str]:
    """The arguments `counted` and `job_group`."""
    return given(counted=spec.token if spec.counted else None, job_group=spec.group or None)


def quota_of_group(token: str, quota: Mapping[str, int] | None) -> dict[str, Any]:
    """The arguments `quota` and `token_of_quota`, for the group that a token may begin."""
    return {} if quota is None else {"quota": quota, "token_of_quota": token}


def ms(seconds: float) -> int:
    """Whole milliseconds."""
    return int(seconds * 1000)


def types(names: Iterable[str] | None) -> str | None:
    """Types of callbacks in the form that the scripts use: `,http,kafka,`; `None` for all types."""
    return None if names is None else f",{','.join(sorted(names))},"


def _cooldown(outcome: Outcome | None) -> dict[str, Any]:
    """The arguments of `cool_down` in `_lib.lua`."""
    if outcome is None or outcome.cooldown is None:
        return {}
    cooldown = outcome.cooldown
    return given(
        cool_ms=ms(cooldown.seconds),
        asked=cooldown.asked,
        host_too=cooldown.of_host,
        had=cooldown.had,
        host_had=cooldown.host_had,
    )


# Answers

E = TypeVar("E", bound=StrEnum)

Unseal = Callable[[str], str | None]
"""Decrypts the secret fields of a job, see `JobSpec.from_json`."""

_VERDICTS: Mapping[str, Verdict] = {
    "": Verdict.RETRY,
    State.PENDING: Verdict.RETRY,
    State.RUNNING: Verdict.RETRY,
    State.SUCCEEDED: Verdict.SUCCEEDED,
}
"""Verdict of a download's last attempt, by the download's state; `FAILED` for every other state."""


def fields(flat: Sequence[Any]) -> dict[str, Any]:
    """A mapping from a flat list of names and values, as returned by the scripts and HGETALL."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def lease(kind: Kind, flat: Sequence[Any], unseal: Unseal) -> Lease:
    """A lease from a row of `lease.lua`."""
    row = fields(flat)
    result = fields(row["result"]) or (_LOST if kind is Kind.CALLBACK else {})
    spec = JobSpec.from_json(row["id"], row["spec"], unseal)
    if spec.damage and kind is Kind.DOWNLOAD:
        spec = replace(spec, aggr_id=row["queue"])
    return Lease(
        kind=kind,
        spec=spec,
        queue=row["queue"],
        generation=int(row["generation"]),
        attempts=_int(row["attempts"]),
        crashes=_int(row["crashes"]),
        throttled=_int(row["throttled"]),
        limit=_int(row["limit"]) or 1,
        proxy=row["proxy"],
        token=row["token"],
        result=_outcome(result, unseal) if result else None,
        result_attempts=_int(result.get("attempts")),
        result_retry=result.get("retried", ""),
        proven=row["proven"] == "1",
        failing=row["failing"] == "1",
        waited_s=row["waited_ms"] / 1000 if row["waited_ms"] >= 0 else None,
        age_s=row["age_ms"] / 1000,
    )


_LOST: Mapping[str, str] = {
    "state": State.FAILED,
    "code": ErrorCode.STORAGE,
    "error": "the result of the download is lost: its record was deleted or overwritten in the store",
}
"""Result of a download without a record."""


_SHA256 = re.compile("[0-9a-f]{64}")


def reapable(flat: Sequence[Any], unseal: Unseal) -> Reapable:
    """A job from a row of `reap.lua`."""
    row = fields(flat)
    spec, has_file, digests = row.get("spec", ""), row.get("file") == "1", row.get("digests", "")
    if "ended" in row:
        job = ended.parse(row["ended"])
        unclear = _int(job.download["deliveries"]) > _int(job.download["attempts"])
        has_file = job.download["state"] == State.SUCCEEDED or unclear
        spec, digests = job.spec, job.download.get("digests", "")
    return Reapable(
        spec=JobSpec.from_json(row["id"], spec, unseal), has_file=has_file, digests=_SHA256.findall(digests)
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
        finished_at=_moment(row["finished"]),
        failed_at=_moment(row["failed"]),
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
        newest_at=_moment(row["newest"]),
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
        outcome=_outcome(download, unseal) if "code" in download else None,
        callback=_task(callback, due_ms="") if "state" in callback else None,
        kept_until=_moment(row["keep_until"]),
    )


_GROUP_COUNTS = ("jobs", "succeeded", "failed", "cancelled", "unfinished")


def group(name: str, home: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> Group:
    """A group of jobs from the answers of `group.lua`; `home` is that of the shard of the name."""
    counts = {count: sum(_int(part.get(count)) for part in parts) for count in _GROUP_COUNTS}
    first = [time for part in parts if (time := _int(part.get("first_at")))]
    return Group(
        name=name,
        state="complete" if "completed" in home else "sealed" if "sealed" in home else "open",
        first_at=moment(min(first, default=None)),
        last_at=moment(max(_int(part.get("last_at")) for part in parts) or None),
        completed_at=_moment(home.get("completed", "")),
        callback_id=home.get("id", "") if "completed" in home else "",
        callback_state=home.get("callback_state", ""),
        **counts,
    )


def group_counts(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, int]:
    """The argument `counts` of `complete.lua`."""
    counts = {count: sum(_int(part.get(count)) for part in parts) for count in _GROUP_COUNTS[:-1]}
    first = [time for part in parts if (time := _int(part.get("first_at")))]
    last = max(_int(part.get("last_at")) for part in parts)
    return {**counts, "first_at": min(first, default=0), "last_at": last}


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
        limit=_int(row["limit"]) or 1,
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


def counts(score: str | float) -> tuple[int, int]:
    """Numbers of pending and running tasks of a queue, from the score in `queues`."""
    tasks, _, running = f"{float(score):.6f}".partition(".")
    return int(tasks) - int(running), int(running)


def _aggregation(row: Mapping[str, str]) -> AggregationLoad:
    pending, running = counts(row["score"])
    return AggregationLoad(
        aggr_id=row["name"],
        pending=pending,
        in_flight=running,
        limit=_int(row["limit"]) or 1,
        paused=row["paused"] == "1",
        cooling_until=_moment(row["cooling"]),
        pace=_number(row.get("pace", "")),
    )


def aggregation(flat: Sequence[Any]) -> Aggregation:
    """An aggregation from a row of `describe_aggregation` in `_lib.lua`."""
    row = fields(flat)
    pending, running = counts(row["score"])
    values, overridden = fields(row["values"]), fields(row["asked"])
    return Aggregation(
        aggr_id=row["name"],
        limit=_int(values["limit"]) or 1,
        rate=_number(values["rate"]),
        delay=_number(values["delay"]),
        overridden={name: _number(value) for name, value in overridden.items()},
        proxy=redact_url(row["proxy"]) if row["proxy"] else "",
        paused=row["paused"] == "1",
        in_flight=running,
        pending=pending,
        cooling_until=_moment(row["cooling"]),
        cooling_reason=row["why"],
        pace=_number(row["pace"]),
        next_due_at=_moment(row["due"]),
    )


def _moment(ms: str) -> datetime | None:
    try:
        return moment(int(ms)) if ms else None
    except (ValueError, OverflowError):  # damaged in the store
        return None


def _number(text: str) -> float | None:
    """The number in a text, an integer if written without a point; `None` for an empty text."""
    return (int(text) if text.isdecimal() else float(text)) if text else None


def _int(text: str | None) -> int:
    """The number in a text; 0 for no text or a damaged one."""
    try:
        return int(text or 0)
    except ValueError:
        return 0


def _outcome(stored: Mapping[str, str], unseal: Unseal) -> Outcome:
    row = defaultdict[str, str](str, stored)
    return Outcome(
        verdict=_VERDICTS.get(row["state"], Verdict.FAILED),
        error=row["error"],
        error_code=_member(ErrorCode, row["code"]),
        response_code=_int(row["status"]),
        file=FileFacts(
            size=_int(row["size"]),
            sha256=row["sha256"],
            mime_type=row["mime"],
            image_size=row["image"],
            filename=row["filename"],
        ),
        response=ResponseMetadata(
            etag=row["etag"],
            last_modified=row["last_modified"],
            content_type=row["content_type"],
            final_url=_unsealed(row["final_url"], unseal),
            not_modified=bool(row["not_modified"]),
        ),
        phases=Phases.from_text(row["phases"], partial(_unsealed, unseal=unseal))
        if "phases" in stored
        else None,
    )


def _unsealed(text: str, unseal: Unseal) -> str:
    """The plain text of a URL that may be encrypted; empty if the key is missing."""
    return text if text.startswith("http") else (unseal(text) or "" if text else "")


def _task(row: Mapping[str, str], *, due_ms: str) -> Task:
    """A task from a hash; `due_ms` is the time at which the task was due first."""
    state = row.get("state", State.PENDING)
    log = [line.partition(" ") for line in row.get("log", "").splitlines()]
    return Task(
        state=cast("StateName", state),
        attempts=_int(row.get("attempts")),
        deliveries=_int(row.get("deliveries")),
        crashes=_int(row.get("crashes")),
        instance=row.get("owner") or row.get("settled", "").partition(" ")[2],
        due_at=_moment(row.get("due") or due_ms) if state == State.PENDING else None,
        started_at=_moment(row.get("started", "")),
        finished_at=_moment(row.get("finished", "")),
        errors=[Failure(at=_moment(at), error=error) for at, _, error in log],
    )


def _member(names: type[E], text: str) -> E | str:
    try:
        return names(text)
    except ValueError:
        return text
