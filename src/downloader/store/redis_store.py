"""`RedisStore`: a typed wrapper per transition; what Lua answers becomes values of the model."""

from __future__ import annotations

import itertools
import json
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from downloader.config import RedisSettings
from downloader.errors import StoreUnavailable
from downloader.model import (
    Delivery,
    ErrorCode,
    FileFacts,
    JobSpec,
    Kind,
    Lease,
    Outcome,
    State,
    Verdict,
    new_id,
    shard_of,
)
from downloader.observe import Event, get_logger
from downloader.store.job_store import (
    Accepted,
    AggregationSize,
    CallbackPlan,
    CloseResult,
    FinishResult,
    JobView,
    LeaseBatch,
    Load,
    Reapable,
    ReapBatch,
    RetryAnswer,
    Settled,
    Submission,
    TaskView,
)
from downloader.store.load import counts, merged
from downloader.store.redis import Connection, check_layout, open_connection

log = get_logger()

T = TypeVar("T")

RESUBSCRIBE_S = 0.5
"""Pause before listening again after the store was lost; jobs wait at most this much longer for it."""


@asynccontextmanager
async def open_store(settings: RedisSettings) -> AsyncIterator[RedisStore]:
    """A `JobStore` on Redis or Valkey; needs a `trio_asyncio` loop around it.

    Raises:
        ConfigError, StoreUnavailable, StoreRefused: one clear line each, see `open_connection`.
    """
    async with open_connection(settings) as connection:
        yield RedisStore(connection)


class RedisStore:
    """Implements `downloader.store.JobStore`; safe to share between tasks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys
        self._requests = itertools.count()
        self._session = secrets.token_hex(4)
        # Where the next lease call begins, so that no shard is always asked last.
        self._next_shard = 0
        self._unanswered: dict[tuple[Kind, int], str] = {}

    # Submitting

    def new_id(self, aggr_id: str) -> str:
        """A fresh job id for a job of this aggregation."""
        return new_id(self._keys.aggregation_shard(aggr_id), self._keys.shards)

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        """See `JobStore.submit`."""

        async def one_shard(shard: int, items: Sequence[Submission]) -> list[tuple[Accepted, str]]:
            arguments: list[str | int] = []
            for item in items:
                spec = item.spec
                arguments += (spec.id, spec.aggr_id, spec.aggr_limit, spec.aggr_proxy, spec.to_json())
                arguments += (item.idempotency_key, item.body_digest)
            answers = await self._connection.run("submit", shard, *arguments, durable=True)
            return [(Accepted(why), job_id) for why, job_id in answers]

        return await self._by_shard(submissions, lambda item: item.spec.id, one_shard)

    # Leased work

    async def lease(self, kind: Kind, owner: str, count: int, lease_s: float) -> LeaseBatch:
        """See `JobStore.lease`."""
        leases: list[Lease] = []
        waits: list[float] = []
        first = self._next_shard
        self._next_shard = (first + 1) % self._keys.shards
        for offset in range(self._keys.shards):
            shard = (first + offset) % self._keys.shards
            if len(leases) >= count:
                waits.append(0)
                break
            next_due_ms, rows = await self._lease_from(shard, kind, owner, count - len(leases), lease_s)
            leases += (_lease(kind, row) for row in rows)
            if next_due_ms >= 0:
                waits.append(next_due_ms / 1000)
        return LeaseBatch(leases=leases, next_due_s=min(waits, default=None))

    async def _lease_from(self, shard: int, kind: Kind, owner: str, count: int, lease_s: float) -> Any:
        # A call that failed may have been applied: its request is asked again, and what it had been
        # given is given again, instead of lying leased to nobody until the lease ends.
        request = self._unanswered.setdefault((kind, shard), f"{self._session}-{next(self._requests)}")
        answer = await self._connection.run("lease", shard, kind, owner, request, count, _ms(lease_s))
        del self._unanswered[kind, shard]
        return answer

    async def renew(self, kind: Kind, owner: str, leases: Sequence[Lease], lease_s: float) -> Sequence[Lease]:
        """See `JobStore.renew`."""

        async def one_shard(shard: int, items: Sequence[Lease]) -> list[Lease]:
            arguments = [word for item in items for word in (item.id, item.generation)]
            lost = set(await self._connection.run("renew", shard, kind, owner, _ms(lease_s), *arguments))
            return [item for item in items if item.id in lost]

        lost: list[Lease] = []
        for shard, items in self._shards(leases, lambda lease: lease.id).items():
            lost += await one_shard(shard, items)
        return lost

    async def release(
        self, kind: Kind, owner: str, results: Sequence[tuple[Lease, str, float]]
    ) -> Sequence[Settled]:
        """See `JobStore.release`."""
        return await self._settle(
            "release",
            (kind, owner),
            results,
            lambda result: (result[0].id, result[0].generation, result[1], _ms(result[2])),
        )

    async def retry_later(
        self, kind: Kind, owner: str, results: Sequence[tuple[Lease, Outcome | Delivery, float]]
    ) -> Sequence[Settled]:
        """See `JobStore.retry_later`."""

        def words(result: tuple[Lease, Outcome | Delivery, float]) -> tuple[str | int, ...]:
            lease, end, delay_s = result
            head = (lease.id, lease.generation, _ms(delay_s), end.error)
            if isinstance(end, Outcome):
                return (*head, end.error_code, end.response_code)
            return (*head, "", 0)

        return await self._settle("retry_later", (kind, owner), results, words)

    async def finish(self, owner: str, results: Sequence[FinishResult]) -> Sequence[Settled]:
        """See `JobStore.finish`."""

        def words(result: FinishResult) -> tuple[str | int, ...]:
            lease, outcome, plan, keep_s = result
            plan = plan or CallbackPlan(group="", limit=0)
            file = outcome.file
            return (
                lease.id,
                lease.generation,
                _terminal_state(outcome),
                # An attempt that never was (poison, cancelled before it began) does not count.
                0 if outcome.error_code in (ErrorCode.POISON, ErrorCode.CANCELLED) else 1,
                outcome.error,
                outcome.error_code,
                outcome.response_code,
                file.size,
                file.sha256,
                file.mime_type,
                file.image_size,
                plan.group,
                plan.limit,
                _ms(keep_s),
            )

        return await self._settle("finish", (owner,), results, words)

    async def close_callbacks(self, owner: str, results: Sequence[CloseResult]) -> Sequence[Settled]:
        """See `JobStore.close_callbacks`."""

        def words(result: CloseResult) -> tuple[str | int, ...]:
            lease, delivery, keep_s, limit = result
            state = State.SUCCEEDED if delivery.verdict is Verdict.SUCCEEDED else State.FAILED
            return (lease.id, lease.generation, state, delivery.error, _ms(keep_s), limit)

        return await self._settle("close_callback", (owner,), results, words)

    async def sweep(self, kind: Kind, count: int = 100) -> Sequence[str]:
        """See `JobStore.sweep`."""
        ids: list[str] = []
        for shard in range(self._keys.shards):
            ids += await self._connection.run("sweep", shard, kind, count)
        return ids

    # The end of a job

    async def reap(self, count: int, hold_s: float) -> ReapBatch:
        """See `JobStore.reap`."""
        jobs: list[Reapable] = []
        waits: list[float] = []
        for shard in range(self._keys.shards):
            next_due_ms, rows = await self._connection.run("reap", shard, count, _ms(hold_s))
            for job_id, spec, may_have_file in rows:
                parsed = JobSpec.from_json(job_id, spec)
                jobs.append(Reapable(spec=parsed, has_file=may_have_file == 1))
            if next_due_ms >= 0:
                waits.append(next_due_ms / 1000)
        return ReapBatch(jobs=jobs, next_due_s=min(waits, default=None))

    async def remove(self, job_ids: Sequence[str]) -> None:
        """See `JobStore.remove`."""
        for shard, ids in self._shards(job_ids, str).items():
            await self._connection.run("remove", shard, *ids)

    async def retry(self, job_id: str, *, download: bool, limit: int) -> RetryAnswer:
        """See `JobStore.retry`."""
        try:
            shard = self._shard(job_id)
        except ValueError:
            return RetryAnswer.UNKNOWN
        request = f"{self._session}-{next(self._requests)}"
        return RetryAnswer(
            await self._connection.run("retry", shard, job_id, "1" if download else "", request, limit)
        )

    # Looking

    async def get(self, job_id: str) -> JobView | None:
        """See `JobStore.get`."""
        try:
            shard = self._shard(job_id)
        except ValueError:
            return None
        answer = await self._connection.run("get", shard, job_id)
        return _view(job_id, *answer) if answer else None

    async def aggregation_sizes(self) -> Sequence[AggregationSize]:
        """See `JobStore.aggregation_sizes`."""
        sizes: list[AggregationSize] = []
        for shard in range(self._keys.shards):
            key = self._keys.key(shard, "groups", Kind.DOWNLOAD)
            rows = await self._connection.command("ZRANGE", key, 0, -1, "REV", "WITHSCORES")
            pairs = (
                rows
                if rows and isinstance(rows[0], list | tuple)
                else zip(rows[::2], rows[1::2], strict=True)
            )
            sizes += (AggregationSize(aggr_id=name, pending=counts(score)[0]) for name, score in pairs)
        return sorted(sizes, key=lambda size: -size.pending)

    async def load(self, count: int) -> Load:
        """See `JobStore.load`."""
        shards = range(self._keys.shards)
        return merged([await self._connection.run("busiest", shard, count) for shard in shards], count)

    async def report(self, instance: str, role: str, facts: Mapping[str, Any], ttl_s: float) -> None:
        """See `JobStore.report`."""
        await self._connection.run("report", 0, role, instance, json.dumps(facts), _ms(ttl_s))

    async def leave(self, instance: str, role: str) -> None:
        """See `JobStore.leave`."""
        await self._connection.run("leave", 0, role, instance)

    async def reports(self, role: str) -> Sequence[Mapping[str, Any]]:
        """See `JobStore.reports`."""
        names = await self._connection.command("ZRANGE", self._keys.key(0, "instances", role), 0, -1)
        if not names:
            return []
        keys = [self._keys.key(0, "instance", role, name) for name in names]
        return [json.loads(text) for text in await self._connection.command("MGET", *keys) if text]

    async def ping(self) -> None:
        """See `JobStore.ping`."""
        await self._connection.command("GET", self._keys.key(0, "layout"))

    async def listen(
        self,
        wakes: Mapping[Kind, Callable[[], None]],
        *,
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
                async with self._connection.subscribed(list(by_channel)) as receive:
                    if not started:
                        started = True
                        task_status.started()
                    while True:
                        channel, again = await receive()
                        # Whatever was published before we listened is lost: look once by ourselves.
                        by_channel[channel]()
                        if again and channel == first and await check_layout(self._connection):
                            log.error(Event.STORE_EMPTY)
            except StoreUnavailable:
                await trio.sleep(RESUBSCRIBE_S)

    # Shards

    def _shard(self, job_id: str) -> int:
        return shard_of(job_id, self._keys.shards)

    def _shards(self, items: Sequence[T], job_id: Callable[[T], str]) -> Mapping[int, Sequence[T]]:
        if self._keys.shards == 1:
            return {0: items}
        shards = defaultdict(list)
        for item in items:
            shards[self._shard(job_id(item))].append(item)
        return shards

    async def _by_shard(self, items: Sequence[T], job_id: Callable[[T], str], call: Any) -> list[Any]:
        """Call once per shard and put the answers back into the order of `items`."""
        if self._keys.shards == 1:
            return list(await call(0, items))
        indexed = list(enumerate(items))
        answers: list[Any] = [None] * len(indexed)
        for shard, chunk in self._shards(indexed, lambda pair: job_id(pair[1])).items():
            for (index, _), answer in zip(chunk, await call(shard, [item for _, item in chunk]), strict=True):
                answers[index] = answer
        return answers

    async def _settle(
        self,
        script: str,
        head: tuple[str, ...],
        results: Sequence[T],
        words: Callable[[T], tuple[str | int, ...]],
    ) -> Sequence[Settled]:
        async def one_shard(shard: int, items: Sequence[T]) -> list[Settled]:
            arguments = [word for item in items for word in words(item)]
            return [
                Settled(answer) for answer in await self._connection.run(script, shard, *head, *arguments)
            ]

        return await self._by_shard(results, lambda result: result[0].id, one_shard)  # type: ignore[index]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _terminal_state(outcome: Outcome) -> State:
    if outcome.verdict is Verdict.SUCCEEDED:
        return State.SUCCEEDED
    return State.CANCELLED if outcome.error_code is ErrorCode.CANCELLED else State.FAILED


def _lease(kind: Kind, row: Sequence[str]) -> Lease:
    job_id, group, generation, attempts, crashes, limit, proxy, spec, *result = row
    return Lease(
        kind=kind,
        spec=JobSpec.from_json(job_id, spec),
        group=group,
        generation=int(generation),
        attempts=int(attempts),
        crashes=int(crashes),
        limit=int(limit),
        proxy=proxy,
        result=_outcome(dict(zip(_RESULT_FIELDS, result, strict=True))) if result else None,
        result_attempts=int(result[1] or 0) if result else 0,
    )


_RESULT_FIELDS = ("state", "attempts", "error", "code", "status", "size", "sha256", "mime", "image")


def _outcome(fields: Mapping[str, str]) -> Outcome:
    verdict = {
        State.SUCCEEDED: Verdict.SUCCEEDED,
        State.FAILED: Verdict.FAILED,
        State.CANCELLED: Verdict.FAILED,
    }.get(State(fields.get("state") or State.PENDING), Verdict.RETRY)
    return Outcome(
        verdict=verdict,
        error=fields.get("error", ""),
        error_code=ErrorCode(fields.get("code", "")),
        response_code=int(fields.get("status") or 0),
        file=FileFacts(
            size=int(fields.get("size") or 0),
            sha256=fields.get("sha256", ""),
            mime_type=fields.get("mime", ""),
            image_size=fields.get("image", ""),
        ),
    )


def _view(job_id: str, spec: str, download: Sequence[str], callback: Sequence[str]) -> JobView:
    parsed = JobSpec.from_json(job_id, spec)
    facts = _fields(download)
    return JobView(
        spec=parsed,
        download=_task(facts, due_ms=parsed.created_ms),
        outcome=_outcome(facts) if "code" in facts else None,
        callback=_task(_fields(callback), due_ms=None) if callback else None,
    )


def _fields(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _task(fields: Mapping[str, str], *, due_ms: int | None) -> TaskView:
    state = State(fields.get("state", State.PENDING))
    log = [line.partition(" ") for line in fields.get("log", "").splitlines()]
    due = fields.get("due") or due_ms
    return TaskView(
        state=state,
        attempts=int(fields.get("attempts", 0)),
        deliveries=int(fields.get("deliveries", 0)),
        crashes=int(fields.get("crashes", 0)),
        due_ms=int(due) if due is not None and state is State.PENDING else None,
        started_ms=int(fields["started"]) if "started" in fields else None,
        finished_ms=int(fields["finished"]) if "finished" in fields else None,
        log=tuple({"at_ms": int(at), "error": error} for at, _, error in log),
    )
