"""What a caller remembers of calls without an answer, so that their repetition has one effect."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

COUNTED_S = 86400.0
"""How long the store remembers the number of an instance's last counts. An instance repeats them for a much
shorter time."""


class LeaseRequests:
    """Ids of the lease calls of one caller, which makes one call at a time, always for the same kind.

    A call that failed may have been applied. The next call to that shard repeats its id, and the script gives
    the same leases again; otherwise these tasks would wait until the leases end.
    """

    def __init__(self) -> None:
        self._ids: dict[int, str] = {}

    @property
    def unanswered(self) -> list[int]:
        """The shards whose last answer was lost."""
        return list(self._ids)

    def id_for(self, shard: int) -> str:
        """The id of the next call to a shard."""
        return self._ids.setdefault(shard, secrets.token_hex(8))

    def answered(self, shard: int) -> None:
        """Note that the shard has answered, so that the next call to it has a new id."""
        del self._ids[shard]


class Uncounted:
    """The counts of one instance and role that the store has not confirmed.

    Counts are sent again, unchanged and under the same number, until the store answers. It may have added
    them already; it adds the counts of a number only once.
    """

    def __init__(self) -> None:
        self.number = 0
        """The number of the counts to send."""
        self._confirmed: dict[str, int] = {}
        self._sent: Mapping[str, int] = {}

    def next(self, counts: Mapping[str, int]) -> Mapping[str, int]:
        """What to add to the totals, by series; `counts` are the counters' present values."""
        if not self._sent:
            self.number += 1
            self._sent = {
                series: count - self._confirmed.get(series, 0)
                for series, count in counts.items()
                if count != self._confirmed.get(series, 0)
            }
        return self._sent

    def confirm(self) -> None:
        """Note that the store has added what `next` returned."""
        for series, amount in self._sent.items():
            self._confirmed[series] = self._confirmed.get(series, 0) + amount
        self._sent = {}
