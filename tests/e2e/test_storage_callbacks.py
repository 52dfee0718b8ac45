"""Callbacks as objects in the file storage, from `POST /download` to a reader of the objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from servers.aws import CREDENTIALS, REGION, Moto
from servers.fleet import Tables, job_for, open_fleet
from servers.origin import Origin
from servers.s3 import keys, new_bucket
from servers.sink import Sink

pytestmark = [pytest.mark.slow, pytest.mark.plugin, pytest.mark.timeout(120)]

TABLES: Tables = {"notifier": {"deletion_interval": 0.2}}
STORAGE = {"DOWNLOADER_BACKENDS__STORAGE": "{}"}
"""`[backends.storage]`, which has no keys."""


async def test_the_payload_stands_beside_the_files(folder: Path, origin: Origin) -> None:
    async with open_fleet(folder, None, TABLES) as fleet:
        run = await fleet.start("run", environ=STORAGE)
        good = await fleet.post(
            **job_for(origin.url("/bytes/10"), "callbacks/done/", callback_type="storage")
        )
        bad = await fleet.post(
            **job_for(
                origin.url("/status/404"),
                "callbacks/done",
                callback_type="storage",
                callback_error_type="storage",
                callback_error_dst="callbacks/failed",
            )
        )
        await run.event("callback.delivered", count=2)
        # Once delivered the file goes, and the object stays: it is the client's.
        await run.event("file.deleted", job_id=good)
        done = json.loads((fleet.files / f"callbacks/done/{good}.json").read_bytes())
        failed = json.loads((fleet.files / f"callbacks/failed/{bad}.json").read_bytes())
        assert (done["job_id"], done["success"], done["size"]) == (good, True, 10)
        assert (failed["job_id"], failed["success"], failed["error_code"]) == (bad, False, "http_status")
        assert (await fleet.client.get(f"/files/callbacks/done/{good}.json")).json() == done
        await fleet.stop_all()
        found = {str(path.relative_to(fleet.files)) for path in fleet.files.rglob("*.json")}
        assert found == {f"callbacks/done/{good}.json", f"callbacks/failed/{bad}.json"}


async def test_the_payload_stands_in_the_bucket(folder: Path, origin: Origin, moto: Moto) -> None:
    bucket = new_bucket(moto)
    own = {"type": "s3", "bucket": bucket, "prefix": "p", "region": REGION, "endpoint_url": moto.url}
    async with open_fleet(folder, None, {"processor.filestorage": own}) as fleet:
        run = await fleet.start("run", environ={**CREDENTIALS, **STORAGE})
        job_id = await fleet.post(**job_for(origin.url("/bytes/10"), "done", callback_type="storage"))
        await run.event("callback.delivered", job_id=job_id)
        found = moto.s3.get_object(Bucket=bucket, Key=f"p/done/{job_id}.json")
        payload = json.loads(found["Body"].read())
        assert found["ContentType"] == "application/json"
        assert (payload["job_id"], payload["success"], payload["size"]) == (job_id, True, 10)
        assert sorted(keys(moto, bucket)) == sorted([f"p/done/{job_id}.json", f"p/{job_id[:3]}/{job_id}"])
        await fleet.stop_all()


async def test_failures_alone_may_go_to_the_storage(folder: Path, origin: Origin, sink: Sink) -> None:
    async with open_fleet(folder, None, TABLES) as fleet:
        run = await fleet.start("run", environ=STORAGE)
        elsewhere: dict[str, Any] = {"callback_error_type": "storage", "callback_error_dst": "failed"}
        good = await fleet.post(**job_for(origin.url("/bytes/1"), sink.url(), **elsewhere))
        bad = await fleet.post(**job_for(origin.url("/status/500"), sink.url(), max_retries=0, **elsewhere))
        await run.event("callback.delivered", count=2)
        assert [one.job_id for one in sink.received] == [good]
        assert [path.name for path in (fleet.files / "failed").iterdir()] == [f"{bad}.json"]
        await fleet.stop_all()
