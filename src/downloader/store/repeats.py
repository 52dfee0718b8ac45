"""State of a caller for calls that may have to be repeated, so that a repetition has no second effect."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

COUNTED_S = 86400.0
"""How long the store keeps the number of an instance's last counts: much longer than counts are repeated."""


class LeaseRequests:
    """Ids of the lease calls of a caller, which makes one call at a time, always for the same kind.

    A failed call may have been applied. The next call to the same shard repeats the id, and the script
    returns the same leases again. Otherwise the leased tasks would wait until the leases end.
    """

    def __init__(self) -> None:
        self._ids: dict[int, str] = {}

    @property
    def unanswered(self) -> list[int]:
        """Shards that have not answered the last call."""
        return list(self._ids)

    def id_for(self, shard: int) -> str:
        """The id of the next call to a shard."""
        return self._ids.setdefault(shard, secrets.token_hex(8))

    def answered(self, shard: int) -> None:
        """Note that a shard has answered, so that the next call gets a new id."""
        del self._ids[shard]


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
