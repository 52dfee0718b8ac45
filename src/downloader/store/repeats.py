"""State of a caller for calls that may have to be repeated, so that a repetition has no second effect."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Mapping, Sequence

import trio

COUNTED_S = 86400.0
"""How long the store keeps the number of an instance's last counts: much longer than counts are repeated."""


LOOK_S = 5.0
"""Longest time between two lease calls of a fleet to a shard. A job waits that long only if a wake-up was
lost."""

TOGETHER_S = 0.5
"""How much earlier than asked for a shard gets its look, so that the looks at several shards are one call."""

UNANSWERED_S = 1.0
"""Seconds until a shard that did not answer is asked again; it may have granted leases."""

_MORE, _NOW = -math.inf, 0.0
"""Trio times for shards that are to be asked at once. `_MORE`: the shard has more tasks, and comes first."""


class LeaseRequests:
    """State of a caller's lease calls: their ids, and when each shard is to be asked again.

    The caller makes one call at a time, always for the same kind. A failed call may have been applied, so
    the next call to the same shard repeats the id, and the script returns the same leases again. Otherwise
    the leased tasks would wait until the leases end.
    """

    def __init__(self) -> None:
        self._ids: dict[int, str] = {}
        self._look_at: dict[int, float] = {}
        """Trio time at which a shard is to be asked."""
        self.idle_at: set[int] = set()
        """Shards that have noted the caller as idle."""

    @property
    def unanswered(self) -> list[int]:
        """Shards that have not answered the last call."""
        return list(self._ids)

    def to_ask(self, shards: Sequence[int], woken: Collection[int | None]) -> list[int]:
        """The shards to ask now: `woken` shards (`None` in it: all shards), and shards that are due."""
        now = trio.current_time()
        asked = []
        for shard in shards:
            look_at = self._look_at.get(shard, _NOW)
            if None in woken or shard in woken or look_at <= now:
                asked.append(shard)
                # The shard stays due until it answers.
                self._look_at[shard] = min(look_at, _NOW)
        return sorted(asked, key=self._look_at.__getitem__)

    def id_for(self, shard: int) -> str:
        """The id of the next call to a shard."""
        return self._ids.setdefault(shard, secrets.token_hex(8))

    def answered(self, shard: int) -> None:
        """Note that a shard has answered, so that the next call gets a new id."""
        del self._ids[shard]

    def note(self, shard: int, look_ms: float, due_ms: float, *, idle: bool) -> None:
        """Note that a shard is to be asked again in `look_ms` milliseconds (-1: in `LOOK_S`).

        `due_ms`: until more can run there, as far as known. `idle`: the answer left the caller with room.
        Unless more can run, the shard has noted the caller as idle.
        """
        self.idle_at.discard(shard)
        if look_ms == 0:
            self._look_at[shard] = _MORE
        elif not idle:
            self._look_at[shard] = _NOW
        else:
            self.idle_at.add(shard)
            look_s = look_ms / 1000 if look_ms > 0 else LOOK_S
            look_at = trio.current_time() + look_s
            if look_ms != due_ms and look_s > 2 * TOGETHER_S:
                look_at -= look_at % TOGETHER_S
            self._look_at[shard] = look_at

    def withdraw(self) -> Collection[int]:
        """The shards that have noted the caller as idle. They are taken as forgotten, and are asked next."""
        shards, self.idle_at = self.idle_at, set()
        self._look_at |= dict.fromkeys(shards, _NOW)
        return shards

    def look_s(self) -> float | None:
        """Seconds until a shard is to be asked; `None`: when the caller has room."""
        now = trio.current_time()
        for shard in self._ids:
            self._look_at[shard] = now + UNANSWERED_S
        # A caller without room asks the shards that are due when it has room.
        look_at = min((look_at for look_at in self._look_at.values() if look_at != _NOW), default=math.inf)
        return None if look_at == math.inf else max(0.0, look_at - now)


class Uncounted:
    """Counts of an instance and role that the store has not confirmed.

    Counts are sent again, unchanged and with the same number, until the store answers. The store adds the
    counts with a number only once, so a repetition does no harm.
    """

    def __init__(self) -> None:
        self.number = 0
        """The number of the counts to send."""
        self._confirmed: dict[str, int] = {}
        self._sent: Mapping[str, int] = {}

    def next(self, counts: Mapping[str, int]) -> Mapping[str, int]:
        """Amounts to add to the totals, by series; `counts` are the present values of the counters."""
        if not self._sent:
            self.number += 1
            self._sent = {
                series: count - self._confirmed.get(series, 0)
                for series, count in counts.items()
                if count != self._confirmed.get(series, 0)
            }
        return self._sent

    def confirm(self) -> None:
        """Note that the store has added the amounts from `next`."""
        for series, amount in self._sent.items():
            self._confirmed[series] = self._confirmed.get(series, 0) + amount
        self._sent = {}
