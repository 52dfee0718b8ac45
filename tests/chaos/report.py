"""What a run tells at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from chaos.history import History, Violation, ended_by_late_resume, losses
from chaos.schedule import Fault, Kind
from servers.fleet import LEASE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a run."""

    seed: int
    seconds: float
    schedule: list[Fault]
    done: Counter[str]
    """Faults that were carried out, by kind."""
    history: History
    violations: list[Violation]
    repeated_gets: int
    repeated_deliveries: int
    refused: Counter[str]
    deleted: int
    """How many jobs with shared files were deleted."""
    worst_s: float
    """The longest time from the end of a lease until another instance had the task."""
    resumed_s: float
    """The longest time from when the store was back until the next callback arrived."""

    def lines(self) -> list[str]:
        """The report as text."""
        states = Counter(record.state for record in self.history.records.values())
        kills = sum(self.done[kind] for kind in (Kind.KILL, Kind.KILL_CHILD, Kind.STORE_KILL))
        freezes = sum(self.done[kind] for kind in (Kind.FREEZE, Kind.STORE_FREEZE))
        groups = self.history.job_groups.values()
        unclear = sum(ended_by_late_resume(self.history, one) for one in self.history.closed)
        return [
            f"seed {self.seed}, {self.seconds:g} s",
            f"jobs {len(self.history.jobs) + self.deleted}: {self.deleted} deleted, "
            + ", ".join(f"{n} {state}" for state, n in states.items()),
            f"kills {kills}, freezes {freezes}, all faults {self.done.total()}: "
            + ", ".join(f"{n} {kind}" for kind, n in sorted(self.done.items())),
            "times without starts: "
            + ", ".join(f"{n} times {why}" for why, n in Counter(c.why for c in self.history.closed).items())
            + f"; {unclear} perhaps ended by late requests",
            (
                f"groups of jobs: {len(groups)}, {sum(group.seals > 1 for group in groups)} reopened, "
                f"{sum(map(len, self.history.completions.values()))} callbacks"
            ),
            f"duplicates: {self.repeated_gets} downloads, {self.repeated_deliveries} callbacks (allowed)",
            f"submissions repeated: {self.refused.total()} ({dict(self.refused)})",
            f"recovery: at most {LEASE_S:g} s of lease and {self.worst_s:.2f} s until another had the task",
            f"store: at most {self.resumed_s:.2f} s from when it was back until the next callback arrived",
            f"losses {losses(self.violations)}, broken promises {len(self.violations)}",
            *(f"  {one}" for one in self.violations),
        ]
