"""The migration from the predecessor, as in docs/migration.md, with the page's example."""

from __future__ import annotations

import json
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from downloader.config import import_config
from servers.certs import write_authority
from servers.fleet import Fleet, job_for, open_fleet
from servers.origin import Origin, respond
from servers.sink import Sink
from servers.valkey import Valkey

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"

pytestmark = pytest.mark.slow


def tables(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """A configuration by dotted table names."""
    yield name, {key: value for key, value in values.items() if not isinstance(value, dict)}
    for key, value in values.items():
        if isinstance(value, dict):
            yield from tables(value, f"{name}.{key}".removeprefix("."))


@pytest.fixture
def converted(folder: Path, server: Valkey) -> dict[str, dict[str, Any]]:
    """The page's example, on this machine."""
    [example] = re.findall(r"^```json\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    old = json.loads(example.replace("/var/lib/downloader", str(folder)))
    old["redis"]["addr"] = server.url
    old["redis"]["timeout"] = 5  # for a busy machine
    old["notifier"] |= {"download_url": "", "deletion_interval": 0.02}  # minutes
    old["backends"]["kafka"]["ssl.ca.location"] = write_authority(folder)
    return dict(tables(tomllib.loads(import_config(old))))


async def test_jobs_wait_at_the_new_service_until_its_processor_starts(
    folder: Path, server: Valkey, origin: Origin, sink: Sink, converted: dict[str, dict[str, Any]]
) -> None:
    origin.on("/x", respond(200, b"hello"))
    old_file = folder / "files" / "abc" / "abcdef"
    old_file.parent.mkdir(parents=True)
    old_file.write_bytes(b"of the predecessor")
    local = {name: {"allow": ["127.0.0.0/8"]} for name in ("egress.downloads", "egress.callbacks")}
    async with open_fleet(folder, server, {**converted, **local}) as fleet:
        await fleet.start_all("api", "notifier")
        job_id = await fleet.post(**job_for(origin.url("/x"), sink.url()))
        assert (await fleet.job(job_id))["state"] == "pending"
        assert (await dashboard(fleet)) == [{"name": "jobs:a", "size": 1}]
        assert origin.asked("/x") == []

        (folder / "hb").touch()  # takes only the predecessor out
        assert (await fleet.client.get("/hb")).text == "OK"
        (folder / "hb.new").touch()
        assert (await fleet.client.get("/hb")).status_code == 503

        await fleet.start("processor")
        await sink.heard_of(job_id)
        [request] = origin.asked("/x")
        assert request.headers["user-agent"] == "Shop/1.0"
        file = folder / "files" / job_id[:3] / job_id
        assert file.read_bytes() == b"hello"
        assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)) == (0o644, 0o755)
        with trio.fail_after(30):
            while file.exists():  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.05)
        assert old_file.exists()
        assert (await dashboard(fleet)) == []
        await fleet.stop_all()


async def dashboard(fleet: Fleet) -> object:
    return (await fleet.client.get("/dashboard/aggregations")).json()
