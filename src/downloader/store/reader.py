"""`StoreReader`: queries, and the messages that the store publishes."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NoReturn

import trio
from pydantic import ValidationError

from downloader.errors import StoreUnavailable
from downloader.ids import shard_of
from downloader.model import JobSpec, Kind
from downloader.observe import Event, get_logger
from downloader.store import codec, views
from downloader.store.client import StoreClient, check_layout
from downloader.store.sealing import Sealer
from downloader.store.values import (
    COUNTED_FAILURES,
    POINT_MS,
    POINTS,
    SUMMED_QUEUES,
    Backlog,
    JobView,
    Listed,
    Load,
)
from downloader.wire import (
    Aggregation,
    AggregationLoad,
    AggregationPage,
    AuditEntry,
    BacklogPoint,
    FailureGroup,
    JobPage,
    ListedJob,
)

log = get_logger()

LISTED_AT_ONCE = 1000
"""Aggregations per call of the script in `loads` (a few milliseconds of the store's time), and per command in
`aggregation_sizes` (less than a millisecond)."""

RESUBSCRIBE_S = 0.5
"""Pause before subscribing again after the connection to the store was lost."""

_CURSOR = re.compile(r"([0-9]{1,4})\.([0-9]{0,20})\.([0-9A-Za-z]*)")
"""Shard, and score and id of the last job read."""

_SCAN_CURSOR = re.compile(r"([0-9]{1,4})\.([0-9]{1,20})")
"""Shard, and cursor of ZSCAN on that shard."""


class StoreReader:
    """Read-only access to the store."""

    def __init__(self, client: StoreClient, sealer: Sealer | None = None) -> None:
        self._client = client
        self._keys = client.keys
        self._own: Mapping[Kind, Callable[[], bool]] = {}
        """The `idle` of `listen`."""
        self._owner = ""
        self._unseal: codec.Unseal = (lambda _: None) if sealer is None else sealer.unseal

    async def jobs(
        self,
        which: Listed,
        aggr_id: str,
        cursor: str,
        count: int,
        matches: Callable[[ListedJob], bool] = lambda _: True,
    ) -> JobPage:
        """The matching jobs among the next `count` jobs of a list after `cursor` (empty: from the start).

        An empty `aggr_id` stands for all aggregations. Unless the list is `PENDING`, the page may also
        contain jobs of other aggregations. For the list `GROUP`, `aggr_id` is the name of the group.
        `matches` gets a job without its URL.

        Raises:
            ValueError: the cursor was not returned by `jobs`.
        """
        in_one_shard = aggr_id and which is not Listed.GROUP
        shards = [self._keys.aggregation_shard(aggr_id)] if in_one_shard else list(range(self._keys.shards))
        call = {"which": which, "name": aggr_id, "count": count}
        answer, next_cursor = await self._read_on("list", call, cursor, shards)
        jobs = views.listed_jobs(answer["jobs"], matches, self._unseal)
        return JobPage(jobs=list(jobs), cursor=next_cursor)

    async def failures(self, which: Listed, cursor: str, count: int) -> tuple[Sequence[FailureGroup], str]:
        """Count the next `count` failed jobs of a list by aggregation and reason.

        `which`: `FAILED_CALLBACKS` or `FAILED_DOWNLOADS`.

        Returns:
            The counts, and the cursor of the next call, empty at the end.
        """
        shards = list(range(self._keys.shards))
        answer, next_cursor = await self._read_on("tally", {"which": which, "count": count}, cursor, shards)
        kind = Kind.CALLBACK if which is Listed.FAILED_CALLBACKS else Kind.DOWNLOAD
        return [views.failures(kind, flat) for flat in answer["failures"]], next_cursor

    async def _read_on(
        self, script: str, call: Mapping[str, Any], cursor: str, shards: Sequence[int]
    ) -> tuple[Mapping[str, Any], str]:
        """Run a script on the shard of `cursor`; returns the answer, and the cursor of the next call.

        When a shard has no more, the cursor goes on to the next of `shards`; it is empty after the last.
        """
        match = _CURSOR.fullmatch(cursor or f"{shards[0]}..")
        if match is None or int(match[1]) not in shards:
            raise ValueError("no such cursor")
        shard = int(match[1])
        answer = codec.fields(
            await self._client.run(script, shard, {**call, "score": match[2], "id": match[3]})
        )
        next_cursor = ""
        if answer["id"]:
            next_cursor = f"{shard}.{answer['score']}.{answer['id']}"
        elif shard != shards[-1]:
            next_cursor = f"{shard + 1}.."
        return answer, next_cursor

    async def unfinished(self, aggr_id: str, count: int) -> tuple[Sequence[JobSpec], bool]:
        """At most `count` unfinished jobs of an aggregation, and whether there may be more."""
        call = {"queue": aggr_id, "count": count}
        shard = self._keys.aggregation_shard(aggr_id)
        answer = codec.fields(await self._client.run("unfinished", shard, call))
        pairs = zip(answer["jobs"][::2], answer["jobs"][1::2], strict=True)
        return [JobSpec.from_json(job_id, spec, self._unseal) for job_id, spec in pairs], bool(answer["more"])

    async def get(self, job_id: str) -> JobView | None:
        """A job; `None` if no job has this id."""
        try:
            shard = shard_of(job_id, self._keys.shards)
        except ValueError:
            return None
        answer = await self._client.run("get", shard, {"id": job_id})
        return views.job_view(job_id, answer, self._unseal) if answer else None

    async def aggregation_sizes(self) -> Mapping[str, int]:
        """How many jobs are pending in each aggregation that has work, the largest first.

        Aggregations without work, which are kept because an operator has set a value, are left out. The list
        is read in pages, so that no command delays the fleet; pages are not from the same moment.
        """

        async def ask(shard: int) -> Mapping[str, float]:
            key = self._keys.key(shard, "queues", Kind.DOWNLOAD)
            # An aggregation whose rank changes meanwhile may be read twice, or not at all.
            scores: dict[str, float] = {}
            start, more = 0, True
            while more:
                end = start + LISTED_AT_ONCE - 1
                flat = await self._client.command("ZRANGE", key, start, end, "REV", "WITHSCORES", shard=shard)
                page = dict(flat) if flat and isinstance(flat[0], list | tuple) else codec.fields(flat)
                scores |= {name: float(score) for name, score in page.items() if float(score) > 0}
                start, more = end + 1, len(page) == LISTED_AT_ONCE
            return scores

        answers = (await self._client.ask(range(self._keys.shards), ask)).values()
        sizes = {name: views.counts(score)[0] for answer in answers for name, score in answer.items()}
        return dict(sorted(sizes.items(), key=lambda size: -size[1]))

    async def aggregations(self, cursor: str, count: int) -> AggregationPage:
        """About `count` aggregations with work, after `cursor` (empty: from the start).

        Each aggregation that has work during the whole listing is on at least one page, and may be on two.

        Raises:
            ValueError: the cursor does not come from an `AggregationPage`.
        """
        shard, position = self._scan_position(cursor)
        answer = codec.fields(
            await self._client.run("aggregations", shard, {"cursor": position, "count": count})
        )
        aggregations = [views.aggregation(flat) for flat in answer["aggregations"]]
        return AggregationPage(aggregations=aggregations, cursor=self._scan_cursor(shard, answer["cursor"]))

    def _scan_position(self, cursor: str) -> tuple[int, str]:
        """Shard, and cursor of ZSCAN on that shard; an empty `cursor` is the start.

        Raises:
            ValueError: `cursor` does not come from `_scan_cursor`.
        """
        match = _SCAN_CURSOR.fullmatch(cursor or "0.0")
        if match is None or int(match[1]) >= self._keys.shards or int(match[2]) >= 2**64:
            raise ValueError("no such cursor")
        return int(match[1]), match[2]

    def _scan_cursor(self, shard: int, position: int | str) -> str:
        """The cursor of the next page; empty after the last shard."""
        if str(position) != "0":
            return f"{shard}.{position}"
        return f"{shard + 1}.0" if shard + 1 < self._keys.shards else ""

    async def described(self, aggr_ids: Iterable[str]) -> Sequence[Aggregation]:
        """Descriptions of aggregations, in any order; aggregations without work are left out."""
        by_shard: defaultdict[int, list[str]] = defaultdict(list)
        for aggr_id in aggr_ids:
            by_shard[self._keys.aggregation_shard(aggr_id)].append(aggr_id)
        answers = [
            codec.fields(await self._client.run("aggregations", shard, {"queues": names}))
            for shard, names in by_shard.items()
        ]
        return [views.aggregation(flat) for answer in answers for flat in answer["aggregations"]]

    async def aggregation(self, aggr_id: str) -> Aggregation | None:
        """Description of an aggregation; `None` for an aggregation without work."""
        return next(iter(await self.described([aggr_id])), None)

    async def all_paused(self) -> bool:
        """Whether an operator has paused all aggregations."""
        return bool(await self._client.command("EXISTS", self._keys.key(0, "paused")))

    async def load(self, count: int) -> Load:
        """The `count` (1 or more) busiest aggregations, and totals.

        The cost depends on `count` only. Values of several shards are not from the same moment.
        """
        return views.load(await self._client.run_on_all("busiest", {"count": count, "skip": 0}), count)

    async def loads(self, most: int) -> Sequence[AggregationLoad]:
        """Aggregations with work: at most `most` per shard, the busiest first.

        Only for searches by operators: the cost grows with the number of aggregations. Each call of the
        script takes a few milliseconds.
        """
        loads: dict[str, AggregationLoad] = {}  # an aggregation that moves in the order may be read twice
        for skip in range(0, most, LISTED_AT_ONCE):
            call = {"count": LISTED_AT_ONCE, "skip": skip}
            page = views.load(await self._client.run_on_all("busiest", call), most * self._keys.shards)
            loads |= {load.aggr_id: load for load in page.aggregations}
            if not page.aggregations:
                break
        return list(loads.values())

    async def backlog(self, destinations: int) -> Backlog:
        """Waiting tasks, and the `destinations` (1 or more) busiest callback destinations.

        The cost is bounded. Values of several shards are not from the same moment.
        """
        call = {"queues": SUMMED_QUEUES, "destinations": destinations, "failures": COUNTED_FAILURES}
        return views.backlog(await self._client.run_on_all("backlog", call), destinations)

    async def history(self) -> Sequence[BacklogPoint]:
        """The backlog of the last day, the oldest point first."""
        texts = await self._client.command("HVALS", self._keys.key(0, "history"))
        points = list[BacklogPoint]()
        for text in texts:
            with suppress(ValidationError):  # damaged in the store
                points.append(BacklogPoint.model_validate_json(text))
        begin = datetime.now(UTC) - timedelta(milliseconds=POINTS * POINT_MS)
        return sorted((point for point in points if point.at > begin), key=lambda point: point.at)

    async def changes(self, count: int) -> Sequence[AuditEntry]:
        """The newest `count` (1 or more) changes by operators, the newest first."""
        entries = list[AuditEntry]()
        for of in ("jobs", "fleet"):
            key = self._keys.key(0, "audit", of)
            for _, fields in await self._client.command("XREVRANGE", key, "+", "-", "COUNT", count):
                with suppress(ValidationError):  # damaged in the store
                    entries.append(AuditEntry.model_validate_json(fields.get("entry", "")))
        return sorted(entries, key=lambda entry: entry.at.timestamp(), reverse=True)[:count]

    async def totals(self, role: str) -> Mapping[str, int]:
        """The sums, by series, of the counts of all instances of a role, ended instances included."""
        totals = await self._client.command("HGETALL", self._keys.key(0, "totals", role))
        return {series: int(value) for series, value in totals.items()}

    async def reports(self, role: str) -> Sequence[Mapping[str, Any]]:
        """The last reports of the live instances of a role."""
        names = await self._client.command("ZRANGE", self._keys.key(0, "instances", role), 0, -1)
        if not names:
            return []
        keys = [self._keys.key(0, "instance", role, name) for name in names]
        return [json.loads(text) for text in await self._client.command("MGET", *keys) if text]

    async def ping(self) -> None:
        """Check that at least one shard answers."""
        await self._client.ask(range(self._keys.shards), self._client.ping)

    async def listen(
        self,
        wakes: Mapping[Kind, Callable[[float, int], None]],
        *,
        owner: str = "",
        idle: Mapping[Kind, Callable[[], bool]] = MappingProxyType({}),
        cancelled: Callable[[str], None] = lambda _: None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call a kind's function in `wakes` when there may be work. Runs until cancelled.

        Messages can be lost, so callers must also ask the store at intervals.

        Args:
            wakes: called with the seconds until the work can run, and its shard; also after each
                (re)subscription, because messages may have been missed.
            owner: the owner of this process's lease calls with a `room`, which the store wakes by name.
                Without an owner, the functions are called only if the store has noted no owner as idle.
            idle: by kind, a function that wakes the owner if it is idle, and returns whether it did. Called
                before this object makes a task runnable. The owner's lease call then travels in the same
                round trip, and the store wakes no other instance.
            cancelled: called with the id of each job that is cancelled while its download runs on any
                instance.
            task_status: started after the first subscription.
        """
        shards = range(self._keys.shards)
        common = {
            self._keys.key(shard, "wake", kind): (wake, shard)
            for kind, wake in wakes.items()
            for shard in shards
        }
        own = {
            self._keys.key(shard, "wake_one", kind, owner): (wake, shard)
            for kind, wake in wakes.items()
            for shard in shards
            if owner
        }
        self._own, self._owner = idle, owner
        started = False
        while True:
            with suppress(StoreUnavailable):
                async with self._client.subscribed([*common, *own]) as receive:
                    if not started:
                        started = True
                        task_status.started()
                    await self._dispatch(receive, common, own, cancelled)
            await trio.sleep(RESUBSCRIBE_S)

    async def _dispatch(
        self,
        receive: Callable[[], Awaitable[tuple[str, str | None]]],
        common: Mapping[str, tuple[Callable[[float, int], None], int]],
        own: Mapping[str, tuple[Callable[[float, int], None], int]],
        cancelled: Callable[[str], None],
    ) -> NoReturn:
        """Receive messages and call the function of each channel, until the connection is lost."""
        first = next(iter(common))
        while True:
            channel, text = await receive()  # the text is `None` after a (re)subscription
            if channel in own:
                wake, shard = own[channel]
                wake(float(text or 0) / 1000, shard)
                continue
            if text:
                cancelled(text)
                continue
            # Also after a subscription, because messages published before that are lost.
            wake, shard = common[channel]
            wake(0, shard)
            if text is None and channel == first and await check_layout(self._client):
                log.error(Event.STORE_EMPTY)
