"""`JobStore`: one method per transition, which runs the script on the shards concerned."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

import trio
from pydantic import ValidationError

from downloader.config import HostSettings, RedisSettings
from downloader.errors import PartlyChanged, StoreUnavailable
from downloader.ids import JobIds, shard_of
from downloader.model import BROKERS, NO_LIMITS, JobSpec, Kind, Lease, callback_limit
from downloader.observe import get_logger
from downloader.store import codec, views
from downloader.store.client import MAX_ROWS, StoreClient, Timed, open_client
from downloader.store.codec import ms
from downloader.store.groups import GroupStore
from downloader.store.repeats import COUNTED_S, LeaseRequests, Uncounted
from downloader.store.scripts import Library
from downloader.store.sealing import Sealer, open_sealer
from downloader.store.values import (
    ALL_SHARES,
    AUDITED,
    FLEET_ACTIONS,
    POINT_MS,
    POINTS,
    Accepted,
    CallbackPlan,
    Changed,
    LeaseBatch,
    ReapBatch,
    Settled,
    Settlement,
    Shares,
    Sharing,
    Submission,
)
from downloader.wire import Aggregation, AggregationChanges, AuditEntry, BacklogPoint

log = get_logger()

CANCELLED = "cancelled by a client"
"""`error` of a job that was cancelled."""

RUN_PAUSE = timedelta(minutes=1)
"""Longest time between two batches of one run of a client: a request that is repeated takes some seconds."""


@asynccontextmanager
async def open_store(
    settings: RedisSettings,
    timed: Timed = lambda _name, _seconds: None,
    *,
    hosts: Mapping[str, HostSettings] | None = None,
    rates: Mapping[str, float] | None = None,
    library: Library | None = None,
) -> AsyncIterator[JobStore]:
    """Open a `JobStore` on Redis or Valkey, inside a `trio_asyncio` loop.

    `hosts` are the limits by host or pattern for downloads that this instance leases. With `None` there are
    no limits by host, and the delay of a robots.txt is ignored. `rates` are the starts per second of callback
    destinations, by queue, over the fleet; in a Cluster each shard has an equal part.

    Raises:
        ConfigError, StoreUnavailable, StoreRefused: one clear line each, see `open_client`.
    """
    sealer = open_sealer(settings.encryption_keys)
    async with open_client(settings, timed, library=library) as client:
        yield JobStore(client, sealer, hosts, rates)


class JobStore(GroupStore):
    """The fleet's shared state in Redis or Valkey; safe to share between tasks.

    Two methods have a restriction: calls of `lease` with the same `LeaseRequests` must not overlap, and
    neither must calls of `report` for the same instance and role.

    A method that changes something runs an atomic transition (`docs/state-machine.md`) on each shard
    concerned; only a Cluster has more than one shard. Every call is bounded in time and may be repeated.

    Unless a method says otherwise, it raises `StoreUnavailable` if none of the shards answers (the call may
    have been applied), and `StoreRefused` if the store will never carry out the call. If only some shards
    fail, the items of the other shards get their results as usual.
    """

    def __init__(
        self,
        client: StoreClient,
        sealer: Sealer | None = None,
        hosts: Mapping[str, HostSettings] | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(client, sealer)
        shards = client.keys.shards
        self._rates = {queue: str(rate / shards) for queue, rate in (rates or {}).items()}
        self._limits = {
            name: host.model_dump_json(exclude_defaults=True) for name, host in sorted((hosts or {}).items())
        }
        self._hosts = None
        if hosts is not None:
            self._hosts = _digest_of(json.dumps(self._limits)) if hosts else ""
        self._ids = JobIds()
        self._uncounted: defaultdict[tuple[str, str], Uncounted] = defaultdict(Uncounted)

    # Submitting

    def new_id(self, aggr_id: str) -> str:
        """A new id for a job of an aggregation; the last character of the id gives the shard."""
        return self._ids.new(self._keys.aggregation_shard(aggr_id), self._keys.shards)

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        """Enqueue jobs with one round trip per shard; returns `(result, job id)` in order. Atomic per job.

        A job of a shard whose memory is almost full (see `watch_memory`) is `UNAVAILABLE`.

        Raises:
            StoreUnavailable: no shard answered; the jobs may have been enqueued.
        """
        results = await self._submit([(item, item.spec.aggr_proxy) for item in submissions])
        # The script cannot match patterns, so it reports the proxy of the aggregation. If that proxy is
        # permitted, the submission is repeated with the proxy's name.
        again = {
            place: (submissions[place], proxy)
            for place, (accepted, proxy) in enumerate(results)
            if accepted is Accepted.PROXIED and (permits := submissions[place].permits) and permits(proxy)
        }
        if again:
            for place, result in zip(again, await self._submit(list(again.values())), strict=True):
                results[place] = result
        return results

    async def _submit(self, submissions: Sequence[tuple[Submission, str]]) -> list[tuple[Accepted, str]]:
        """Submit pairs of a job and the proxy that the job's aggregation may have."""
        rows = [
            codec.submit(submission, permitted, self._seal, with_host=self._hosts is not None)
            for submission, permitted in submissions
        ]
        admitted = [
            row for row in rows if self._mark.admits(shard_of(row["id"], self._keys.shards), row["spec"])
        ]
        joins = self._own and self._client.joins_durable(len(admitted))
        call = self._wake_own(Kind.DOWNLOAD) if joins else {}
        entries = await self._client.run_rows("submit", call, admitted, durable=True)
        results = {
            row["id"]: (Accepted(entry[0]), entry[1])
            for row, entry in zip(admitted, entries, strict=True)
            if entry is not None
        }
        return [results.get(row["id"], (Accepted.UNAVAILABLE, row["id"])) for row in rows]

    def _wake_own(self, kind: Kind) -> Mapping[str, Any]:
        """Wake the idle owner of `listen`; returns the argument that tells the script of the owner.

        To be called right before a call that joins others, so that the owner's lease call follows in the same
        round trip. In a Cluster the owner would ask all shards, so the script wakes it instead.
        """
        wake = self._own.get(kind) if self._keys.shards == 1 else None
        return {"own": {kind: self._owner}} if wake is not None and wake() else {}

    async def watch_memory(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read how full the servers' memory is while jobs are submitted, until cancelled.

        While this runs, `submit` leaves the memory free that the accepted jobs need to end.
        """
        await self._mark.watch(task_status=task_status)

    def memory_is_full(self) -> bool:
        """Whether new jobs are `UNAVAILABLE` because memory is full; known only while `watch_memory` runs."""
        return self._mark.is_full()

    # Leased work

    async def lease(
        self,
        kind: Kind,
        owner: str,
        count: int,
        lease_s: float,
        *,
        shares: Shares = ALL_SHARES,
        requests: LeaseRequests | None = None,
        room: int = 0,
        woken: Collection[int | None] = (None,),
        types: Collection[str] | None = None,
    ) -> LeaseBatch:
        """Lease up to `count` due tasks to `owner` for `lease_s` seconds, fairly over the queues.

        `room` is the number of tasks that the owner could work on in all. An owner that has room left is
        noted as idle and is woken when more can run. Such an owner must `listen`, and must `withdraw` before
        the last call. An owner whose `room` is 0 is not noted.

        In a Cluster, an owner with room asks only shards that may have work: the `woken` shards (named by
        `listen`; all if `None` is among them), and shards that are due by the former answers to `requests`.

        `types` are the types of callbacks that the owner can deliver; `None`: all. Callbacks of other types
        are left to owners that can deliver them; if there is no such owner, any owner gets them.

        If the answer to a call is lost, the next call with the same `requests` returns the same leases again.
        A `count` of 0 asks only for such leases.

        Raises:
            StoreUnavailable: no shard answered. A later call returns leases that may have been granted.
        """
        requests = requests or LeaseRequests()
        shards = self._shards_to_lease_from(requests, count, room, woken)
        common = codec.given(
            kind=kind,
            owner=owner,
            lease_ms=ms(lease_s),
            last=list(shares.last),
            never=list(shares.never),
            suspects=shares.suspects,
            token=shares.token,
            tokens=shares.tokens,
            room=room or None,
            types=codec.types(types),
            **self._limits_of(kind),
        )
        wanted = _Wanted(count, shares)
        leases: list[Lease] = []
        due_ms: list[int] = []
        while shards and (wanted.count > 0 or not count):
            # At most one shard per free slot at a time, so that no more leases are granted than there are
            # slots.
            at_once = wanted.count if count else len(shards)
            asked, shards = shards[:at_once], shards[at_once:]
            limits = wanted.split(len(asked))
            calls = {shard: common | of_shard for shard, of_shard in zip(asked, limits, strict=True)}
            ask = partial(self._lease_from, calls, requests)
            for shard, answer in (await self._client.ask(asked, ask, some=bool(due_ms))).items():
                granted = [codec.lease(kind, flat, self._unseal) for flat in answer["leases"]]
                wanted.subtract(granted)
                leases += granted
                due_ms.append(answer["due_ms"])
                has_room = not room or len(granted) < room
                requests.note(shard, answer["look_ms"], answer["due_ms"], idle=has_room)
        if 0 < room <= len(leases) and requests.idle_at:
            # Each shard notes an owner that has room after this shard's answer alone.
            with suppress(StoreUnavailable):
                await self.withdraw(kind, owner, types, requests=requests)
        next_due_s = min((due / 1000 for due in due_ms if due >= 0), default=None)
        return LeaseBatch(
            leases=leases,
            next_due_s=0 if shards else next_due_s,
            look_s=requests.look_s(),
        )

    async def withdraw(
        self,
        kind: Kind,
        owner: str,
        types: Collection[str] | None = None,
        *,
        requests: LeaseRequests | None = None,
    ) -> None:
        """Wake other instances in place of `owner`, until the owner's next lease call.

        `types` are as for `lease`. With the `requests` of the owner's lease calls, only shards that have
        noted the owner as idle are asked.
        """
        shards = range(self._keys.shards) if requests is None else requests.withdraw()
        call = codec.given(kind=kind, owner=owner, types=codec.types(types))
        await self._client.ask(shards, lambda shard: self._client.run("withdraw", shard, call))

    def _limits_of(self, kind: Kind) -> Mapping[str, Any]:
        """The arguments of `lease.lua` with this instance's own limits."""
        return {"hosts": self._hosts} if kind is Kind.DOWNLOAD else {"rates": self._rates or None}

    def _shards_to_lease_from(
        self, requests: LeaseRequests, count: int, room: int, woken: Collection[int | None]
    ) -> list[int]:
        """The shards of a lease call, in the order in which they are asked; arguments as for `lease`."""
        if not count:
            return requests.unanswered
        shards = self._shards_in_turn()
        return requests.to_ask(shards, woken) if room and len(shards) > 1 else shards

    def _shards_in_turn(self) -> list[int]:
        """All shards, rotated by a random number, so that no shard is always the last."""
        shards = list(range(self._keys.shards))
        first = random.choice(shards)  # noqa: S311  # no secret
        return shards[first:] + shards[:first]

    async def _lease_from(
        self, calls: Mapping[int, Mapping[str, Any]], requests: LeaseRequests, shard: int
    ) -> dict[str, Any]:
        call = {**calls[shard], "request": requests.id_for(shard)}
        answer = codec.fields(await self._client.run("lease", shard, call))
        if "lacks" in answer:
            answer = codec.fields(await self._client.run("lease", shard, {**call, "limits": self._limits}))
        requests.answered(shard)
        return answer

    async def waiting(self, kind: Kind, *, queue: str = "", token: str = "") -> int:
        """Number of queues with a due task and a free slot in the fleet.

        Leaves out `queue`, or all queues of `token`. With a `token`, the number is a lower bound: only the
        first queues of some other tokens are counted.
        """
        call = {"kind": kind, "queue": queue, "token": token}
        return sum(await self._client.run_on_all("waiting", call))

    async def renew(
        self, kind: Kind, owner: str, leases: Sequence[Lease], lease_s: float
    ) -> Sequence[Settled]:
        """Prolong leases to `lease_s` seconds from now; results in order. Raises `StoreRefused` only."""
        call = {"kind": kind, "owner": owner, "lease_ms": ms(lease_s)}
        return await self._run_on_leases("renew", call, [codec.leased(lease) for lease in leases])

    async def settle(self, owner: str, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        """Settle leased tasks; results in order. Raises `StoreRefused` only.

        The verdict decides the transition. All settlements with the same transition are sent together.

        - `SUCCEEDED`, `FAILED`: `finish` ends a download, and its callback, if any, becomes pending;
          `close_callback` ends a callback, and its job waits to be reaped.
        - `RETRY`, `THROTTLED`: `retry_later` makes the task pending again. The attempt counts with `RETRY`.
          The outcome's cooldown, if any, begins.
        - `RELEASE`: `release` makes the task pending again, and the attempt does not count. If a sweep has
          ended this lease, the result is `LEASE_LOST`, and the crash that the sweep counted is subtracted,
          because the caller has not crashed.
        """
        places: defaultdict[tuple[str, Kind], list[int]] = defaultdict(list)
        for place, settlement in enumerate(settlements):
            places[codec.script_of(settlement), settlement.lease.kind].append(place)
        results = [Settled.UNKNOWN] * len(settlements)
        for (script, kind), batch in places.items():
            call: dict[str, Any] = {"kind": kind, "owner": owner}
            rows = [codec.settle(script, settlements[place], self._seal) for place in batch]
            if script == "finish" and len(rows) <= MAX_ROWS and any(row["callback"] for row in rows):
                call |= self._wake_own(Kind.CALLBACK)
            if self._rates and kind is Kind.CALLBACK:
                call["rated"] = True
            for place, result in zip(batch, await self._run_on_leases(script, call, rows), strict=True):
                results[place] = result
        return results

    async def _run_on_leases(
        self, script: str, call: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> Sequence[Settled]:
        """Run a transition on leased tasks; `UNKNOWN` for tasks of shards that did not answer."""
        try:
            entries = await self._client.run_rows(script, call, rows)
        except StoreUnavailable:
            return [Settled.UNKNOWN] * len(rows)
        return [Settled.UNKNOWN if entry is None else Settled(entry) for entry in entries]

    async def sweep(self, kind: Kind, count: int = 100, lease_s: float | None = None) -> Sequence[str]:
        """Make at most `count` tasks with an expired lease per shard pending again; returns the job ids.

        `lease_s` is the length of leases. If given, leases that end later than `lease_s` from now count as
        expired too: the server's clock was set back.
        """
        call = codec.given(kind=kind, count=count, lease_ms=None if lease_s is None else ms(lease_s))
        return [job_id for ids in await self._client.run_on_all("sweep", call) for job_id in ids]

    async def set_crawl_delay(self, host: str, seconds: float, keep_s: float) -> None:
        """Set the least time between the starts of two downloads from a host, for the next `keep_s`.

        Instances that have no limits by host (see `open_store`) ignore the delay.
        """
        await self._client.command("SET", self._keys.key(0, "crawl", host), str(seconds), "PX", ms(keep_s))

    # The end of a job

    async def reap(self, count: int, hold_s: float) -> ReapBatch:
        """At most `count` jobs per shard that are due to be deleted, reserved for the caller for `hold_s`."""
        call = {"count": count, "hold_ms": ms(hold_s)}
        shards = range(self._keys.shards)
        flats = await self._client.ask(shards, lambda shard: self._client.run("reap", shard, call))
        answers = {shard: codec.fields(flat) for shard, flat in flats.items()}
        waits = [answer["due_ms"] / 1000 for answer in answers.values() if answer["due_ms"] >= 0]
        return ReapBatch(
            jobs=[
                codec.reapable(flat, self._unseal) for answer in answers.values() for flat in answer["jobs"]
            ],
            groups={shard: names for shard, answer in answers.items() if (names := answer["job_groups"])},
            next_due_s=min(waits, default=None),
        )

    async def remove(self, job_ids: Sequence[str]) -> None:
        """Delete the records of jobs from `reap`; jobs of a silent shard are returned by `reap` again."""
        await self._client.run_rows("remove", {}, [{"id": job_id} for job_id in job_ids])

    async def share_file(self, job_id: str, key: str, sha256: str, *, ours: bool = False) -> Sharing:
        """Count a job, before the file is stored, among the sharers of the file.

        `ours`: after `FOREIGN`, the caller has seen that no file has this key. The file that the job stores
        may then be deleted with the last job.
        """
        file = _digest_of(key)
        calls: dict[int, dict[str, Any]] = {shard_of(job_id, self._keys.shards): {"digest": sha256}}
        # In this order, so that the end of the job finds what it is counted for.
        calls.setdefault(self._keys.aggregation_shard(file), {}).update(file=file, ours=ours)
        for shard, call in calls.items():
            answer = Sharing(await self._client.run("share", shard, {"id": job_id, **call}, durable=True))
            if answer in (Sharing.OVER, Sharing.MANY):
                break
        return answer

    async def unshare_file(
        self, job_id: str, key: str, mark: str, hold_s: float, *, deleted: bool = False
    ) -> Sharing:
        """Take a job from `reap` out of the sharers of a file.

        After `DELETE`, no other caller stores or deletes the file for `hold_s`. The caller, who is named by
        `mark`, deletes it and calls again, with `deleted`.
        """
        file = _digest_of(key)
        call = {"id": job_id, "file": file, "mark": mark, "hold_ms": ms(hold_s), "deleted": deleted}
        shard = self._keys.aggregation_shard(file)
        return Sharing(await self._client.run("unshare", shard, call, durable=True))

    async def purge(self, job_id: str) -> Changed:
        """Let the next `reap` return an ended job, although the time to keep the job is not over."""
        [answer] = await self._client.run_rows("purge", {}, [{"id": job_id}])
        return Changed(answer)

    async def retry(
        self, job_id: str, *, download: bool, limit: int, own_limits: Mapping[str, int] = NO_LIMITS
    ) -> Changed:
        """Send a failed callback again, or (`download`) run a failed download again from the start.

        `limit`, `own_limits`: as for `callback_limit`, for a callback whose queue has no record.
        """
        try:
            [result] = await self.retry_all([job_id], download=download, limit=limit, own_limits=own_limits)
        except ValueError:
            return Changed.UNKNOWN
        return result

    async def retry_all(
        self,
        job_ids: Sequence[str],
        *,
        download: bool,
        limit: int,
        own_limits: Mapping[str, int] = NO_LIMITS,
    ) -> Sequence[Changed]:
        """Like `retry`, for one or more jobs of the same shard, such as the jobs on a page of `jobs`.

        Raises:
            ValueError: the first id is not a job id.
        """
        limits = {name: str(callback_limit(name, limit, own_limits)) for name in (*BROKERS, *own_limits)}
        call = {
            "kind": Kind.DOWNLOAD if download else Kind.CALLBACK,
            "request": secrets.token_hex(8),
            "limit": str(limit),
            "limits": limits,
        }
        return await self._change("retry", call, [{"id": job_id} for job_id in job_ids])

    async def _change(
        self, script: str, call: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> Sequence[Changed]:
        """Run a transition of a client on jobs of the same shard."""
        shard = shard_of(rows[0]["id"], self._keys.shards)
        answers = await self._client.run(script, shard, call, rows, durable=True)
        return [Changed(answer) for answer in answers]

    async def cancel(self, spec: JobSpec, plan: CallbackPlan | None, keep_s: float) -> Changed:
        """End a pending or running download as `CANCELLED`; the callback becomes pending.

        The holder of a running download is told through `listen`, or at the next renewal. The slot stays
        occupied until the holder has stopped. `plan` is the plan for the callback of a failure. A job without
        a callback is kept for `keep_s` seconds.
        """
        [result] = await self.cancel_all([(spec, plan)], keep_s)
        return result

    async def cancel_all(
        self, jobs: Sequence[tuple[JobSpec, CallbackPlan | None]], keep_s: float
    ) -> Sequence[Changed]:
        """Like `cancel`, for one or more jobs of the same aggregation, such as those of `unfinished`."""
        call = {"error": CANCELLED, "keep_ms": ms(keep_s)}
        rows = [
            {"id": spec.id, "queue": spec.aggr_id, **codec.cancelled(spec, plan, self._seal)}
            for spec, plan in jobs
        ]
        return await self._change("cancel", call, rows)

    async def adjust(self, aggr_id: str, changes: AggregationChanges) -> Aggregation | None:
        """Change an aggregation in the whole fleet; `None` for an aggregation without work and set values.

        `changes` has values for `limit`, `rate`, `delay` and `paused`. An absent value is not changed; `None`
        clears a value, so that the values of the jobs apply again. `cooling` ends a cooldown. Downloads in
        flight continue. A value stays set until it is cleared, also while the aggregation has no job.
        """
        call = {name: "" if value is None else str(value) for name, value in changes.items()}
        call["queue"] = aggr_id
        if "paused" in changes:
            call["paused"] = "1" if changes["paused"] else ""
        shard = self._keys.aggregation_shard(aggr_id)
        answer = await self._client.run("adjust", shard, call, durable=True)
        return views.aggregation(answer) if answer else None

    async def pause_all(self, *, paused: bool) -> None:
        """Pause all present and later aggregations, or end this pause. Pauses of single ones do not change.

        Raises:
            PartlyChanged: some shards did not answer.
            StoreUnavailable: no shard answered.
        """
        call = {"paused": "1" if paused else ""}
        shards = range(self._keys.shards)
        changed = await self._client.ask(
            shards, lambda shard: self._client.run("pause", shard, call, durable=True)
        )
        if len(changed) < len(shards):
            missing = ", ".join(str(shard) for shard in shards if shard not in changed)
            raise PartlyChanged(f"shards {missing} of {len(shards)} did not answer")

    async def report(
        self,
        instance: str,
        role: str,
        facts: Mapping[str, Any],
        ttl_s: float,
        counts: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Publish an instance's facts, which expire after `ttl_s` seconds without a report.

        `counts` are the present values of the instance's counters, by series. The growth since the last
        report that the store answered is added to the totals of the role, exactly once.
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

    async def note_backlog(self, point: BacklogPoint) -> None:
        """Add a point to the history of the last day. It replaces an earlier one of the same five minutes."""
        slot = int(point.at.timestamp() * 1000) // POINT_MS % POINTS
        await self._client.command("HSET", self._keys.key(0, "history"), slot, point.model_dump_json())

    async def note_change(self, entry: AuditEntry) -> None:
        """Add a change to those of `changes`, in place of the oldest one.

        Pauses and limits have a list of their own: programs cancel and retry jobs by the thousand, and need
        no `admin` for that. A batch of many jobs and the batches before it become one change.
        """
        key = self._keys.key(0, "audit", "fleet" if entry.action in FLEET_ACTIONS else "jobs")
        merged = list[str]()
        if "count" in entry.changed:
            for number, fields in await self._client.command("XREVRANGE", key, "+", "-", "COUNT", 1):
                with suppress(ValidationError):  # damaged in the store
                    earlier = AuditEntry.model_validate_json(fields.get("entry", ""))
                    if _same_run(earlier, entry):
                        count = earlier.changed["count"] + entry.changed["count"]
                        entry = entry.model_copy(update={"changed": {**entry.changed, "count": count}})
                        merged.append(number)
        await self._client.command("XADD", key, "MAXLEN", AUDITED, "*", "entry", entry.model_dump_json())
        if merged:  # only now: a call that ends in between counts a batch twice, and loses none
            await self._client.command("XDEL", key, *merged)

    async def leave(self, instance: str, role: str) -> None:
        """Delete an instance's report."""
        await self._client.run("leave", 0, {"role": role, "instance": instance})


def _same_run(earlier: AuditEntry, later: AuditEntry) -> bool:
    """Whether two changes are batches of one run of a client: equal but for time and count, and close."""

    def kept(entry: AuditEntry) -> AuditEntry:
        changed = {**entry.changed, "count": isinstance(entry.changed.get("count"), int)}
        return entry.model_copy(update={"at": later.at, "changed": changed})

    return abs(later.at - earlier.at) <= RUN_PAUSE and kept(earlier) == kept(later)


def _digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


class _Wanted:
    """The tasks that a lease call may still get, while it asks one group of shards after another."""

    def __init__(self, count: int, shares: Shares) -> None:
        self.count = count
        self._unproven = shares.unproven
        self._failing = shares.failing

    def split(self, shards: int) -> Sequence[dict[str, int]]:
        """The limits of `lease.lua` for each of some shards, as equal as possible."""
        totals = (self.count, self._unproven, self._failing)
        return [
            {"count": count, "unproven": unproven, "failing": failing}
            for count, unproven, failing in zip(*(_split(total, shards) for total in totals), strict=True)
        ]

    def subtract(self, leases: Sequence[Lease]) -> None:
        """Count leases that were granted; a repeated answer may have more than `count`."""
        self.count -= len(leases)
        self._unproven -= sum(not lease.proven for lease in leases)
        self._failing -= sum(lease.failing for lease in leases)


def _split(total: int, parts: int) -> Iterable[int]:
    """Split `total` into `parts` integers that differ by at most 1."""
    return (total // parts + (part < total % parts) for part in range(parts))
