"""A store in which the callbacks of finished downloads wait.

`python -m bench.waiting FOLDER TYPE DESTINATION COUNT PER_DESTINATION` starts an embedded Valkey, brings
jobs to the end of their download by the store's own transitions, and prints one JSON object: `url`, `ids`.
It ends with its input.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import trio

from bench._check import FILE_BYTES
from bench.origin import content
from downloader.config import RedisSettings
from downloader.model import FileFacts, JobSpec, Kind, Outcome, Verdict, callback_group
from downloader.store import CallbackPlan, JobStore, Submission, asyncio_loop, embedded_valkey, open_store

_BATCH = 64
_LEASE_S = 60.0


async def fill(store: JobStore, *, kind: str, destination: str, count: int, limit: int) -> list[str]:
    """Jobs whose download has succeeded; their ids."""
    file = FileFacts(
        size=FILE_BYTES, sha256=hashlib.sha256(content(FILE_BYTES)).hexdigest(), mime_type="image/png"
    )
    outcome = Outcome(verdict=Verdict.SUCCEEDED, response_code=200, file=file)
    plan = CallbackPlan(group=callback_group(kind, destination), limit=limit)
    ids: list[str] = []
    while len(ids) < count:
        specs = [
            JobSpec(
                id=store.new_id("bench"),
                aggr_id="bench",
                aggr_limit=_BATCH,
                url=f"http://127.0.0.1/file/{len(ids) + number:08}.png",
                callback_type=kind,
                callback_dst=destination,
                callback_error_type=kind,
                callback_error_dst=destination,
            )
            for number in range(min(_BATCH, count - len(ids)))
        ]
        ids += [job_id for _, job_id in await store.submit([Submission(spec=spec) for spec in specs])]
        batch = await store.lease(Kind.DOWNLOAD, "bench", _BATCH, _LEASE_S)
        await store.finish("bench", [(lease, outcome, plan, 0.0) for lease in batch.leases])
    return ids


async def run(folder: Path, kind: str, destination: str, count: int, limit: int) -> None:
    async with asyncio_loop(), embedded_valkey(folder) as url:
        async with open_store(RedisSettings(url=url)) as store:
            ids = await fill(store, kind=kind, destination=destination, count=count, limit=limit)
        print(json.dumps({"url": url, "ids": ids}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


def main() -> None:
    folder, kind, destination, count, limit = sys.argv[1:6]
    trio.run(run, Path(folder), kind, destination, int(count), int(limit))


if __name__ == "__main__":
    main()
