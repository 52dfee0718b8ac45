"""The example plugin as a stranger uses the plugin: two wheels in a new environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from redis import Redis

from servers.fleet import DEFAULTS, Running, merged, to_toml
from servers.forked import environment
from servers.origin import Origin
from servers.valkey import Valkey
from servers.wheels import build_wheel, install, run, shared_environment

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "downloader-redis-streams"
VERSION = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]["version"]

# Its dependencies come from a package index.
pytestmark = [pytest.mark.slow, pytest.mark.plugin, pytest.mark.fault, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs of the fresh environment are."""
    tests = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["dependency-groups"]["test"]

    def fill(programs: Path, folder: Path) -> None:
        install(programs, *(build_wheel(programs, source, folder) for source in (ROOT, EXAMPLE)), *tests)

    return shared_environment(tmp_path_factory, "stranger", fill)


def test_its_own_tests_pass(programs: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "example", ignore=shutil.ignore_patterns("src", "__pycache__"))
    told = run(programs / "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path / "example")
    assert " passed" in told
    assert "skipped" not in told


def test_it_is_listed_and_takes_no_part_until_it_is_configured(programs: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    for tables, configured in (({}, False), ({"backends.redis-streams": {"maxlen": 10}}, True)):
        config.write_text(to_toml(tables))
        listed = json.loads(run(programs / "downloader", "plugins", "-c", config, "--json"))
        [row] = [row for row in listed if row["name"] == "redis-streams"]
        wanted = {
            "kind": "notifier",
            "name": "redis-streams",
            "version": VERSION,
            "distribution": "downloader-redis-streams",
            "configured": configured,
        }
        assert wanted.items() <= row.items()


@pytest.fixture
def entries(server: Valkey) -> Iterator[Redis]:
    """A client that waits for as long as the service may take."""
    with Redis(unix_socket_path=str(server.socket)) as client:
        yield client


async def test_a_callback_arrives_from_a_running_service(
    programs: Path, folder: Path, server: Valkey, origin: Origin, entries: Redis
) -> None:
    more: dict[str, dict[str, Any]] = {
        "": {"data_dir": str(folder / "data")},
        "backends.http": {},
        "backends.redis-streams": {"url": server.url, "streams": ["done:*"]},
    }
    (folder / "config.toml").write_text(to_toml(merged(DEFAULTS, more)))
    process = await trio.lowlevel.open_process(
        [programs / "downloader", "run", "-c", folder / "config.toml"],
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    service = Running("run", process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.read)
        try:
            port = (await service.event("api.listening"))["port"]
            await service.event("service.started")
            job = {
                "aggr_id": "example",
                "aggr_limit": 1,
                "url": origin.url("/bytes/9"),
                "callback_type": "redis-streams",
                "callback_dst": "done:images",
            }
            async with httpx2.AsyncClient(trust_env=False) as client:
                answer = await client.post(f"http://127.0.0.1:{port}/download", json=job)
            assert answer.status_code == 201, answer.text
            found: Any = await trio.to_thread.run_sync(
                lambda: entries.xread({"done:images": "0"}, block=20_000)
            )
            [[_, [[_, entry]]]] = found
            callback = json.loads(entry[b"payload"])
            assert entry[b"job_id"].decode() == callback["job_id"] == answer.json()["id"]
            assert (callback["success"], callback["size"]) == (True, 9)
            await service.event("callback.delivered")
            await service.stop()
        finally:
            if process.returncode is None:
                process.kill()
