"""`RedisStore`: one typed method per transition, which runs its script on the shards that it concerns."""

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
from downloader.model import (
    BROKERS,
    Delivery,
    JobIds,
    JobSpec,
    Kind,
    Lease,
    Outcome,
    callback_limit,
    shard_of,
)
from downloader.observe import Event, get_logger
from downloader.store import arguments, records
from downloader.store.arguments import NO_CALLBACK, ms
from downloader.store.counting import COUNTED_S, Uncounted
from downloader.store.job_store import (
    ALL_SHARES,
    Accepted,
    CallbackPlan,
    CancelAnswer,
    CloseResult,
    FinishResult,
    LeaseBatch,
    ReapBatch,
    RetryAnswer,
    Settled,
    Shares,
    Submission,
)
from downloader.store.redis import StoreClient, Timed, open_client
from downloader.store.redis_reader import RedisReader
from downloader.store.sealing import Sealer, open_sealer
from downloader.store.views import Aggregation

log = get_logger()

T = TypeVar("T", bound=tuple[Lease, *tuple[Any, ...]])

CANCELLED = "cancelled by a client"
"""`error` of a job that was cancelled."""

PROVEN_S = 600.0
"""How long a callback destination counts as proven after it has taken a callback."""


@asynccontextmanager
async def open_store(
    settings: RedisSettings,
    timed: Timed = lambda _name, _seconds: None,
    *,
    hosts: Mapping[str, HostSettings] | None = None,
) -> AsyncIterator[RedisStore]:
    """A `JobStore` on Redis or Valkey; needs a `trio_asyncio` loop around it.

    Args:
        settings: where it is.
        timed: see `Timed`.
        hosts: limits by host or pattern, which downloads that this instance leases obey; `None`: hosts have
            no limits, also no delay of their robots.txt.

    Raises:
        ConfigError, StoreUnavailable, StoreRefused: one clear line each, see `open_client`.
    """
    sealer = open_sealer(settings.encryption_keys)
    async with open_client(settings, timed) as client:
        yield RedisStore(client, sealer, hosts)


class RedisStore(RedisReader):
    """Implements `downloader.store.JobStore`; safe to share between tasks."""

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
        """A fresh job id for a job of this aggregation."""
        return self._ids.new(self._keys.aggregation_shard(aggr_id), self._keys.shards)

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        """See `JobStore.submit`."""

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
                arguments.submit(item, permitted, self._seal, with_host=self._hosts is not None)
                for item, permitted in items
            ]
            answers = await self._client.run("submit", shard, {}, rows, durable=True)
            return [(Accepted(why), job_id) for why, job_id in answers]

        return await self._shards.per_item(
            submissions, lambda item: item.spec.id, ask, lambda item: (Accepted.UNAVAILABLE, item.spec.id)
        )

    # Leased work

    async def lease(
        self, kind: Kind, owner: str, count: int, lease_s: float, *, shares: Shares = ALL_SHARES
    ) -> LeaseBatch:
        """See `JobStore.lease`."""
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
            answers = await self._shards.ask(
                asked, partial(self._lease_from, kind, calls), some=bool(leases or waits)
            )
            for answer in answers.values():
                granted = [records.lease(kind, flat, self._unseal) for flat in answer["leases"]]
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
        return records.fields(answer)

    async def waiting(self, kind: Kind, *, without: Sequence[str]) -> int:
        """See `JobStore.waiting`."""
        call = {"kind": kind, "without": list(without)}
        return sum(await self._shards.run_on_all("waiting", call))

    async def renew(
        self, kind: Kind, owner: str, leases: Sequence[Lease], lease_s: float
    ) -> Sequence[Settled]:
        """See `JobStore.renew`."""
        call = {"kind": kind, "owner": owner, "lease_ms": ms(lease_s)}
        return await self._settle("renew", call, [(lease,) for lease in leases], lambda _: {})

    async def release(
        self, kind: Kind, owner: str, results: Sequence[tuple[Lease, str, float]]
    ) -> Sequence[Settled]:
        """See `JobStore.release`."""
        return await self._settle("release", {"kind": kind, "owner": owner}, results, arguments.release)

    async def retry_later(
        self, kind: Kind, owner: str, results: Sequence[tuple[Lease, Outcome | Delivery, float]]
    ) -> Sequence[Settled]:
        """See `JobStore.retry_later`."""
        return await self._settle(
            "retry_later", {"kind": kind, "owner": owner}, results, arguments.retry_later
        )

    async def finish(self, owner: str, results: Sequence[FinishResult]) -> Sequence[Settled]:
        """See `JobStore.finish`."""
        return await self._settle("finish", {"owner": owner}, results, arguments.finish)

    async def close_callbacks(self, owner: str, results: Sequence[CloseResult]) -> Sequence[Settled]:
        """See `JobStore.close_callbacks`."""
        call = {"owner": owner, "proven_ms": ms(PROVEN_S)}
        return await self._settle("close_callback", call, results, arguments.close_callback)

    async def sweep(self, kind: Kind, count: int = 100) -> Sequence[str]:
        """See `JobStore.sweep`."""
        call = {"kind": kind, "count": count}
        return [job_id for ids in await self._shards.run_on_all("sweep", call) for job_id in ids]

    async def set_crawl_delay(self, host: str, seconds: float, keep_s: float) -> None:
        """See `JobStore.set_crawl_delay`."""
        await self._client.command("SET", self._keys.key(0, "crawl", host), str(seconds), "PX", ms(keep_s))

    # The end of a job

    async def reap(self, count: int, hold_s: float) -> ReapBatch:
        """See `JobStore.reap`."""
        call = {"count": count, "hold_ms": ms(hold_s)}
        found = [records.fields(answer) for answer in await self._shards.run_on_all("reap", call)]
        waits = [each["due_ms"] / 1000 for each in found if each["due_ms"] >= 0]
        jobs = [records.reapable(flat) for each in found for flat in each["jobs"]]
        return ReapBatch(jobs=jobs, next_due_s=min(waits, default=None))

    async def remove(self, job_ids: Sequence[str]) -> None:
        """See `JobStore.remove`."""

        async def ask(shard: int, ids: Sequence[str]) -> Sequence[None]:
            await self._client.run("remove", shard, {}, [{"id": job_id} for job_id in ids])
            return [None] * len(ids)

        await self._shards.per_item(job_ids, str, ask, lambda _: None)

    async def retry(self, job_id: str, *, download: bool, limit: int) -> RetryAnswer:
        """See `JobStore.retry`."""
        try:
            shard = shard_of(job_id, self._keys.shards)
        except ValueError:
            return RetryAnswer.UNKNOWN
        call = {
            "id": job_id,
            "kind": Kind.DOWNLOAD if download else Kind.CALLBACK,
            "request": f"{self._session}-{next(self._requests)}",
            "limit": str(limit),
            "limits": {name: str(callback_limit(name, limit)) for name in BROKERS},
        }
        return RetryAnswer(await self._client.run("retry", shard, call))

    async def cancel(self, spec: JobSpec, plan: CallbackPlan | None, keep_s: float) -> CancelAnswer:
        """See `JobStore.cancel`."""
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
        return CancelAnswer(await self._client.run("cancel", shard, call, durable=True))

    async def adjust(self, aggr_id: str, changes: Mapping[str, float | bool | None]) -> Aggregation | None:
        """See `JobStore.adjust`."""
        call = {name: "" if value is None else str(value) for name, value in changes.items()}
        call["group"] = aggr_id
        if "paused" in changes:
            call["paused"] = "1" if changes["paused"] else ""
        shard = self._keys.aggregation_shard(aggr_id)
        answer = await self._client.run("adjust", shard, call, durable=True)
        return records.aggregation(answer) if answer else None

    async def report(
        self,
        instance: str,
        role: str,
        facts: Mapping[str, Any],
        ttl_s: float,
        counts: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """See `JobStore.report`."""
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
        """See `JobStore.leave`."""
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
            return await self._shards.per_item(items, lambda item: item[0].id, ask, lambda _: Settled.UNKNOWN)
        except StoreUnavailable as error:
            log.warning(Event.STORE_UNAVAILABLE, call=script, count=len(items), reason=str(error))
            return [Settled.UNKNOWN] * len(items)


def _split(total: int, parts: int) -> Iterable[int]:
    """`total` as a sum of `parts` integers that differ by at most one."""
    return (total // parts + (part < total % parts) for part in range(parts))
