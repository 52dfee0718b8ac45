"""The counts of an instance that are not yet in the fleet's totals."""

from __future__ import annotations

from collections.abc import Mapping

COUNTED_S = 86400.0
"""How long the store remembers the number of an instance's last counts. An instance repeats them for a much
shorter time."""


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
