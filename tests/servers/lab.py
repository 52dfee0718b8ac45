"""A fetcher on real sockets and a real disk, and jobs for the fetcher."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from downloader.config import Settings
from downloader.fetch import Fetcher, FetchLimits, FetchSettings, open_fetcher
from downloader.model import JobSpec, Kind, Lease, Outcome
from downloader.net import EgressPolicy, NetLimits
from downloader.service.instance import Files
from downloader.storage import Storage
from downloader_plugins.filesystem import open_filesystem
from servers.plugins import opened_storage


def small(
    *,
    connect_s: float = 10.0,
    tls_s: float = 10.0,
    response_s: float = 10.0,
    idle_s: float = 10.0,
    stall_s: float = 10.0,
    stall_bytes_per_s: int = 1024,
    store_s: float = 10.0,
) -> FetchLimits:
    """Limits that a busy machine keeps to; a test that waits for a limit makes the limit smaller."""
    return FetchLimits(
        room_s=0.02,
        net=NetLimits(connect_s=connect_s, tls_s=tls_s, response_s=response_s, idle_s=idle_s),
        stall_s=stall_s,
        stall_bytes_per_s=stall_bytes_per_s,
        store_s=store_s,
    )


_ids = itertools.count(1)


@dataclass
class Lab:
    """A fetcher and everything that a fetcher changes."""

    fetcher: Fetcher
    root: Path
    spool: Path

    async def fetch(
        self,
        url: str,
        *,
        proxy: str = "",
        attempts: int = 0,
        throttled: int = 0,
        limit: int = 4,
        aggregation: str = "g",
        still_ours: Callable[[], bool] = lambda: True,
        **spec: Any,
    ) -> Outcome:
        """One attempt at this URL."""
        return await self.fetcher.attempt(
            replace(
                lease(url, proxy=proxy, attempts=attempts, limit=limit, aggregation=aggregation, **spec),
                throttled=throttled,
            ),
            still_ours=still_ours,
        )

    def files(self) -> list[Path]:
        """Everything in the storage."""
        return [path for path in self.root.rglob("*") if path.is_file()]

    def stored(self) -> bytes:
        """The only stored file."""
        (path,) = self.files()
        return path.read_bytes()

    def spooled(self) -> list[Path]:
        """Files in any spool folder."""
        return [path for path in self.spool.rglob("*") if not path.is_dir()]


def lease(
    url: str, *, proxy: str = "", attempts: int = 0, limit: int = 4, aggregation: str = "g", **spec: Any
) -> Lease:
    """A lease of a fresh job."""
    job = JobSpec(id=f"{next(_ids):014d}", aggr_id=aggregation, aggr_limit=limit, url=url, **spec)
    return Lease(
        kind=Kind.DOWNLOAD,
        spec=job,
        queue=aggregation,
        generation=1,
        attempts=attempts,
        crashes=0,
        limit=limit,
        proxy=proxy,
    )


class _Buckets:
    """The buckets of jobs, by a function that opens one."""

    def __init__(self, opener: Callable[[str, str], Awaitable[Storage]] | None) -> None:
        self._opener = opener

    async def bucket(self, name: str, region: str) -> Storage:
        assert self._opener is not None, "no test opens a bucket here"
        return await self._opener(name, region)

    def url(self, name: str, region: str, key: str) -> str:
        return f"https://{name}.{region}.example.org/{key}"


@asynccontextmanager
async def open_lab(
    tmp_path: Path,
    *,
    allow: tuple[str, ...] = ("127.0.0.1", "localhost"),
    storage: Storage | None = None,
    limits: FetchLimits | None = None,
    own_bucket: Callable[[str, str], Awaitable[Storage]] | None = None,
    resumable: bool = False,
    **settings: Any,
) -> AsyncIterator[Lab]:
    """A lab; at the end no attempt has left a file in the spool, unless partial files are `resumable`."""
    root, spool = tmp_path / "root", tmp_path / "spool"
    async with AsyncExitStack() as stack:
        if storage is None:
            storage = await stack.enter_async_context(opened_storage(open_filesystem, {"rootdir": str(root)}))
        fetcher = await stack.enter_async_context(
            open_fetcher(
                settings=FetchSettings(**settings),
                policy=EgressPolicy.parse(allow, setting="egress.downloads"),
                store=Files(
                    settings=Settings(),
                    storage=storage,
                    buckets=_Buckets(own_bucket),
                    clouds=_Buckets(own_bucket),
                ).put,
                spool_dir=spool,
                rng=random.Random(7),
                limits=limits or small(),
                resumable=resumable,
            )
        )
        lab = Lab(fetcher, root, spool)
        yield lab
        assert resumable or lab.spooled() == []
    assert resumable or list(spool.iterdir()) == []
