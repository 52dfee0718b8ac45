"""`RedisStore`: one typed method per transition, which runs its script on the shards that it concerns."""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import trio

from downloader.config import RedisSettings
from downloader.errors import StoreError, StoreRefused, StoreUnavailable
from downloader.model import (
    Delivery,
    ErrorCode,
    JobIds,
    JobSpec,
    Kind,
    Lease,
    Outcome,
    State,
    Verdict,
    shard_of,
)
from downloader.observe import Event, get_logger
from downloader.store import records
from downloader.store.counting import COUNTED_S, Uncounted
from downloader.store.job_store import (
    ALL_SHARES,
    SUMMED_GROUPS,
    Accepted,
    Aggregation,
    AggregationPage,
    AggregationSize,
    Backlog,
    CallbackPlan,
    CancelAnswer,
    CloseResult,
    FinishResult,
    JobPage,
    JobView,
    LeaseBatch,
    Listed,
    Load,
    ReapBatch,
    RetryAnswer,
    Settled,
    Shares,
    Submission,
)
from downloader.store.redis import StoreClient, Timed, check_layout, open_client
from downloader.store.sealing import Sealer, open_sealer

log = get_logger()

T = TypeVar("T")
A = TypeVar("A")

RESUBSCRIBE_S = 0.5
"""Pause before subscribing again after the connection to the store was lost."""

_CURSOR = re.compile(r"([0-9]{1,4})\.([0-9]{0,20})\.([0-9A-Za-z]*)")
"""Shard, score and id of the last job that was looked at."""

_SCAN_CURSOR = re.compile(r"([0-9]{1,4})\.([0-9]{1,20})")
"""Shard, and the cursor of ZSCAN there."""

NO_CALLBACK = CallbackPlan(group="", limit=0)

CANCELLED = "cancelled by a client"
"""`error` of a job that was cancelled."""

PROVEN_S = 600.0
"""How long a callback destination counts as proven after it has taken a callback."""


@asynccontextmanager
async def open_store(
    settings: RedisSettings, timed: Timed = lambda _name, _seconds: None
) -> AsyncIterator[RedisStore]:
    """A `JobStore` on Redis or Valkey; needs a `trio_asyncio` loop around it. `timed`: see `Timed`.

    Raises:
        ConfigError, StoreUnavailable, StoreRefused: one clear line each, see `open_client`.
    """
    sealer = open_sealer(settings.encryption_keys)
    async with open_client(settings, timed) as client:
        yield RedisStore(client, sealer)


class RedisStore:
    """Implements `downloader.store.JobStore`; safe to share between tasks."""

    def __init__(self, client: StoreClient, sealer: Sealer | None = None) -> None:
        self._client = client
        self._seal = None if sealer is None else sealer.seal
        self._unseal: records.Unseal = (lambda _: None) if sealer is None else sealer.unseal
        self._keys = client.keys
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
                {
                    "id": item.spec.id,
                    "group": item.spec.aggr_id,
                    "limit": str(item.spec.aggr_limit),
                    **_pace(item.spec),
                    "due": item.spec.not_before,
                    "proxy": item.spec.aggr_proxy,
                    "spec": item.spec.to_json(self._seal),
                    "idempotency": item.idempotency_key,
                    "values": item.value_digest,
                    "body": item.body_digest,
                    **({"permitted": permitted} if item.permits else {}),
                }
                for item, permitted in items
            ]
            answers = await self._client.run("submit", shard, {}, rows, durable=True)
            return [(Accepted(why), job_id) for why, job_id in answers]

        return await self._per_item(
            submissions, _submission_id, ask, lambda item: (Accepted.UNAVAILABLE, item.spec.id)
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
            "lease_ms": _ms(lease_s),
            "last": list(shares.last),
            "never": list(shares.never),
        }
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
            answers = await self._ask(
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
        return sum(await self._run_on_all("waiting", call))

    async def renew(
        self, kind: Kind, owner: str, leases: Sequence[Lease], lease_s: float
    ) -> Sequence[Settled]:
        """See `JobStore.renew`."""
        call = {"kind": kind, "owner": owner, "lease_ms": _ms(lease_s)}
        return await self._settle("renew", call, leases, lambda lease: lease, lambda _: {})

    async def release(
        self, kind: Kind, owner: str, results: Sequence[tuple[Lease, str, float]]
    ) -> Sequence[Settled]:
        """See `JobStore.release`."""

        def row(result: tuple[Lease, str, float]) -> dict[str, Any]:
            _, reason, delay_s = result
            return {"error": reason, "delay_ms": _ms(delay_s)}

        return await self._settle("release", {"kind": kind, "owner": owner}, results, _first, row)

    async def retry_later(
        self, kind: Kind, owner: str, results: Sequence[tuple[Lease, Outcome | Delivery, float]]
    ) -> Sequence[Settled]:
        """See `JobStore.retry_later`."""

        def row(result: tuple[Lease, Outcome | Delivery, float]) -> dict[str, Any]:
            _, end, delay_s = result
            code, status = (end.error_code, end.response_code) if isinstance(end, Outcome) else ("", 0)
            return {
                "error": end.error,
                "code": code,
                "status": str(status),
                "attempts": "0" if end.verdict is Verdict.THROTTLED else "1",
                "delay_ms": _ms(delay_s),
                **_cooldown(end),
            }

        return await self._settle("retry_later", {"kind": kind, "owner": owner}, results, _first, row)

    async def finish(self, owner: str, results: Sequence[FinishResult]) -> Sequence[Settled]:
        """See `JobStore.finish`."""

        def row(result: FinishResult) -> dict[str, Any]:
            _, outcome, plan, keep_s = result
            plan = plan or NO_CALLBACK
            file = outcome.file
            # A job that ends as poison has made no attempt under this lease, and one at its deadline none to
            # its end.
            counts = outcome.error_code not in (ErrorCode.POISON, ErrorCode.DEADLINE)
            return {
                "state": records.terminal_state(outcome),
                "attempts": "1" if counts else "0",
                "error": outcome.error,
                "code": outcome.error_code,
                "status": str(outcome.response_code),
                "size": str(file.size),
                "sha256": file.sha256,
                "mime": file.mime_type,
                "image": file.image_size,
                **({"filename": file.filename} if file.filename else {}),
                "callback": plan.group,
                "limit": str(plan.limit),
                "keep_ms": _ms(keep_s),
                **_cooldown(outcome),
            }

        return await self._settle("finish", {"owner": owner}, results, _first, row)

    async def close_callbacks(self, owner: str, results: Sequence[CloseResult]) -> Sequence[Settled]:
        """See `JobStore.close_callbacks`."""

        def row(result: CloseResult) -> dict[str, Any]:
            _, delivery, keep_s, limit = result
            state = State.SUCCEEDED if delivery.verdict is Verdict.SUCCEEDED else State.FAILED
            return {"state": state, "error": delivery.error, "keep_ms": _ms(keep_s), "limit": str(limit)}

        call = {"owner": owner, "proven_ms": _ms(PROVEN_S)}
        return await self._settle("close_callback", call, results, _first, row)

    async def sweep(self, kind: Kind, count: int = 100) -> Sequence[str]:
        """See `JobStore.sweep`."""
        call = {"kind": kind, "count": count}
        return [job_id for ids in await self._run_on_all("sweep", call) for job_id in ids]

    # The end of a job

    async def reap(self, count: int, hold_s: float) -> ReapBatch:
        """See `JobStore.reap`."""
        call = {"count": count, "hold_ms": _ms(hold_s)}
        found = [records.fields(answer) for answer in await self._run_on_all("reap", call)]
        waits = [each["due_ms"] / 1000 for each in found if each["due_ms"] >= 0]
        jobs = [records.reapable(flat) for each in found for flat in each["jobs"]]
        return ReapBatch(jobs=jobs, next_due_s=min(waits, default=None))

    async def remove(self, job_ids: Sequence[str]) -> None:
        """See `JobStore.remove`."""

        async def ask(shard: int, ids: Sequence[str]) -> Sequence[None]:
            await self._client.run("remove", shard, {}, [{"id": job_id} for job_id in ids])
            return [None] * len(ids)

        await self._per_item(job_ids, str, ask, lambda _: None)

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
            "keep_ms": _ms(keep_s),
        }
        return CancelAnswer(await self._client.run("cancel", shard_of(spec.id, self._keys.shards), call))

    # Looking

    async def jobs(self, which: Listed, aggr_id: str, cursor: str, count: int) -> JobPage:
        """See `JobStore.jobs`."""
        shards = [self._keys.aggregation_shard(aggr_id)] if aggr_id else list(self._all)
        match = _CURSOR.fullmatch(cursor or f"{shards[0]}..")
        if match is None or int(match[1]) not in shards:
            raise ValueError("no such cursor")
        shard = int(match[1])
        call = {"which": which, "group": aggr_id, "count": count, "score": match[2], "id": match[3]}
        answer = records.fields(await self._client.run("list", shard, call))
        behind = ""
        if answer["id"]:
            behind = f"{shard}.{answer['score']}.{answer['id']}"
        elif shard != shards[-1]:
            behind = f"{shard + 1}.."
        return JobPage(jobs=[records.listed_job(flat) for flat in answer["jobs"]], cursor=behind)

    async def get(self, job_id: str) -> JobView | None:
        """See `JobStore.get`."""
        try:
            shard = shard_of(job_id, self._keys.shards)
        except ValueError:
            return None
        answer = await self._client.run("get", shard, {"id": job_id})
        return records.job_view(job_id, answer, self._unseal) if answer else None

    async def aggregation_sizes(self) -> Sequence[AggregationSize]:
        """See `JobStore.aggregation_sizes`."""

        async def ask(shard: int) -> list[AggregationSize]:
            key = self._keys.key(shard, "groups", Kind.DOWNLOAD)
            flat = await self._client.command("ZRANGE", key, 0, -1, "REV", "WITHSCORES", shard=shard)
            pairs = flat if flat and isinstance(flat[0], list | tuple) else records.fields(flat).items()
            return [AggregationSize(aggr_id=name, pending=records.counts(score)[0]) for name, score in pairs]

        sizes = [size for answer in (await self._ask(self._all, ask)).values() for size in answer]
        return sorted(sizes, key=lambda size: -size.pending)

    async def aggregations(self, cursor: str, count: int) -> AggregationPage:
        """See `JobStore.aggregations`."""
        match = _SCAN_CURSOR.fullmatch(cursor or "0.0")
        if match is None or int(match[1]) >= self._keys.shards or int(match[2]) >= 2**64:
            raise ValueError("no such cursor")
        shard = int(match[1])
        call = {"cursor": match[2], "count": count}
        answer = records.fields(await self._client.run("aggregations", shard, call))
        if answer["cursor"] != "0":
            behind = f"{shard}.{answer['cursor']}"
        else:
            behind = f"{shard + 1}.0" if shard + 1 < self._keys.shards else ""
        found = [records.aggregation(flat) for flat in answer["aggregations"]]
        return AggregationPage(aggregations=found, cursor=behind)

    async def aggregation(self, aggr_id: str) -> Aggregation | None:
        """See `JobStore.aggregation`."""
        shard = self._keys.aggregation_shard(aggr_id)
        answer = records.fields(await self._client.run("aggregations", shard, {"group": aggr_id}))
        return next(map(records.aggregation, answer["aggregations"]), None)

    async def adjust(self, aggr_id: str, changes: Mapping[str, float | bool | None]) -> Aggregation | None:
        """See `JobStore.adjust`."""
        call = {name: "" if value is None else str(value) for name, value in changes.items()}
        call["group"] = aggr_id
        if "paused" in changes:
            call["paused"] = "1" if changes["paused"] else ""
        shard = self._keys.aggregation_shard(aggr_id)
        answer = await self._client.run("adjust", shard, call, durable=True)
        return records.aggregation(answer) if answer else None

    async def load(self, count: int) -> Load:
        """See `JobStore.load`."""
        return records.load(await self._run_on_all("busiest", {"count": count}), count)

    async def backlog(self, destinations: int) -> Backlog:
        """See `JobStore.backlog`."""
        call = {"groups": SUMMED_GROUPS, "destinations": destinations}
        return records.backlog(await self._run_on_all("backlog", call), destinations)

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
            "ttl_ms": _ms(ttl_s),
            "counted_ms": _ms(COUNTED_S),
        }
        added = uncounted.next(counts)
        call["number"] = uncounted.number
        rows = [{"series": series, "amount": str(amount)} for series, amount in added.items()]
        await self._client.run("report", 0, call, rows)
        uncounted.confirm()

    async def totals(self, role: str) -> Mapping[str, int]:
        """See `JobStore.totals`."""
        found = await self._client.command("HGETALL", self._keys.key(0, "totals", role))
        return {series: int(value) for series, value in found.items()}

    async def leave(self, instance: str, role: str) -> None:
        """See `JobStore.leave`."""
        await self._client.run("leave", 0, {"role": role, "instance": instance})

    async def reports(self, role: str) -> Sequence[Mapping[str, Any]]:
        """See `JobStore.reports`."""
        names = await self._client.command("ZRANGE", self._keys.key(0, "instances", role), 0, -1)
        if not names:
            return []
        keys = [self._keys.key(0, "instance", role, name) for name in names]
        return [json.loads(text) for text in await self._client.command("MGET", *keys) if text]

    async def ping(self) -> None:
        """See `JobStore.ping`."""
        await self._ask(self._all, self._client.ping)

    async def listen(
        self,
        wakes: Mapping[Kind, Callable[[], None]],
        *,
        cancelled: Callable[[str], None] = lambda _: None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See `JobStore.listen`."""
        by_channel = {
            self._keys.key(shard, "wake", kind): wake
            for kind, wake in wakes.items()
            for shard in range(self._keys.shards)
        }
        first, started = next(iter(by_channel)), False
        while True:
            try:
                async with self._client.subscribed(list(by_channel)) as receive:
                    if not started:
                        started = True
                        task_status.started()
                    while True:
                        channel, text = await receive()
                        if text:
                            cancelled(text)
                            continue
                        # Also for a subscription: what was published before it is lost.
                        by_channel[channel]()
                        if text is None and channel == first and await check_layout(self._client):
                            log.error(Event.STORE_EMPTY)
            except StoreUnavailable:
                await trio.sleep(RESUBSCRIBE_S)

    # Shards

    @property
    def _all(self) -> range:
        return range(self._keys.shards)

    async def _run_on_all(self, script: str, call: Mapping[str, Any]) -> Sequence[Any]:
        """The answers of all shards that answer. Raises as `_ask` does."""
        answers = await self._ask(self._all, lambda shard: self._client.run(script, shard, call))
        return list(answers.values())

    async def _settle(
        self,
        script: str,
        call: Mapping[str, Any],
        items: Sequence[T],
        lease: Callable[[T], Lease],
        row: Callable[[T], dict[str, Any]],
    ) -> Sequence[Settled]:
        """Run a transition on leased tasks; `row` gives an item's arguments besides id and generation."""

        async def ask(shard: int, items: Sequence[T]) -> Sequence[Settled]:
            rows = []
            for item in items:
                held = lease(item)
                rows.append({"id": held.id, "generation": str(held.generation), **row(item)})
            return [Settled(answer) for answer in await self._client.run(script, shard, call, rows)]

        try:
            return await self._per_item(items, lambda item: lease(item).id, ask, lambda _: Settled.UNKNOWN)
        except StoreUnavailable as error:
            log.warning(Event.STORE_UNAVAILABLE, call=script, count=len(items), reason=str(error))
            return [Settled.UNKNOWN] * len(items)

    async def _per_item(
        self,
        items: Sequence[T],
        job_id: Callable[[T], str],
        ask: Callable[[int, Sequence[T]], Awaitable[Sequence[A]]],
        missing: Callable[[T], A],
    ) -> list[A]:
        """Ask the shards of the items, each once for all of its items.

        Answers in order of the items; `missing` gives the answers for shards that did not answer.

        Raises:
            StoreUnavailable: no shard answered.
        """
        places: defaultdict[int, list[int]] = defaultdict(list)
        for place, item in enumerate(items):
            places[shard_of(job_id(item), self._keys.shards)].append(place)
        answers = [missing(item) for item in items]
        found = await self._ask(places, lambda shard: ask(shard, [items[place] for place in places[shard]]))
        for shard, of_shard in found.items():
            for place, answer in zip(places[shard], of_shard, strict=True):
                answers[place] = answer
        return answers

    async def _ask(
        self, shards: Collection[int], ask: Callable[[int], Awaitable[A]], *, some: bool = False
    ) -> dict[int, A]:
        """Ask shards at the same time; returns the answers by shard, and logs which shards did not answer.

        Raises:
            StoreUnavailable: none answered. Not if `some` is true: others have answered before.
        """
        if self._keys.shards == 1:
            return {shard: await ask(shard) for shard in shards}
        answers: dict[int, A] = {}
        errors: dict[int, StoreError] = {}

        async def one(shard: int) -> None:
            try:
                answers[shard] = await ask(shard)
            except StoreRefused as error:
                errors[shard] = StoreUnavailable(f"shard {shard}: {error}")
            except StoreUnavailable as error:
                errors[shard] = error

        async with trio.open_nursery() as nursery:
            for shard in shards:
                nursery.start_soon(one, shard)
        if errors and not answers and not some:
            raise next(iter(errors.values()))
        for shard, error in errors.items():
            log.warning(Event.STORE_UNAVAILABLE, shard=shard, reason=str(error))
        return answers


def _submission_id(item: Submission) -> str:
    return item.spec.id


def _first(result: tuple[Lease, *tuple[Any, ...]]) -> Lease:
    return result[0]


def _pace(spec: JobSpec) -> dict[str, str]:
    """The rate and the delay that a job names."""
    if spec.aggr_rate is None and spec.aggr_delay is None:
        return {}
    named = {"rate": spec.aggr_rate, "delay": spec.aggr_delay}
    return {name: str(value) for name, value in named.items() if value is not None}


def _cooldown(end: Outcome | Delivery) -> dict[str, Any]:
    """The arguments of `cool_down` in `_lib.lua`."""
    if not isinstance(end, Outcome) or end.cooldown is None:
        return {}
    return {"cool_ms": _ms(end.cooldown.seconds), "asked": end.cooldown.asked}


def _split(total: int, parts: int) -> Iterable[int]:
    """`total` as a sum of `parts` integers that differ by at most one."""
    return (total // parts + (part < total % parts) for part in range(parts))


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
