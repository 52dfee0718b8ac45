"""`GroupStore`: groups of jobs that have one callback when all their jobs have ended.

The group's callback is stored in the home shard, which follows from the group's name. Each shard counts its
own jobs of the group. With one shard, the script that ends the last job completes the group. In a Cluster,
`tend_groups` asks all shards. See `docs/design/groups.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from downloader.errors import StoreUnavailable
from downloader.model import JobSpec, State
from downloader.signals import failpoint
from downloader.store import codec
from downloader.store.client import StoreClient
from downloader.store.memory_mark import MemoryMark
from downloader.store.reader import StoreReader
from downloader.store.sealing import Sealer
from downloader.store.values import CallbackPlan, Listed
from downloader.wire import Group, GroupPage, moment

_DURABLE = frozenset({"seal", "reopen"})
"""Arguments of `group.lua` for changes by a client, which must be durable before the response."""

MAX_UNFINISHED = 1000
"""Most groups in `_unfinished_in`; beyond that it is emptied, which costs only extra calls."""

_COUNTS = ("jobs", "succeeded", "failed", "cancelled")


Part = Mapping[str, Any]
"""The fields of a group in a shard; empty if the shard has no record of the group."""


class GroupStore(StoreReader):
    """The methods for groups of jobs. They raise as the methods of `JobStore` do."""

    def __init__(self, client: StoreClient, sealer: Sealer | None = None) -> None:
        super().__init__(client, sealer)
        self._seal = None if sealer is None else sealer.seal
        self._mark = MemoryMark(client)
        self._unfinished_in: dict[tuple[str, str], int] = {}
        """A shard that had unfinished jobs at the last look, by name and mark of a group that is sealed in
        all shards. Asking that shard first saves asking all of them."""

    async def group(self, name: str) -> Group | None:
        """A group; `None` if there is none with this name."""
        return next(iter(await self._described([name])), None)

    async def groups(self, cursor: str, count: int) -> GroupPage:
        """About `count` groups after `cursor` (empty: from the start).

        In a Cluster a group may be on several pages.

        Raises:
            ValueError: the cursor does not come from a `GroupPage`.
        """
        shard, position = self._scan_position(cursor)
        key = self._keys.key(shard, "job_groups")
        position, rows = await self._client.command("ZSCAN", key, position, "COUNT", count, shard=shard)
        names = [row[0] for row in rows] if rows and isinstance(rows[0], list | tuple) else rows[::2]
        groups = await self._described(sorted(set(names)))
        return GroupPage(groups=groups, cursor=self._scan_cursor(shard, position))

    async def cancellable(self, name: str, cursor: str, count: int) -> tuple[Sequence[JobSpec], str]:
        """At most `count` pending or running jobs of a group, and the cursor of the next call.

        All jobs of a call are in one shard.

        Raises:
            ValueError: the cursor was not returned by this method.
        """
        call = {"which": Listed.GROUP, "name": name, "count": count}
        answer, next_cursor = await self._read_on("list", call, cursor, list(range(self._keys.shards)))
        rows = [codec.fields(flat) for flat in answer["jobs"]]
        specs = [
            JobSpec.from_json(row["id"], row["spec"], self._unseal)
            for row in rows
            if row.get("state") in (State.PENDING, State.RUNNING)
        ]
        return specs, next_cursor

    async def _described(self, names: Sequence[str]) -> Sequence[Group]:
        if not names:
            return []
        parts = await self._parts([{"name": name} for name in names])
        return [
            _group(name, of_group[self._home(name)], of_group)
            for name, of_group in zip(names, parts, strict=True)
            if any(of_group)
        ]

    async def set_group_callback(
        self, spec: JobSpec, plan: CallbackPlan, quota: Mapping[str, int] | None = None
    ) -> Group | None:
        """Set the callback of a group, and create the group if needed. A complete group does not change.

        Returns the group, or `None` if the quota of `spec.token` (see `Submission`) allows no further group.

        `spec` is the job that carries the callback: its `aggr_id` is the group's name, and its id comes from
        `new_id` of the name. If the callback is set again, the id of the first call stays.

        Raises:
            StoreUnavailable: also if the memory of the shard is almost full, see `watch_memory`.
        """
        row = {"name": spec.aggr_id, "spec": spec.to_json(self._seal), "id": spec.id, "token": ""}
        row |= codec.callback(plan) | _quota_arguments(spec.token, quota)
        home = self._home(spec.aggr_id)
        if not self._mark.admits(home, row["spec"]):
            raise StoreUnavailable("the store cannot answer: its memory is almost full")
        await self._client.run("group", home, {}, [row], durable=True)
        return await self.group(spec.aggr_id)

    async def seal_group(
        self, name: str, token: str = "", quota: Mapping[str, int] | None = None
    ) -> Group | None:
        """Accept no more jobs in a group. It is complete when all its jobs and their callbacks have ended.

        Returns the group, or `None` if the quota of the token (see `Submission`) allows no further group.

        Raises:
            StoreUnavailable: a shard did not answer. If the home shard did, `tend_groups` seals the others.
        """
        row = {"name": name, "seal": True, **_quota_arguments(token, quota)}
        [sealed] = await self._client.run("group", self._home(name), {}, [row], durable=True)
        failpoint("after-group-seal")
        if sealed and self._keys.shards > 1:
            await self._complete(name)
        return await self.group(name)

    async def reopen_group(self, name: str, callback_id: str) -> Group | None:
        """Accept jobs in a complete group again. When it is complete again, a second callback is sent.

        Returns the group, unchanged if it was not complete; `None` if there is no such group. `callback_id`
        is the id of the second callback, from `new_id` of the name.

        Raises:
            StoreUnavailable: a shard did not answer. The group may still be complete.
        """
        home = self._home(name)
        [answer] = await self._client.run("group", home, {}, [{"name": name}])
        part = codec.fields(answer)
        if "completed" in part:
            row = {"name": name, "reopen": True, "mark": part.get("sealed", "0"), "id": callback_id}
            # The home shard comes last: once the group is open there, all shards accept its jobs.
            if others := [shard for shard in range(self._keys.shards) if shard != home]:
                await self._parts([row], others)
            await self._parts([row], [home])
        return await self.group(name)

    async def tend_groups(self, due: Mapping[int, Sequence[str]]) -> None:
        """Count jobs that ended uncounted, complete groups of a Cluster, and delete old groups.

        `due` has the names of the groups by shard, from `reap`.
        """
        asked: dict[str, int] = {}  # a group may be due in each shard
        for shard, names in due.items():
            rows = [{"name": name} for name in names]
            asked |= dict.fromkeys(await self._client.run("tend", shard, {}, rows), shard)
        for name, shard in sorted(asked.items()):
            with suppress(StoreUnavailable):  # the group is due again later, and must not stop the others
                await self._complete(name, shard)

    async def _complete(self, name: str, due_in: int | None = None) -> None:
        """Seal a group in all shards of a Cluster; complete the group if no shard has an unfinished job.

        `due_in` is the shard in which the group was due.
        """
        home = self._home(name)
        mark = await self._seal_in(home, name)
        if mark is None:
            if due_in is not None:
                await self._reopen_all(name, due_in)
            return
        if await self._was_unfinished(name, mark):
            return
        row = {"name": name, "seal": True, "mark": mark}
        [parts] = await self._parts([row])
        if "completed" not in parts[home]:
            if unfinished := [shard for shard, part in enumerate(parts) if part["unfinished"]]:
                self._note_unfinished(name, mark, unfinished[0])
                return
            # The shards answer at different times, and a failed job may be retried meanwhile. If all answers
            # are the same a second time, there was a moment between when no job was unfinished.
            if [parts] != await self._parts([row]):
                return
            call = {"name": name, "counts": _totals(parts), "mark": mark}
            await self._client.run("complete", home, call)
            failpoint("after-group-complete")
        await self._parts([{"name": name, "completed": True, "mark": mark}])

    async def _reopen_all(self, name: str, sealed_in: int) -> None:
        """Open a group in all other shards if its home shard has lost the seal, and `sealed_in` has it.

        The home shard is sealed first and opened last, so no other state has only the home shard open.
        """
        home = self._home(name)
        mark = await self._seal_in(sealed_in, name)
        if mark is not None and await self._seal_in(home, name) is None:  # nobody has sealed it meanwhile
            others = [shard for shard in range(self._keys.shards) if shard != home]
            await self._parts([{"name": name, "reopen": True, "mark": mark}], others)

    async def _was_unfinished(self, name: str, mark: str) -> bool:
        """Whether the shard that had unfinished jobs at the last look has some now; false without a look."""
        shard = self._unfinished_in.pop((name, mark), None)
        if shard is None:
            return False
        [answer] = await self._client.run("group", shard, {}, [{"name": name}])
        unfinished = bool(codec.fields(answer).get("unfinished"))
        if unfinished:
            self._note_unfinished(name, mark, shard)
        return unfinished

    def _note_unfinished(self, name: str, mark: str, shard: int) -> None:
        if len(self._unfinished_in) >= MAX_UNFINISHED:
            self._unfinished_in.clear()
        self._unfinished_in[name, mark] = shard

    async def _seal_in(self, shard: int, name: str) -> str | None:
        """The time of a group's seal in a shard; `None` if the group is open there."""
        [answer] = await self._client.run("group", shard, {}, [{"name": name}])
        return codec.fields(answer).get("sealed")

    async def _parts(
        self, rows: Sequence[Mapping[str, Any]], shards: Sequence[int] = ()
    ) -> Sequence[Sequence[Part]]:
        """Run `group.lua` on `shards` (none: all shards); returns each row's parts, one per shard.

        Raises:
            StoreUnavailable: a shard did not answer.
        """
        shards = shards or range(self._keys.shards)
        durable = not rows[0].keys().isdisjoint(_DURABLE)
        answers = await self._client.ask(
            shards, lambda shard: self._client.run("group", shard, {}, rows, durable=durable)
        )
        if len(answers) < len(shards):
            raise StoreUnavailable("a shard of the store does not answer")
        return [[codec.fields(answers[shard][place]) for shard in shards] for place in range(len(rows))]

    def _home(self, name: str) -> int:
        return self._keys.aggregation_shard(name)


def _group(name: str, home: Part, parts: Sequence[Part]) -> Group:
    """A group of jobs from the answers of `group.lua`; `home` is that of the shard of the name."""
    totals = _totals(parts)
    return Group(
        name=name,
        state="complete" if "completed" in home else "sealed" if "sealed" in home else "open",
        first_at=moment(totals.pop("first_at") or None),
        last_at=moment(totals.pop("last_at") or None),
        completed_at=codec.moment_in(home.get("completed", "")),
        callback_id=home.get("id", "") if "completed" in home else "",
        callback_state=home.get("callback_state", ""),
        unfinished=sum(codec.number_in(part.get("unfinished")) for part in parts),
        **totals,
    )


def _totals(parts: Sequence[Part]) -> dict[str, int]:
    """The argument `counts` of `complete.lua`: sums over the shards, and the first and the last time."""
    times = [time for part in parts if (time := codec.number_in(part.get("first_at")))]
    return {
        **{count: sum(codec.number_in(part.get(count)) for part in parts) for count in _COUNTS},
        "first_at": min(times, default=0),
        "last_at": max(codec.number_in(part.get("last_at")) for part in parts),
    }


def _quota_arguments(token: str, quota: Mapping[str, int] | None) -> dict[str, Any]:
    """The arguments `quota` and `token_of_quota`, for the group that a token may begin."""
    return {} if quota is None else {"quota": quota, "token_of_quota": token}
