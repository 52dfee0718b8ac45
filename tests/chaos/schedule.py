"""Which fault happens when. The schedule is made from a seed, so the same seed repeats it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from servers.fleet import LEASE_S


class Kind(StrEnum):
    """A fault of a process, of the process's connection to the store (the link), or of the store."""

    KILL = "kill"
    """SIGKILL to the process and the children; the process is started again."""
    KILL_CHILD = "kill-child"
    """SIGKILL to one child of `run --processes`; the parent starts a new child."""
    FREEZE = "freeze"
    """SIGSTOP, and later SIGCONT; the time between may be shorter or longer than a lease."""
    STOP = "stop"
    """SIGTERM, as in a deploy; the process is started again."""
    CUT = "cut"
    """The link passes nothing on, but the connections stay open."""
    DELAY = "delay"
    """The link delays everything."""
    RESET = "reset"
    """The connections of the link are reset."""
    LOSE = "lose"
    """The link sometimes loses the reply to a request that the store has carried out, and the connection."""
    STORE_KILL = "store-kill"
    """SIGKILL to the store, which starts again with the append-only file."""
    STORE_FREEZE = "store-freeze"
    """SIGSTOP to the store, and later SIGCONT."""
    STORE_MOVE = "store-move"
    """The replica becomes the primary, and the store's address moves there."""
    FUNCTION_FLUSH = "function-flush"
    """The store forgets the scripts."""


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
_TO_STORE = {Kind.STORE_KILL: 3, Kind.STORE_FREEZE: 2, Kind.STORE_MOVE: 2, Kind.FUNCTION_FLUSH: 1}
_WITH_CHILDREN = {**_TO_MEMBER, Kind.KILL_CHILD: 5}
_LINKS = frozenset({Kind.CUT, Kind.DELAY, Kind.RESET, Kind.LOSE})

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
"""The shortest and the longest time of a fault; for `KILL` and `STOP`, the pause before the next start."""

_REST_S = 2.5
"""The time before the next fault of the same target: about as long as a start takes."""

_STORE_SHARE = 0.15
"""The share of faults that hit the store. It is small, because they affect all processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault."""

    at_s: float
    """Seconds since the beginning of the run."""
    kind: Kind
    target: str
    """A member's name, or `store`."""
    for_s: float

    def __str__(self) -> str:
        return f"{self.at_s:7.2f} s  {self.kind:<12} {self.target}  for {self.for_s:.2f} s"


def make_schedule(
    seed: int, *, seconds: float, members: Mapping[str, bool], pace_s: float = 1.2, with_links: bool = True
) -> list[Fault]:
    """Make faults for `seconds`, never two at once for one target.

    Args:
        seed: the same seed makes the same faults.
        seconds: all faults begin within this time.
        members: names of the members, and whether each has child processes.
        pace_s: the average time from one fault to the next.
        with_links: whether the members' links to the store can be broken.
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
        weights = {kind: weight for kind, weight in weights.items() if with_links or kind not in _LINKS}
        [kind] = rng.choices(list(weights), weights=list(weights.values()))
        for_s = rng.uniform(*_LASTS_S.get(kind, (0.0, 0.0)))
        free_at[target] = at_s + for_s + _REST_S
        faults.append(Fault(at_s=at_s, kind=kind, target=target, for_s=for_s))
    return faults
