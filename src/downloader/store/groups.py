"""`GroupStore`: groups of jobs that have one callback when all their jobs have ended.

The shard of a group's name has the group's callback. Each shard counts the jobs that it has. With one shard,
the script that ends the last job completes the group. In a Cluster an instance asks all shards, in
`tend_groups`. `docs/design/groups.md` says more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from downloader.errors import StoreUnavailable
from downloader.model import JobSpec, State
from downloader.signals import failpoint
from downloader.store import codec
from downloader.store.client import StoreClient
from downloader.store.memory import MemoryMark
from downloader.store.reader import StoreReader
from downloader.store.sealing import Sealer
from downloader.store.values import CallbackPlan, Listed
from downloader.wire import Group, GroupPage

_CURSOR = re.compile(r"([0-9]{1,4})\.([0-9]{1,20})")
"""Shard, and cursor of ZSCAN on that shard."""

_DURABLE = frozenset({"seal", "reopen"})
"""Arguments of `group.lua` for what a client asks for."""

MAX_UNFINISHED = 1000
"""Most groups for which an instance notes a shard that has unfinished jobs."""

Part = Mapping[str, Any]
"""What a shard has of a group; empty for nothing."""


class GroupStore(StoreReader):
    """The part of the store that has groups of jobs. Methods raise as those of `JobStore`."""

    def __init__(self, client: StoreClient, sealer: Sealer | None = None) -> None:
        super().__init__(client, sealer)
        self._seal = None if sealer is None else sealer.seal
        self._mark = MemoryMark(client)
        self._unfinished_in: dict[tuple[str, str], int] = {}
        """By name and mark of a group that is sealed in all shards: one that had unfinished jobs of it."""

    async def group(self, name: str) -> Group | None:
        """A group, or `None`."""
        return next(iter(await self._described([name])), None)

    async def groups(self, cursor: str, count: int) -> GroupPage:
        """About `count` groups after `cursor` (empty: from the start).

        In a Cluster a group may be on several pages.

        Raises:
            ValueError: the cursor does not come from a `GroupPage`.
        """
        match = _CURSOR.fullmatch(cursor or "0.0")
        if match is None or int(match[1]) >= self._keys.shards or int(match[2]) >= 2**64:
            raise ValueError("no such cursor")
        shard = int(match[1])
        key = self._keys.key(shard, "job_groups")
        behind, found = await self._client.command("ZSCAN", key, match[2], "COUNT", count, shard=shard)
        names = [row[0] for row in found] if found and isinstance(found[0], list | tuple) else found[::2]
        if str(behind) != "0":
            cursor = f"{shard}.{behind}"
        else:
            cursor = f"{shard + 1}.0" if shard + 1 < self._keys.shards else ""
        return GroupPage(groups=await self._described(sorted(set(names))), cursor=cursor)

    async def cancellable(self, name: str, cursor: str, count: int) -> tuple[Sequence[JobSpec], str]:
        """At most `count` jobs of a group that wait or run, and the cursor of the next call.

        They are all in one shard.

        Raises:
            ValueError: the cursor was not returned by this method.
        """
        call = {"which": Listed.GROUP, "group": name, "count": count}
        answer, behind = await self._read_on("list", call, cursor, list(range(self._keys.shards)))
        rows = [codec.fields(flat) for flat in answer["jobs"]]
        specs = [
            JobSpec.from_json(row["id"], row["spec"], self._unseal)
            for row in rows
            if row.get("state") in (State.PENDING, State.RUNNING)
        ]
        return specs, behind

    async def _described(self, names: Sequence[str]) -> Sequence[Group]:
        if not names:
            return []
        parts = await self._parts([{"name": name} for name in names])
        return [
            codec.group(name, of_group[self._home(name)], of_group)
            for name, of_group in zip(names, parts, strict=True)
            if any(of_group)
        ]

    async def set_group_callback(
        self, spec: JobSpec, plan: CallbackPlan, quota: Mapping[str, int] | None = None
    ) -> Group | None:
        """Set the callback of a group, which exists then; a group that is complete does not change.

        Returns the group, or `None`: the quota of `spec.token` (see `Submission`) allows no further group.

        `spec` is the job that the callback is sent as: its `aggr_id` is the group's name, and its id comes
        from `new_id` of the name. The first id stays.

        Raises:
            StoreUnavailable: also if the memory of the shard is almost full, see `watch_memory`.
        """
        row = {"name": spec.aggr_id, "spec": spec.to_json(self._seal), "id": spec.id, "token": ""}
        row |= codec.callback(plan) | codec.quota_of_group(spec.token, quota)
        home = self._home(spec.aggr_id)
        if not self._mark.admits(home, row["spec"]):
            raise StoreUnavailable("the store cannot answer: its memory is almost full")
        await self._client.run("group", home, {}, [row], durable=True)
        return await self.group(spec.aggr_id)

    async def seal_group(
        self, name: str, token: str = "", quota: Mapping[str, int] | None = None
    ) -> Group | None:
        """Let a group take no more jobs; it is complete when all its jobs, callbacks included, have ended.

        Returns the group, or `None`: the quota of the token (see `Submission`) allows no further group.

        Raises:
            StoreUnavailable: a shard did not answer. If the shard of the name has, `tend_groups` goes on.
        """
        row = {"name": name, "seal": True, **codec.quota_of_group(token, quota)}
        [sealed] = await self._client.run("group", self._home(name), {}, [row], durable=True)
        failpoint("after-group-seal")
        if sealed and self._keys.shards > 1:
            await self._complete(name)
        return await self.group(name)

    async def reopen_group(self, name: str, callback_id: str) -> Group | None:
        """Let a complete group take jobs again; complete again, it has a second callback with another id.

        Returns the group, which does not change unless it is complete; `None` for no such group.
        `callback_id` comes from `new_id` of the name.

        Raises:
            StoreUnavailable: a shard did not answer. The group may be complete still.
        """
        home = self._home(name)
        [answer] = await self._client.run("group", home, {}, [{"name": name}])
        part = codec.fields(answer)
        if "completed" in part:
            row = {"name": name, "reopen": True, "mark": part.get("sealed", "0"), "id": callback_id}
            # The shard of the name is the last: once the group is open there, all shards accept its jobs.
            if others := [shard for shard in range(self._keys.shards) if shard != home]:
                await self._parts([row], others)
            await self._parts([row], [home])
        return await self.group(name)

    async def tend_groups(self, due: Mapping[int, Sequence[str]]) -> None:
        """Do what is due for groups of jobs, as `reap` has named them by shard.

        Jobs that ended uncounted are counted, groups of a Cluster completed, and old groups deleted.
        """
        asked: set[str] = set()  # a group may be due in each shard
        for shard, names in due.items():
            asked.update(await self._client.run("tend", shard, {}, [{"name": name} for name in names]))
        for name in sorted(asked):
            with suppress(StoreUnavailable):  # it is due again, and holds up neither others nor the reaper
                await self._complete(name)

    async def _complete(self, name: str) -> None:
        """Seal a group in all shards of a Cluster, and complete it if none has an unfinished job."""
        home = self._home(name)
        [answer] = await self._client.run("group", home, {}, [{"name": name}])
        mark = codec.fields(answer).get("sealed")
        if mark is None:
            return
        if (shard := self._unfinished_in.pop((name, mark), None)) is not None:
            [answer] = await self._client.run("group", shard, {}, [{"name": name}])
            if codec.fields(answer).get("unfinished"):
                self._unfinished_in[name, mark] = shard
                return
        row = {"name": name, "seal": True, "mark": mark}
        [parts] = await self._parts([row])
        if "completed" not in parts[home]:
            if unfinished := [shard for shard, part in enumerate(parts) if part["unfinished"]]:
                if len(self._unfinished_in) >= MAX_UNFINISHED:
                    self._unfinished_in.clear()
                self._unfinished_in[name, mark] = unfinished[0]
                return
            # Shards answer at different times, and a job that failed may be retried meanwhile. If they all
            # answer the same again, no job was unfinished at the time between.
            if [parts] != await self._parts([row]):
                return
            call = {"name": name, "counts": codec.group_counts(parts), "mark": mark}
            await self._client.run("complete", home, call)
            failpoint("after-group-complete")
        await self._parts([{"name": name, "completed": True, "mark": mark}])

    async def _parts(
        self, rows: Sequence[Mapping[str, Any]], shards: Sequence[int] = ()
    ) -> Sequence[Sequence[Part]]:
        """Run `group.lua` on shards, without any on all; returns for each row what the shards have.

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
