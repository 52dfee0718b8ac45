"""What a scenario gets and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import Sink

LIMIT = 8
"""`aggr_limit` where the scenario says nothing else."""
SILENCE_S = 30.0
"""No callback for so long: the rest will not come."""


@dataclass(slots=True, kw_only=True)
class Setup:
    """What all scenarios share."""

    folder: Path
    """A folder on the file system to be measured."""
    origin: int
    """Port of an origin of files of 10 KiB, over HTTP."""
    sink: Sink
    runs: int = 0

    @property
    def origin_url(self) -> str:
        """The origin, as a URL without a path."""
        return f"http://127.0.0.1:{self.origin}"

    def new_folder(self) -> Path:
        """A folder that nothing was in before; the caller makes it."""
        self.runs += 1
        return self.folder / str(self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run of one scenario."""

    name: str
    build: str = ""
    """Label of the version that ran; empty: none."""
    processes: int = 1
    measures: dict[str, float]
    faults: list[str] = field(default_factory=list)
    """What was wrong; empty: every job did what it should."""
