"""Which fault happens when: made from a seed, so that the seed alone repeats it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from servers.fleet import LEASE_S


class Kind(StrEnum):
    """What is done to a process, to its link to the store, or to the store."""

    KILL = "kill"
    """SIGKILL to the process and its children; it is started again."""
    KILL_CHILD = "kill-child"
    """SIGKILL to one child of `run --processes`; its parent starts it again."""
    FREEZE = "freeze"
    """SIGSTOP, later SIGCONT: for less than a lease, or for longer."""
    STOP = "stop"
    """SIGTERM, as in a deploy; it is started again."""
    CUT = "cut"
    """Its link to the store swallows everything and closes nothing."""
    DELAY = "delay"
    """Its link takes its time."""
    RESET = "reset"
    """Its connections to the store are reset."""
    LOSE = "lose"
    """Now and then the store carries a request out, and the reply is lost with its connection."""
    STORE_KILL = "store-kill"
    """SIGKILL to the store; it starts again with its append-only file."""
    STORE_FREEZE = "store-freeze"
    """SIGSTOP to the store, later SIGCONT."""
    SCRIPT_FLUSH = "script-flush"
    """The store forgets its scripts."""


STORE = "store"

_TO_MEMBER = {
    Kind.KILL: 5,
    Kind.FREEZE: 4,
    Kind.STOP: 4,
    Kind.CUT: 3,
    Kind.DELAY: 2,
    Kind.RESET: 2,
    Kind.LOSE: 3,
}
_TO_STORE = {Kind.STORE_KILL: 3, Kind.STORE_FREEZE: 2, Kind.SCRIPT_FLUSH: 1}
_WITH_CHILDREN = {**_TO_MEMBER, Kind.KILL_CHILD: 5}

_LASTS_S: Mapping[Kind, tuple[float, float]] = {
    Kind.KILL: (0.0, 1.0),
    Kind.STOP: (0.0, 1.0),
    Kind.FREEZE: (0.2, 2 * LEASE_S),
    Kind.CUT: (0.5, 2 * LEASE_S),
    Kind.DELAY: (1.0, 4.0),
    Kind.LOSE: (1.0, 4.0),
    Kind.STORE_KILL: (0.1, 2.0),
    Kind.STORE_FREEZE: (0.1, 3.0),
}
"""The shortest and the longest; for those that end by themselves, the pause before the next start."""

_REST_S = 2.5
"""Before the same target is hit again: about the time that a start takes."""

_STORE_SHARE = 0.15
"""Of all faults: each of them is one for everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault."""

    at_s: float
    """Since the beginning."""
    kind: Kind
    target: str
    """A member's name, or `store`."""
    for_s: float

    def __str__(self) -> str:
        return f"{self.at_s:7.2f} s  {self.kind:<12} {self.target}  for {self.for_s:.2f} s"


def make_schedule(
    seed: int, *, seconds: float, members: Mapping[str, bool], pace_s: float = 1.2
) -> list[Fault]:
    """Faults over so many seconds, never two at once for one target.

    Args:
        seed: the same seed makes the same faults.
        seconds: the last fault begins before.
        members: by name, whether it has child processes.
        pace_s: from one fault to the next, on average.
    """
    rng = random.Random(seed)
    free_at = dict.fromkeys([*members, STORE], 0.0)
    faults = []
    at_s = 0.0
    while (at_s := at_s + rng.uniform(0.3, 1.7) * pace_s) < seconds:
        to_store = rng.random() < _STORE_SHARE
        idle = [name for name in members if free_at[name] <= at_s]
        target = STORE if to_store or not idle else rng.choice(idle)
        if free_at[target] > at_s:
            continue
        weights = _TO_STORE if target == STORE else _WITH_CHILDREN if members[target] else _TO_MEMBER
        [kind] = rng.choices(list(weights), weights=list(weights.values()))
        for_s = rng.uniform(*_LASTS_S.get(kind, (0.0, 0.0)))
        free_at[target] = at_s + for_s + _REST_S
        faults.append(Fault(at_s=at_s, kind=kind, target=target, for_s=for_s))
    return faults
