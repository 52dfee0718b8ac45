"""The rules that must hold at the end of a run, checked by pure functions on what was recorded.

The rules are those under "Always" in `docs/design/faults.md`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

ENDS = frozenset({"succeeded", "failed", "cancelled"})

CATCH_UP_S = 1.0
"""After late starts, starts may come earlier to make up for at most this much time."""

_ROUNDED_S = 0.005
"""The store's times are in whole milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An accepted job, and the required end. That is known, because the origin is our own."""

    id: str
    group: str
    succeeds: bool
    size: int = 0
    sha256: str = ""
    attempts: int = 1
    """Most attempts that may be counted; attempts that end by a crash are not counted."""
    cancelled: bool = False
    """Whether `DELETE /jobs/<id>` was answered 202."""
    job_group: str = ""
    """The group of jobs; `""` for none. (`group` is the aggregation.)"""
    retries: int = 0
    """How often the failed download was repeated at the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the API answers for a job at the end."""

    state: str
    attempts: int
    size: int | None = None
    """`None` if there is no file."""
    sha256: str | None = None
    callback: str | None = None
    """The callback's state; `None` if there is no callback yet."""
    started_s: float | None = None
    """When the task was leased last, by the store's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A stored file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A callback that arrived."""

    webhook_id: str
    body: bytes
    success: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobGroup:
    """A group of jobs that was sealed."""

    name: str
    seals: int = 0
    """1, and one more for each time that it was reopened."""
    most: int = 0
    """Most callbacks: more than `seals` if a request to seal and one to reopen were repeated, because the
    repetitions may come late, one after the other."""
    retried: int = 0
    """How many jobs were retried before the last seal at the least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A callback of a group of jobs that arrived."""

    webhook_id: str
    body: bytes
    counts: Mapping[str, int]
    """How many jobs, and how many by their end."""
    told: int
    """How many callbacks of its jobs had been taken before; repetitions count once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord:
    """What the API answers for a group of jobs at the end."""

    state: str
    callback: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A time in which no job of an aggregation may be leased; jobs leased before go on."""

    group: str
    why: str
    after_s: float
    until_s: float
    """Both times are by the store's clock, which is that of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A request to end a pause that an API has carried out, perhaps long after its client had given it up."""

    group: str
    sent_s: float
    """The request was sent then or later."""
    logged_s: float


@dataclass(slots=True, kw_only=True)
class History:
    """Everything that was recorded in a run."""

    jobs: dict[str, Job] = field(default_factory=dict)
    """The jobs that were answered 201, by id."""
    records: dict[str, Record] = field(default_factory=dict)
    """By id, every job in the store, from any client."""
    ends: Counter[str] = field(default_factory=Counter)
    """By id: how often an instance logged that the job had ended, without ends that a kill may undo."""
    killed_s: list[float] = field(default_factory=list)
    """When the store was killed, if it syncs once a second."""
    files: dict[str, File] = field(default_factory=dict)
    """By the file's name, which is the job's id."""
    spool: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    """Slots of groups that are still taken, and keys that have no owner any more."""
    deliveries: dict[str, list[Delivery]] = field(default_factory=dict)
    """By the job's id."""
    job_groups: dict[str, JobGroup] = field(default_factory=dict)
    """By name."""
    group_records: dict[str, GroupRecord] = field(default_factory=dict)
    """By name."""
    completions: dict[str, list[Completion]] = field(default_factory=dict)
    """By the name of the group of jobs, in order."""
    limits: dict[str, int] = field(default_factory=dict)
    """By aggregation."""
    peaks: dict[str, int] = field(default_factory=dict)
    """By aggregation: how many requests the origin received at once."""
    closed: list[Closed] = field(default_factory=list)
    """Pauses and cooldowns. A pause lasts from the answer to the PATCH that began it until the request that
    ends it, a cooldown from its log line until the end of `Retry-After`."""
    resumes: list[Resume] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    """By aggregation: how many starts per second are allowed."""
    late: list[tuple[str, float]] = field(default_factory=list)
    """Lease, and for how many seconds after its end no instance took its task, although one could have."""
    late_s: float = 0.0
    """How many seconds `late` may have."""
    complaints: list[str] = field(default_factory=list)
    """Faults of processes: unexpected ends, tracebacks, late stops."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}"


def judge(history: History) -> list[Violation]:
    """The broken promises; an empty list if all are kept."""
    return [
        Violation(rule.__name__.removeprefix("_").replace("_", " "), what)
        for rule in RULES
        for what in rule(history)
    ]


def ended_by_late_resume(history: History, pause: Closed) -> bool:
    """Whether a request to end an earlier pause may have ended this one.

    Such a request was sent before the pause and logged after its begin. It was carried out at some time
    between the two.
    """
    return any(
        one.group == pause.group and one.sent_s < pause.after_s < one.logged_s for one in history.resumes
    )


def losses(violations: Sequence[Violation]) -> int:
    """How many accepted jobs did not end."""
    return sum(one.rule in ("lost", "still queued") for one in violations)


def _lost(history: History) -> Iterator[str]:
    yield from (job_id for job_id in history.jobs if job_id not in history.records)


def _accepted_twice(history: History) -> Iterator[str]:
    # A job is submitted with one Idempotency-Key until it is accepted, so no other job may exist.
    yield from (job_id for job_id in history.records if job_id not in history.jobs)


def _still_queued(history: History) -> Iterator[str]:
    for job_id, record in history.records.items():
        if record.state not in ENDS:
            yield f"{job_id} is {record.state}"


def _ended_twice(history: History) -> Iterator[str]:
    for job_id, count in history.ends.items():
        if count > 1 + _retries(history, job_id):
            yield f"{job_id} {count} times"


def _wrong_outcome(history: History) -> Iterator[str]:
    for job, record in _pairs(history):
        expected = "cancelled" if job.cancelled else "succeeded" if job.succeeds else "failed"
        if record.state in ENDS and record.state != expected:
            yield f"{job.id} {record.state}, and should have {expected}"


def _attempts_used_up_by_us(history: History) -> Iterator[str]:
    for job, record in _pairs(history):
        if record.attempts > job.attempts:
            yield f"{job.id} has {record.attempts} attempts of {job.attempts}"


def _lease_left(history: History) -> Iterator[str]:
    yield from history.leases


def _token_left(history: History) -> Iterator[str]:
    yield from history.tokens


def _spool_file_left(history: History) -> Iterator[str]:
    yield from history.spool


def _file_missing(history: History) -> Iterator[str]:
    for job_id, record in history.records.items():
        if record.state == "succeeded" and job_id not in history.files:
            yield job_id


def _file_of_nobody(history: History) -> Iterator[str]:
    for name in history.files:
        record = history.records.get(name)
        # A file that was stored while its job was cancelled is deleted with the job's record at the latest.
        if record is None or record.state not in ("succeeded", "cancelled"):
            yield f"{name} ({record.state if record else 'no such job'})"


def _wrong_content(history: History) -> Iterator[str]:
    for job, record in _pairs(history):
        found = history.files.get(job.id)
        if record.state != "succeeded" or found is None:
            continue
        for where, size, sha256 in (
            ("file", found.size, found.sha256),
            ("record", record.size, record.sha256),
        ):
            if (size, sha256) != (job.size, job.sha256):
                yield f"{job.id}: {size} bytes in the {where}, {job.size} at the origin"


def _limit_exceeded(history: History) -> Iterator[str]:
    for group, limit in history.limits.items():
        if (peak := history.peaks.get(group, 0)) > limit:
            yield f"{group}: {peak} at once, {limit} allowed"


def _started_too_early(history: History) -> Iterator[str]:
    for job, record in _pairs(history):
        for each in history.closed:
            early = (
                record.started_s is not None and each.after_s < record.started_s < each.until_s - _ROUNDED_S
            )
            if early and each.group == job.group and not ended_by_late_resume(history, each):
                yield f"{job.id} of {job.group}: {each.until_s - (record.started_s or 0):.3f} s, {each.why}"


def _rate_exceeded(history: History) -> Iterator[str]:
    for group, rate in history.rates.items():
        ours = (record.started_s for job, record in _pairs(history) if job.group == group)
        least = float("inf")
        for number, at_s in enumerate(sorted(at_s for at_s in ours if at_s is not None)):
            # How many starts there were up to now, minus how many the rate allows in that time.
            ahead = number - rate * at_s
            least = min(least, ahead)
            if ahead - least > rate * (CATCH_UP_S + _ROUNDED_S):
                yield f"{group}: {ahead - least:.1f} starts more than {rate:g} per second"


def _not_notified(history: History) -> Iterator[str]:
    for job_id, record in history.records.items():
        if record.callback != "succeeded" or not history.deliveries.get(job_id):
            count = len(history.deliveries.get(job_id, ()))
            yield f"{job_id}: callback {record.callback}, {count} deliveries"


def _several_ids(history: History) -> Iterator[str]:
    by_id = defaultdict(set)
    for job_id, received in history.deliveries.items():
        for one in received:
            by_id[one.webhook_id].add(job_id)
        ids = {one.webhook_id for one in received}
        if len(ids) > 1 + _retries(history, job_id) or "" in ids:
            yield f"{job_id}: {sorted(ids)}"
    yield from (f"{one} for {sorted(jobs)}" for one, jobs in by_id.items() if len(jobs) > 1)


def _several_outcomes(history: History) -> Iterator[str]:
    for job_id, received in history.deliveries.items():
        if len({one.body for one in received}) > len({one.webhook_id for one in received}):
            yield f"{job_id}: {len({one.body for one in received})} different bodies"
        record = history.records.get(job_id)
        if record and {one.success for one in received} - {record.state == "succeeded"}:
            yield f"{job_id}: told another outcome than {record.state}"


def _group_not_complete(history: History) -> Iterator[str]:
    for name in history.job_groups:
        record = history.group_records.get(name)
        if record is None or (record.state, record.callback) != ("complete", "succeeded"):
            yield f"{name}: {record}"


def _group_not_told_once(history: History) -> Iterator[str]:
    for name in history.completions.keys() | history.job_groups.keys():
        received = history.completions.get(name, [])
        group = history.job_groups.get(name, JobGroup(name=name))
        ids, bodies = {one.webhook_id for one in received}, {(one.webhook_id, one.body) for one in received}
        if not group.seals <= len(ids) == len(bodies) <= max(group.seals, group.most) or "" in ids:
            yield f"{name}: sealed {group.seals} times, {len(bodies)} bodies with the ids {sorted(ids)}"


def _group_told_early(history: History) -> Iterator[str]:
    for name, received in history.completions.items():
        for number, one in enumerate(dict.fromkeys(first.webhook_id for first in received), 1):
            completion = next(first for first in received if first.webhook_id == one)
            of_retries = history.job_groups[name].retried if number > 1 else 0
            if completion.told < (needed := completion.counts["jobs"] + of_retries):
                yield f"{name}: {one} after {completion.told} of {needed} callbacks of its jobs"


def _group_miscounted(history: History) -> Iterator[str]:
    for name, record in history.group_records.items():
        states = [found.state for job, found in _pairs(history) if job.job_group == name]
        expected = {"jobs": len(states), **{state: states.count(state) for state in sorted(ENDS)}}
        received = history.completions.get(name, [])
        told = max((one.counts for one in received), key=lambda counts: counts["jobs"], default=expected)
        if not record.counts == told == expected:
            yield f"{name}: {dict(record.counts)}, told {dict(told)}, and should have {expected}"


def _recovered_late(history: History) -> Iterator[str]:
    for lease, seconds in history.late:
        if seconds > history.late_s:
            yield f"{lease}: {seconds:.1f} s after its end"


def _misbehaved(history: History) -> Iterator[str]:
    yield from history.complaints


def _retries(history: History, job_id: str) -> int:
    return history.jobs[job_id].retries if job_id in history.jobs else 0


def _pairs(history: History) -> Iterable[tuple[Job, Record]]:
    records: Mapping[str, Record] = history.records
    return [(job, records[job_id]) for job_id, job in history.jobs.items() if job_id in records]


RULES = (
    _lost,
    _accepted_twice,
    _still_queued,
    _ended_twice,
    _wrong_outcome,
    _attempts_used_up_by_us,
    _lease_left,
    _token_left,
    _spool_file_left,
    _file_missing,
    _file_of_nobody,
    _wrong_content,
    _limit_exceeded,
    _started_too_early,
    _rate_exceeded,
    _not_notified,
    _several_ids,
    _several_outcomes,
    _group_not_complete,
    _group_not_told_once,
    _group_told_early,
    _group_miscounted,
    _recovered_late,
    _misbehaved,
)
