"""A small model of what clients and operators expect of a store, without I/O."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from downloader.config import HostSettings
from downloader.model import JobSpec, Kind, Lease, State
from downloader.net import host_of
from downloader.store import CallbackPlan, Changed, Settled

AGGREGATIONS = ("a", "b", "{c}:ü")
HOSTS = {"one.test": HostSettings(limit=1), "*.test": HostSettings(limit=2), "*": HostSettings(rate=0.02)}
"""Limits of hosts, for a sequence in which they are in use; the last is one start in 50 s."""
HOST_LIMITS = {"one.test": 1, "two.test": 2}
JOB_GROUPS = ("g", "{h}:ü")
"""Groups of jobs, see `JobGroup`."""
_PLAN = CallbackPlan(queue="http http://c", limit=2, token="alice")
PLANS: Mapping[str, CallbackPlan | None] = {"a": _PLAN, "b": _PLAN, "{c}:ü": None} | dict.fromkeys(
    JOB_GROUPS, _PLAN
)
"""The destinations of callbacks, by aggregation or group of jobs."""
TOKENS: Mapping[str, str] = {"{c}:ü": "bob"} | dict.fromkeys(("a", "b", *JOB_GROUPS), "alice")
"""The token of all jobs of an aggregation, and of a group's callback."""
QUOTA = 8
"""Most jobs of `alice` whose download is not over."""
OWNERS = ("x", "y")
LEASE_MS, DELAY_MS, KEEP_MS, HOLD_MS = 100_000, 30_000, 60_000, 40_000
COOL_MS, GAP_MS, CATCH_UP_MS = 70_000, 50_000, 1000
GROUP_KEPT_MS = 7 * 24 * 3600 * 1000


@dataclass
class Task:
    """One task as expected in the store."""

    queue: str
    due_ms: int
    priority: int = 0
    state: State = State.PENDING
    owner: str = ""
    ends_ms: int = 0
    generation: int = 0
    settled: tuple[int, str] | None = None
    """The generation and the owner of the last call that settled the task."""
    attempts: int = 0
    deliveries: int = 0
    crashes: int = 0
    place_ms: int = 0
    """When the task was due before the lease."""
    swept: int = 0
    """Generation of the last lease that was swept, until the holder shows that the holder has not crashed."""

    stopping: bool = False
    """Whether the task is cancelled and still has a slot."""

    def held_by(self, lease: Lease, owner: str) -> bool:
        """Whether the task runs under this lease."""
        return (self.state, self.owner, self.generation) == (State.RUNNING, owner, lease.generation)

    def cancelled_for(self, lease: Lease, owner: str) -> bool:
        """Whether the task ran under this lease at the time of the cancel."""
        return (self.state, self.owner, self.generation) == (State.CANCELLED, owner, lease.generation)


@dataclass
class Pace:
    """The pace of an aggregation: everything but the limit."""

    asked: int = 0
    """The limit of the newest job."""
    adjusted: bool = False
    """Whether an operator's limit holds instead."""
    paused: bool = False
    cooling: int = 0
    rate: float | None = None
    delay: float | None = None
    started: int | None = None
    """The last start that counts, in ms."""

    @property
    def set_by_operator(self) -> bool:
        """Whether an operator has set something; the jobs of the model name limits only."""
        return self.adjusted or self.paused or self.rate is not None or self.delay is not None

    def gap(self) -> float:
        return max(1000 / self.rate if self.rate else 0, (self.delay or 0) * 1000)

    def opens(self) -> int:
        """The time before which nothing starts."""
        return max(self.cooling, 0 if self.started is None else round(self.started + self.gap()))

    def start(self, due_ms: int, now_ms: int) -> bool:
        if self.gap():
            late = not self.delay and due_ms <= self.opens() and now_ms - self.opens() <= CATCH_UP_MS
            self.started = self.opens() if late else now_ms
        return True


@dataclass
class Job:
    """One job as expected in the store."""

    spec: JobSpec
    tasks: dict[Kind, Task]
    reap_ms: int | None = None
    reaping: bool = False
    short: bool = False
    """Whether the store keeps a short record, which does not know who held a download that was cancelled."""
    last_callback: int = 0
    """Generation of a callback that a new download has made void."""

    @property
    def has_ended(self) -> bool:
        """Whether the job can never run again, so that the store keeps a short record without its leases."""
        return self.short or all(task.state is State.SUCCEEDED for task in self.tasks.values())


@dataclass
class JobGroup:
    """A group of jobs as expected in the store."""

    jobs: int = 0
    unfinished: set[str] = field(default_factory=set)
    ended: Counter[State] = field(default_factory=Counter)
    """Jobs that have ended, by the state of the download."""
    sealed: bool = False
    complete: bool = False
    callback: JobSpec | None = None
    """What its callback is sent as."""

    @property
    def state(self) -> str:
        return "complete" if self.complete else "sealed" if self.sealed else "open"


@dataclass(kw_only=True)
class Expected:
    """How the store must stand."""

    now_ms: int = 0
    hosts: bool = False
    """Whether downloads wait for their hosts too. Then the model knows when a download may start, not when it
    must: the store postpones it, and tries it again."""
    jobs: dict[str, Job] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    job_groups: dict[str, JobGroup] = field(default_factory=dict)
    orphans: list[Task] = field(default_factory=list)
    """Cancelled downloads of removed jobs that still have a slot."""
    limits: dict[tuple[Kind, str], int] = field(default_factory=dict)
    pace: dict[str, Pace] = field(default_factory=lambda: defaultdict(Pace))
    """Of aggregations."""
    leases: list[tuple[Lease, str]] = field(default_factory=list)
    """All leases that were ever given, and to which instance."""
    unheard: dict[tuple[Kind, str], list[tuple[str, int]]] = field(default_factory=dict)
    """The leases of each instance's last lease call with a lost reply: job id and generation."""

    def counted(self) -> list[Task]:
        """The downloads that count against the quota of `alice`."""
        return [
            task
            for _, task in self.tasks(Kind.DOWNLOAD)
            if TOKENS[task.queue] == "alice" and task.state in (State.PENDING, State.RUNNING)
        ]

    def tasks(self, kind: Kind) -> Iterator[tuple[str, Task]]:
        return ((job_id, job.tasks[kind]) for job_id, job in self.jobs.items() if kind in job.tasks)

    def running(self, kind: Kind, queue: str | None = None) -> int:
        tasks = [task for _, task in self.tasks(kind)] + (self.orphans if kind is Kind.DOWNLOAD else [])
        return sum(
            (task.state is State.RUNNING or task.stopping) and queue in (None, task.queue) for task in tasks
        )

    def task_of(self, lease: Lease) -> Task | None:
        job = self.jobs.get(lease.id)
        return job.tasks.get(lease.kind) if job else None

    def current(self) -> list[tuple[Lease, str]]:
        """The leases of running tasks, and the holders."""
        return [
            (lease, owner)
            for lease, owner in self.leases
            if (task := self.task_of(lease)) is not None and task.held_by(lease, owner)
        ]

    def forget_empty_queues(self) -> None:
        for kind, queue in list(self.limits):
            if self.running(kind, queue) or self.due(kind, queue):
                continue
            if kind is Kind.DOWNLOAD and (pace := self.pace[queue]).set_by_operator:
                if not pace.adjusted:
                    self.limits[kind, queue] = 1
                continue
            del self.limits[kind, queue]
            if kind is Kind.DOWNLOAD and (former := self.pace.pop(queue)).opens() > self.now_ms:
                self.pace[queue] = Pace(cooling=former.cooling, started=former.started)

    def give(self, kind: Kind, owner: str, count: int, given: list[tuple[str, int]]) -> None:
        """Check what an instance got, and note the leases."""
        before = self.unheard.get((kind, owner))
        if before:
            mine = [
                (job_id, generation)
                for job_id, generation in before
                if job_id in self.jobs
                and (task := self.jobs[job_id].tasks.get(kind)) is not None
                and (task.state, task.owner, task.generation) == (State.RUNNING, owner, generation)
            ]
            assert given == mine, "a request that is repeated is given what it was given, and nothing else"
            for job_id, _ in given:
                self.jobs[job_id].tasks[kind].ends_ms = self.now_ms + LEASE_MS
            return
        grantable = sum(self.grantable(kind, queue) for of, queue in self.limits if of is kind)
        exact = kind is Kind.CALLBACK or not self.hosts
        assert len(given) == min(count, grantable) if exact else len(given) <= min(count, grantable)
        for job_id, generation in given:
            task = self.jobs[job_id].tasks[kind]
            assert self.grantable(kind, task.queue) > 0, "beyond the limit, or too early"
            if not exact:
                self.check_host(self.jobs[job_id].spec)
            else:
                assert self.turn(task) == min(map(self.turn, self.due_tasks(kind, task.queue))), (
                    "not its turn"
                )
            if kind is Kind.DOWNLOAD:
                self.pace[task.queue].start(min(self.due(kind, task.queue)), self.now_ms)
            assert generation > task.generation, "a generation never comes twice"
            task.state, task.owner, task.generation = State.RUNNING, owner, generation
            task.place_ms = task.due_ms
            task.ends_ms = self.now_ms + LEASE_MS
            task.deliveries += 1
        if kind is Kind.DOWNLOAD and exact:
            tokens = Counter(TOKENS[self.jobs[job_id].spec.aggr_id] for job_id, _ in given)
            waiting = {
                TOKENS[queue] for of, queue in self.limits if of is kind and self.grantable(kind, queue)
            }
            most = max(tokens.values(), default=0)
            # A new token comes behind the second place.
            assert all(tokens[token] >= most - 2 for token in waiting), "tokens take turns"

    def check_host(self, spec: JobSpec) -> None:
        """Check that a host has a free place for one more download."""
        host = host_of(spec.url)
        places = [
            job_id
            for job_id, task in self.tasks(Kind.DOWNLOAD)
            if (task.state is State.RUNNING or task.stopping)
            and task.ends_ms > self.now_ms
            and host_of(self.jobs[job_id].spec.url) == host
        ]
        assert len(places) < HOST_LIMITS.get(host, 99), f"too many at {host}"

    def waiting(self, kind: Kind, queue: str) -> list[Task]:
        return [task for _, task in self.tasks(kind) if task.queue == queue and task.state is State.PENDING]

    def due(self, kind: Kind, queue: str) -> list[int]:
        """When the waiting tasks of a queue are due."""
        return [task.due_ms for task in self.waiting(kind, queue)]

    def due_tasks(self, kind: Kind, queue: str) -> list[Task]:
        """The waiting tasks of a queue that are due now."""
        return [task for task in self.waiting(kind, queue) if task.due_ms <= self.now_ms]

    @staticmethod
    def turn(task: Task) -> tuple[int, int]:
        """Sort key of tasks: the lowest begins first."""
        return -task.priority, task.due_ms

    def opens(self, kind: Kind, queue: str) -> int:
        """The time before which nothing of a queue starts."""
        return self.pace[queue].opens() if kind is Kind.DOWNLOAD else 0

    def paused(self, kind: Kind, queue: str) -> bool:
        return kind is Kind.DOWNLOAD and self.pace[queue].paused

    def grantable(self, kind: Kind, queue: str) -> int:
        if self.paused(kind, queue):
            return 0
        free = max(0, self.limits[kind, queue] - self.running(kind, queue))
        due = sorted(self.due_tasks(kind, queue), key=self.turn)
        if kind is Kind.CALLBACK:
            return len(due[:free])
        pace = replace(self.pace[queue])
        return sum(
            pace.opens() <= self.now_ms
            and pace.start(min(task.due_ms for task in due[started:]), self.now_ms)
            for started in range(min(free, len(due)))
        )

    def next_due_s(self, kind: Kind) -> float | None:
        dues = [
            max(0, max(min(due), self.opens(kind, queue)) - self.now_ms) / 1000
            for of, queue in self.limits
            if of is kind
            and (due := self.due(kind, queue))
            and self.running(kind, queue) < self.limits[kind, queue]
            and not self.paused(kind, queue)
        ]
        return min(dues, default=None)

    def expected(self, lease: Lease, owner: str) -> Settled:
        """The expected answer to a call that settles or renews."""
        task = self.task_of(lease)
        if task is not None and task.cancelled_for(lease, owner) and not self.jobs[lease.id].short:
            return Settled.CANCELLED
        if task is not None and (task.held_by(lease, owner) or task.settled == (lease.generation, owner)):
            return Settled.DONE
        return Settled.LEASE_LOST

    def note_settled(self, lease: Lease, how: str) -> None:
        job, kind = self.jobs[lease.id], lease.kind
        task, plan = job.tasks[kind], PLANS[lease.spec.aggr_id]
        task.settled = (lease.generation, task.owner)
        task.attempts += how not in ("release", "throttled")
        if how in ("retry", "release", "throttled"):
            task.state, task.owner, task.due_ms = State.PENDING, "", self.now_ms + DELAY_MS
            if how == "retry" and kind is Kind.CALLBACK:
                self.limits[kind, task.queue] = 1
            if how == "throttled":
                self.pace[task.queue].cooling = self.now_ms + COOL_MS
            return
        task.state = State(how)
        if kind is Kind.DOWNLOAD:
            self.note_over(job)
            return
        self.note_ended(job)
        download = job.tasks[Kind.DOWNLOAD]
        if how == "succeeded":
            job.short = download.state is State.CANCELLED and not download.stopping
            assert plan is not None
            self.limits[kind, task.queue] = plan.limit

    def note_over(self, job: Job) -> None:
        """A download has reached a terminal state."""
        plan = PLANS[job.spec.aggr_id]
        if plan is None:
            self.note_ended(job)
            return
        job.tasks[Kind.CALLBACK] = Task(plan.queue, self.now_ms, generation=job.last_callback)
        self.limits.setdefault((Kind.CALLBACK, plan.queue), plan.limit)

    def note_ended(self, job: Job) -> None:
        """A job has ended, its callback included."""
        job.reap_ms = self.now_ms + KEEP_MS
        group = self.job_groups.get(job.spec.group)
        if group is not None and job.spec.id in group.unfinished:  # else it was complete before a retry
            group.unfinished.remove(job.spec.id)
            group.ended[job.tasks[Kind.DOWNLOAD].state] += 1
            self.complete(group)

    def note_unfinished(self, job: Job) -> None:
        """A job that had ended is retried."""
        job.reap_ms = None
        group = self.job_groups.get(job.spec.group)
        if group is not None and not group.complete:
            group.unfinished.add(job.spec.id)
            group.ended[job.tasks[Kind.DOWNLOAD].state] -= 1

    def complete(self, group: JobGroup) -> None:
        """Complete a group that has to be; its callback becomes pending."""
        if group.complete or group.unfinished or not group.sealed:
            return
        group.complete = True
        if (spec := group.callback) is not None:
            self.jobs[spec.id] = job = Job(
                spec, {Kind.DOWNLOAD: Task(spec.aggr_id, 0, state=State.SUCCEEDED)}
            )
            self.note_over(job)

    def expected_of_purge(self, job_id: str) -> Changed:
        if job_id in self.removed:
            return Changed.UNKNOWN
        job = self.jobs[job_id]
        stops = job.tasks[Kind.DOWNLOAD].stopping
        return Changed.CONFLICT if stops or job.reap_ms is None else Changed.DONE

    def expected_of_retry(self, job_id: str, *, download: bool) -> Changed:
        if job_id in self.removed:
            return Changed.UNKNOWN
        job = self.jobs[job_id]
        states = {kind: task.state for kind, task in job.tasks.items()}
        again = states.get(Kind.DOWNLOAD if download else Kind.CALLBACK)
        waits = download and states.get(Kind.CALLBACK) in (State.PENDING, State.RUNNING)
        return Changed.CONFLICT if job.reaping or again is not State.FAILED or waits else Changed.DONE
