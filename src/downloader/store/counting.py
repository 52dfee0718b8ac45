"""Which part of an instance's counters is not yet in the fleet's totals."""

from __future__ import annotations

from collections.abc import Mapping

COUNTED_S = 86400.0
"""How long the store remembers the number of an instance's last counts: much longer than an instance sends
them again."""


class Uncounted:
    """The counts of one instance and role that the store has not confirmed.

    Counts that were sent are sent again under the same number, and unchanged, until the store answers: it may
    have added them, and adds those of a number once.
    """

    def __init__(self) -> None:
        self.number = 0
        """Of the counts to send."""
        self._confirmed: dict[str, int] = {}
        self._sent: Mapping[str, int] = {}

    def next(self, counts: Mapping[str, int]) -> Mapping[str, int]:
        """What to add to the totals, by series; `counts` are what the counters have come to."""
        if not self._sent:
            self.number += 1
            self._sent = {
                series: count - self._confirmed.get(series, 0)
                for series, count in counts.items()
                if count != self._confirmed.get(series, 0)
            }
        return self._sent

    def confirm(self) -> None:
        """The store has added what `next` gave."""
        for series, amount in self._sent.items():
            self._confirmed[series] = self._confirmed.get(series, 0) + amount
        self._sent = {}
