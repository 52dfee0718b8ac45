"""Measures how fast this process starts downloads, for the pace after a cooldown (`docs/design/pace.md`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import replace

import trio

from downloader.model import Lease, Outcome, StartRate

WINDOW_S = 60.0
"""Only starts of about this many last seconds count."""

SHORTEST_S = 2.0
"""Least duration over which starts are averaged, because the first starts come all at once."""

FORGET_AT = 1000
"""When this many aggregations and hosts are counted, those without a recent start are forgotten."""


class _Count:
    __slots__ = ("accepted_at", "in_flight", "last", "since", "starts")

    def __init__(self, now: float) -> None:
        self.since = self.last = now
        self.starts = 0.0
        self.in_flight = set[str]()
        self.accepted_at = -WINDOW_S


class Starts:
    """Counts starts by aggregation and, where hosts have limits, by host.

    `receiving` has the ids of the jobs whose files are being received: their requests were accepted.
    """

    def __init__(self, receiving: Container[str] = ()) -> None:
        self._receiving = receiving
        self._counts: dict[tuple[str, str], _Count] = {}
        self._forget_at = FORGET_AT

    async def counted(self, lease: Lease, attempt: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Make an attempt. Add the rates of the aggregation and host to its cooldown, if it causes one."""
        counts = [self._begin(name, lease.id) for name in _names(lease)]
        try:
            outcome = await attempt()
            if outcome.cooldown:
                rate, *host_rate = (self._rate(count) for count in counts)
                cooldown = replace(outcome.cooldown, had=rate, host_had=host_rate[0] if host_rate else None)
                return replace(outcome, cooldown=cooldown)
            if outcome.response_code:
                for count in counts:
                    count.accepted_at = trio.current_time()
            return outcome
        finally:
            for count in counts:
                count.in_flight.discard(lease.id)

    def _begin(self, name: tuple[str, str], job_id: str) -> _Count:
        now = trio.current_time()
        count = self._counts.get(name)
        if count is None:
            self._forget(now)
            count = self._counts[name] = _Count(now)
        elif now - count.last > WINDOW_S:
            count.since, count.starts = now, 0
        elif now - count.since > WINDOW_S:
            count.starts *= WINDOW_S / 2 / (now - count.since)
            count.since = now - WINDOW_S / 2
        count.last = now
        count.starts += 1
        count.in_flight.add(job_id)
        return count

    def _rate(self, count: _Count) -> StartRate:
        now = trio.current_time()
        per_s = count.starts / max(SHORTEST_S, now - count.since)
        receives = any(job_id in self._receiving for job_id in count.in_flight)
        accepted = receives or now - count.accepted_at < WINDOW_S
        return StartRate(per_s if accepted else 0, len(count.in_flight))

    def _forget(self, now: float) -> None:
        if len(self._counts) < self._forget_at:
            return
        self._counts = {
            name: count
            for name, count in self._counts.items()
            if count.in_flight or now - count.last <= WINDOW_S
        }
        self._forget_at = max(FORGET_AT, 2 * len(self._counts))


def _names(lease: Lease) -> Sequence[tuple[str, str]]:
    queue, host = ("queue", lease.queue), lease.spec.host
    return (queue, ("host", host)) if host else (queue,)
