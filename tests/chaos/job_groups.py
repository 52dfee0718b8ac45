"""Groups of the jobs of a load: sealed at random moments, and some of them reopened."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import httpx2
import trio

from chaos.history import JobGroup
from chaos.load import Load

_WIDTH = 8
"""How many groups take jobs at once."""

_OPEN_S = 3.0
"""The longest time for which a group takes jobs: some end in it, some after it."""

_EMPTY_SHARE = 0.2
_REOPENED_SHARE = 0.4
_RETRIED = 2
"""Most failed jobs that are retried in a group which was reopened."""

_IDLE_S = 600.0
"""Far more than the jobs of a group take."""

_POLL_S = 0.2


@dataclass
class JobGroups:
    """Makes one group after the other until the load stops."""

    load: Load
    made: dict[str, JobGroup] = field(default_factory=dict)
    """The groups that were sealed, by name."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def run(self) -> None:
        """Make groups until the load stops; those that were begun are sealed first."""
        async with httpx2.AsyncClient(timeout=5, trust_env=False) as client, trio.open_nursery() as nursery:
            for _ in range(_WIDTH):
                nursery.start_soon(self._make, client)

    async def _make(self, client: httpx2.AsyncClient) -> None:
        rng = self.load.rng
        while not self.load.stopping:
            name = f"n{next(self._numbers)}"
            callback_first = rng.random() < 0.5
            if callback_first:
                await self._set_callback(client, name)
            if rng.random() > _EMPTY_SHARE:
                await self._take_jobs(name)
            if not callback_first:
                await self._set_callback(client, name)
            await self._seal(client, name)
            if rng.random() < _REOPENED_SHARE and name not in self.load.unsure:
                await self._reopen(client, name)

    async def _set_callback(self, client: httpx2.AsyncClient, name: str) -> None:
        body = {"callback_type": "http", "callback_dst": self.load.sink.url()}
        await self.load.insist(client, "POST", f"/groups/{name}", (200,), **body)

    async def _take_jobs(self, name: str) -> None:
        """Offer the group to those who submit jobs, who may still be at it when it is sealed."""
        self.load.job_groups.append(name)
        moment = self.load.rng.choice(["at once", "in between", "when idle"])
        if moment != "at once":
            await trio.sleep(self.load.rng.uniform(0, _OPEN_S))
        if moment == "when idle":
            self.load.job_groups.remove(name)
            await self.load.sink.until(lambda: not self.load.waiting_of(name), seconds=_IDLE_S)

    async def _seal(self, client: httpx2.AsyncClient, name: str) -> None:
        await self.load.insist(client, "POST", f"/groups/{name}/seal", (200,))
        if name in self.load.job_groups:
            self.load.job_groups.remove(name)
        before = self.made.get(name, JobGroup(name=name))
        seals, reopenings = (self.load.sent[f"/groups/{name}/{what}"] for what in ("seal", "reopen"))
        self.made[name] = replace(before, seals=before.seals + 1, most=min(seals, reopenings + 1))

    async def _reopen(self, client: httpx2.AsyncClient, name: str) -> None:
        """Once the group is complete, reopen the group, retry some failed jobs, take more jobs, and seal."""
        while (await self._shown(client, name))["state"] != "complete":
            if self.load.stopping:
                return
            await trio.sleep(_POLL_S)
        await self.load.insist(client, "POST", f"/groups/{name}/reopen", (200,))
        retried = [await self.load.retry(client, job_id) for job_id in self.load.failed_of(name)[:_RETRIED]]
        # A repeated request to seal may come late, so that the group is complete before the retry.
        if (await self._shown(client, name))["state"] == "open":
            self.made[name] = replace(self.made[name], retried=sum(retried))
        await self._take_jobs(name)
        await self._seal(client, name)

    async def _shown(self, client: httpx2.AsyncClient, name: str) -> dict[str, object]:
        shown: dict[str, object] = (await self.load.insist(client, "GET", f"/groups/{name}", (200,))).json()
        return shown
