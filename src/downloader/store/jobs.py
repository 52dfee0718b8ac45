"""`JobStore`: a method per transition, which runs its script on the shards that it concerns."""

from __future__ import annotations

import itertools
import json
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from downloader.config import HostSettings, RedisSettings
from downloader.errors import StoreUnavailable
from downloader.ids import JobIds, shard_of
from downloader.model import BROKERS, Delivery, JobSpec, Kind, Lease, Outcome, callback_limit
from downloader.observe import Event, get_logger
from downloader.store import codec
from downloader.store.client import StoreClient, Timed, open_client
from downloader.store.codec import NO_CALLBACK, ms
from downloader.store.reader import StoreReader
from downloader.store.sealing import Sealer, open_sealer
from downloader.store.values import (
    ALL_SHARES,
    Accepted,
    Aggregation,
    CallbackPlan,
    Changed,
    CloseResult,
    FinishResult,
    LeaseBatch,
    ReapBatch,
    Settled,
    Shares,
    Submission,
)

log = get_logger()

T = TypeVar("T", bound=tuple[Lease, *tuple[Any, ...]])

CANCELLED = "cancelled by a client"
"""`error` of a job that was cancelled."""

PROVEN_S = 600.0
"""How long a callback destination counts as proven after it has taken a callback."""

COUNTED_S = 86400.0
"""How long the store remembers the number of an instance's last counts. An instance repeats them for a much
shorter time."""


@asynccontextmanager
async def open_store(
    settings: RedisSettings,
    timed: Timed = lambda _name, _seconds: None,
    *,
    hosts: Mapping[str, HostSettings] | None = None,
) -> AsyncIterator[JobStore]:
    """A `JobStore` on Redis or Valkey; needs a `trio_asyncio` loop around it.

    `hosts` are limits by host or pattern, which downloads that this instance leases obey; with `None` hosts
    have no limits, also no delay of their robots.txt.

    Raises:
        ConfigError, StoreUnavailable, StoreRefused: one clear line each, see `open_client`.
    """
    sealer = open_sealer(settings.encryption_keys)
    async with open_client(settings, timed) as client:
        yield JobStore(client, sealer, hosts)


class JobStore(StoreReader):
    """The fleet's shared state in Redis or Valkey; safe to share between tasks.

    Each method that changes something runs one atomic transition (`docs/state-machine.md`) in each shard that
    it concerns. It may be repeated, and its time is bounded. A store has one shard; a Cluster has several.
    Unless a method says otherwise it raises `StoreUnavailable` if none of these shards answers (the call may
    have been applied), and `StoreRefused` if the store will never carry it out. If only some shards fail, the
    items of the others are answered as usual.
    """

    def __init__(
        self,
        client: StoreClient,
        sealer: Sealer | None = None,
        hosts: Mapping[str, HostSettings] | None = None,
    ) -> None:
        super().__init__(client, sealer)
        self._seal = None if sealer is None else sealer.seal
        self._hosts = None
        if hosts is not None:
            self._hosts = {name: each.model_dump(exclude_none=True) for name, each in hosts.items()}
        self._ids = JobIds()
        self._requests = itertools.count()
        self._session = secrets.token_hex(4)
        # The shard that the next lease call asks first; it changes, so that no shard is always asked last.
        self._next_shard = 0
        self._unanswered: dict[tuple[Kind, int], str] = {}
        self._uncounted: defaultdict[tuple[str, str], Uncounted] = defaultdict(Uncounted)

    # Submitting

    def new_id(self, aggr_id: str) -> str:
        """A new id for a job of this aggregation; its last character gives the shard."""
        return self._ids.new(self._keys.aggregation_shard(aggr_id), self._keys.shards)

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        """Enqueue jobs, each atomically, in one round trip per shard; returns `(result, job id)` in order.

        Raises:
            StoreUnavailable: no shard answered; the jobs may have been enqueued.
        """

        async def ask(shard: int, items: Sequence[Submission]) -> list[tuple[Accepted, str]]:
            answers = await run(shard, [(item, item.spec.aggr_proxy) for item in items])
            # The script cannot match patterns. If the aggregation has another proxy that is permitted, the
            # submission is repeated with that proxy named.
            again = {
                at: (items[at], proxy)
                for at, (why, proxy) in enumerate(answers)
                if why is Accepted.PROXIED and (permits := items[at].permits) and permits(proxy)
            }
            if again:
                for at, answer in zip(again, await run(shard, again.values()), strict=True):
                    answers[at] = answer
            return answers

        async def run(shard: int, items: Iterable[tuple[Submission, str]]) -> list[tuple[Accepted, str]]:
            rows = [
                codec.submit(item, permitted, self._seal, with_host=self._hosts is not None)
                for item, permitted in items
            ]
            answers = await self._client.run("submit", shard, {}, rows, durable=True)
            return [(Accepted(why), job_id) for why, job_id in answers]

        return await self._client.per_item(
            submissions, lambda item: item.spec.id, ask, lambda item: (Accepted.UNAVAILABLE, item.spec.id)
        )

    # Leased work

    async def lease(
        self, kind: Kind, owner: str, count: int, lease_s: float, *, shares: Shares = ALL_SHARES
    ) -> LeaseBatch:
        """Give up to `count` due tasks to `owner`, fairly over groups, each for `lease_s` seconds.

        If the answer to a call is lost, the next call gives the same leases again. A `count` of 0 asks for
        these only.

        Raises:
            StoreUnavailable: no shard answered. A later call gives the leases that they may have granted.
        """
        first = self._next_shard
        shards = [(first + offset) % self._keys.shards for offset in range(self._keys.shards)]
        if count == 0:
            shards = [shard for shard in shards if (kind, shard) in self._unanswered]
        self._next_shard = (first + 1) % self._keys.shards
        common = {
            "kind": kind,
            "owner": owner,
            "lease_ms": ms(lease_s),
            "last": list(shares.last),
            "never": list(shares.never),
        }
        if self._hosts is not None and kind is Kind.DOWNLOAD:
            common["hosts"] = self._hosts
        leases: list[Lease] = []
        waits: list[float] = []
        unproven = shares.unproven
        while shards and (count == 0 or len(leases) < count):
            # At most one shard per free slot at a time, so that no more leases are granted than there are
            # slots.
            room = count - len(leases)
            asked, shards = (shards[:room], shards[room:]) if count else (shards, [])
            parts = zip(asked, _split(room, len(asked)), _split(unproven, len(asked)), strict=True)
            calls = {shard: {**common, "count": most, "unproven": some} for shard, most, some in parts}
            answers = await self._client.ask(
                asked, partial(self._lease_from, kind, calls), some=bool(leases or waits)
            )
            for answer in answers.values():
                granted = [codec.lease(kind, flat, self._unseal) for flat in answer["leases"]]
                unproven -= sum(not lease.proven for lease in granted)
                leases += granted
                if answer["due_ms"] >= 0:
                    waits.append(answer["due_ms"] / 1000)
        if shards:
            waits.append(0)
        return LeaseBatch(leases=leases, next_due_s=min(waits, default=None))

    async def _lease_from(
        self, kind: Kind, calls: Mapping[int, Mapping[str, Any]], shard: int
    ) -> dict[str, Any]:
        # A call that failed may have been applied. The next call repeats its request id, and the script gives
        # the same leases again; otherwise these tasks would wait until the leases end.
        key = kind, shard
        request = self._unanswered.setdefault(key, f"{self._session}-{next(self._requests)}")
        answer = await self._client.run("lease", shard, {**calls[shard], "request": request})
        del self._unanswered[key]
        return codec.fields(answer)

    async def waiting(self, kind: Kind, *, without: Sequence[str]) -> int:
        """How many groups, those in `without` excluded, have a due task and a free slot in the fleet."""
        call = {"kind": kind, "without": list(without)}
        return sum(await self._client.run_on_all("waiting", call))

    async def renew(
        self, kind: Kind, owner: str, leases: Sequence[Lease], lease_s: float
    ) -> Sequence[Settled]:
        """Prolong leases to `lease_s` seconds from now; results in order. Raises `StoreRefused` only."""
        call = {"kind": kind, "owner": owner, "lease_ms": ms(lease_s)}
        return await self._settle("renew", call, [(lease,) for lease in leases], lambda _: {})

    async def release(
        self, kind: Kind, owner: str, results: Sequence[tuple[Lease, str, float]]
    ) -> Sequence[Settled]:
        """Like `retry_later`, for the given reason; the attempt does not count.

        If the last sweep took the task from this lease, the answer is `LEASE_LOST`, and the crash that the
        sweep counted is taken back, because the caller has not crashed.
        """
        return await self._settle("release", {"kind": kind, "owner": owner}, results, codec.release)

    async def retry_later(
        self, kind: Kind, owner: str, results: Sequence[tuple[Lease, Outcome | Delivery, float]]
    ) -> Sequence[Settled]:
        """Tasks become pending again, due after the given seconds.

        The attempt counts, unless the verdict is `THROTTLED`. The outcome's cooldown, if any, begins.
        """
        return await self._settle("retry_later", {"kind": kind, "owner": owner}, results, codec.retry_later)

    async def finish(self, owner: str, results: Sequence[FinishResult]) -> Sequence[Settled]:
        """Downloads reach their terminal state, and their callbacks, if any, become pending.

        Like all that settle, it returns the results in order, and raises `StoreRefused` only.
        """
        return await self._settle("finish", {"owner": owner}, results, codec.finish)

    async def close_callbacks(self, owner: str, results: Sequence[CloseResult]) -> Sequence[Settled]:
        """Callbacks reach `SUCCEEDED` or `FAILED`, and their jobs wait to be reaped."""
        call = {"owner": owner, "proven_ms": ms(PROVEN_S)}
        return await self._settle("close_callback", call, results, codec.close_callback)

    async def sweep(self, kind: Kind, count: int = 100) -> Sequence[str]:
        """Make at most `count` tasks per shard pending again whose lease has ended; returns their job ids."""
        call = {"kind": kind, "count": count}
        return [job_id for ids in await self._client.run_on_all("sweep", call) for job_id in ids]

    async def set_crawl_delay(self, host: str, seconds: float, keep_s: float) -> None:
        """Let downloads from a host start at least this many seconds after each other, for the next `keep_s`.

        Instances whose store knows no limits of hosts do not obey it.
        """
        await self._client.command("SET", self._keys.key(0, "crawl", host), str(seconds), "PX", ms(keep_s))

    # The end of a job

    async def reap(self, count: int, hold_s: float) -> ReapBatch:
        """At most `count` jobs per shard that are due to be deleted; no other call gets them for `hold_s`."""
        call = {"count": count, "hold_ms": ms(hold_s)}
        found = [codec.fields(answer) for answer in await self._client.run_on_all("reap", call)]
        waits = [each["due_ms"] / 1000 for each in found if each["due_ms"] >= 0]
        jobs = [codec.reapable(flat) for each in found for flat in each["jobs"]]
        return ReapBatch(jobs=jobs, next_due_s=min(waits, default=None))

    async def remove(self, job_ids: Sequence[str]) -> None:
        """Delete the records of jobs that `reap` has given; `reap` repeats those of a silent shard later."""

        async def ask(shard: int, ids: Sequence[str]) -> Sequence[None]:
            await self._client.run("remove", shard, {}, [{"id": job_id} for job_id in ids])
            return [None] * len(ids)

        await self._client.per_item(job_ids, str, ask, lambda _: None)

    async def retry(self, job_id: str, *, download: bool, limit: int, durable: bool = True) -> Changed:
        """Send a failed callback again, or (`download`) run a failed download again from the start.

        `limit`: `per_destination` of `callback_limit`, for a callback whose group has no record. Unless
        `durable`, a store that crashes just then may have the job as failed again.
        """
        try:
            shard = shard_of(job_id, self._keys.shards)
        except ValueError:
            return Changed.UNKNOWN
        call = {
            "id": job_id,
            "kind": Kind.DOWNLOAD if download else Kind.CALLBACK,
            "request": f"{self._session}-{next(self._requests)}",
            "limit": str(limit),
            "limits": {name: str(callback_limit(name, limit)) for name in BROKERS},
        }
        return Changed(await self._client.run("retry", shard, call, durable=durable))

    async def cancel(self, spec: JobSpec, plan: CallbackPlan | None, keep_s: float) -> Changed:
        """End a download that is pending or running, as `CANCELLED`; its callback becomes pending.

        The holder of a running one learns of it through `listen`, or when it renews, and the slot stays
        occupied until it has stopped. `plan` is that of the callback of failures. A job without a callback is
        kept for `keep_s` seconds.
        """
        plan = plan or NO_CALLBACK
        call = {
            "id": spec.id,
            "group": spec.aggr_id,
            "error": CANCELLED,
            "callback": plan.group,
            "limit": str(plan.limit),
            "keep_ms": ms(keep_s),
        }
        shard = shard_of(spec.id, self._keys.shards)
        return Changed(await self._client.run("cancel", shard, call, durable=True))

    async def adjust(self, aggr_id: str, changes: Mapping[str, float | bool | None]) -> Aggregation | None:
        """Change an aggregation over the fleet, at once; `None` if it has no work.

        `changes` has values for `limit`, `rate`, `delay` and `paused`; one that is absent stays, and `None`
        clears it, so that what the jobs ask for applies again. What is in flight goes on. The changes are
        deleted with the aggregation's last job.
        """
        call = {name: "" if value is None else str(value) for name, value in changes.items()}
        call["group"] = aggr_id
        if "paused" in changes:
            call["paused"] = "1" if changes["paused"] else ""
        shard = self._keys.aggregation_shard(aggr_id)
        answer = await self._client.run("adjust", shard, call, durable=True)
        return codec.aggregation(answer) if answer else None

    async def report(
        self,
        instance: str,
        role: str,
        facts: Mapping[str, Any],
        ttl_s: float,
        counts: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Publish an instance's facts, which vanish after `ttl_s` seconds of silence.

        `counts` are the present values of its counters, by series. Their growth since the last report that
        the store answered is added to the totals of the role, once.
        """
        uncounted = self._uncounted[instance, role]
        call = {
            "role": role,
            "instance": instance,
            "facts": json.dumps(facts),
            "ttl_ms": ms(ttl_s),
            "counted_ms": ms(COUNTED_S),
        }
        added = uncounted.next(counts)
        call["number"] = uncounted.number
        rows = [{"series": series, "amount": str(amount)} for series, amount in added.items()]
        await self._client.run("report", 0, call, rows)
        uncounted.confirm()

    async def leave(self, instance: str, role: str) -> None:
        """Delete an instance's report."""
        await self._client.run("leave", 0, {"role": role, "instance": instance})

    async def _settle(
        self,
        script: str,
        call: Mapping[str, Any],
        items: Sequence[T],
        row: Callable[[T], dict[str, Any]],
    ) -> Sequence[Settled]:
        """Run a transition on leased tasks; `row` gives the arguments besides id and generation."""

        async def ask(shard: int, items: Sequence[T]) -> Sequence[Settled]:
            rows = []
            for item in items:
                lease = item[0]
                rows.append({"id": lease.id, "generation": str(lease.generation), **row(item)})
            return [Settled(answer) for answer in await self._client.run(script, shard, call, rows)]

        try:
            return await self._client.per_item(items, lambda item: item[0].id, ask, lambda _: Settled.UNKNOWN)
        except StoreUnavailable as error:
            log.warning(Event.STORE_UNAVAILABLE, call=script, count=len(items), reason=str(error))
            return [Settled.UNKNOWN] * len(items)


def _split(total: int, parts: int) -> Iterable[int]:
    """`total` as a sum of `parts` integers that differ by at most one."""
    return (total // parts + (part < total % parts) for part in range(parts))


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
