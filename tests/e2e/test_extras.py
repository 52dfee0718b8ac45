"""The service without extras: HTTP callbacks work, other sections say what is missing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from servers.fleet import DEFAULTS, Running, job_for, merged, to_toml
from servers.forked import environment
from servers.origin import Origin
from servers.sink import Sink
from servers.wheels import build_wheel, install, shared_environment

ROOT = Path(__file__).parents[2]

# The dependencies come from a package index.
pytestmark = [pytest.mark.slow, pytest.mark.plugin, pytest.mark.fault, pytest.mark.timeout(400)]

AWS = "needs the package boto3: pip install 'downloader-service[aws]'"
SECTIONS = {
    "backends.kafka": "needs the package confluent_kafka: pip install 'downloader-service[kafka]'",
    "backends.sqs": AWS,
    "processor.filestorage": AWS,
    "processor.s3": AWS,
}
KEYS: dict[str, dict[str, Any]] = {
    "backends.kafka": {"bootstrap_servers": "127.0.0.1:9"},
    "backends.sqs": {"region": "eu-west-2"},
    "processor.filestorage": {"type": "s3", "bucket": "files"},
    "processor.s3": {"endpoint_url": "http://127.0.0.1:9"},
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs of the fresh environment are."""
    return shared_environment(
        tmp_path_factory,
        "bare",
        lambda programs, folder: install(programs, build_wheel(programs, ROOT, folder)),
    )


def config_of(folder: Path, **tables: dict[str, Any]) -> Path:
    own = {"": {"data_dir": str(folder / "data")}}
    config = folder / "config.toml"
    config.write_text(to_toml(merged(DEFAULTS, {**own, **tables})))
    return config


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_whose_package_is_missing(programs: Path, folder: Path, section: str) -> None:
    config = config_of(folder, **{section: KEYS[section]})
    for command in ("run", "plugins", "doctor"):
        done = subprocess.run(
            [programs / "downloader", command, "-c", config],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
            check=False,
        )
        if command == "doctor":
            assert done.returncode == 1
            assert f"failed {section}: {SECTIONS[section]}\n" in done.stdout
        else:
            assert done.returncode == 2
            assert done.stderr == f"downloader: {section}: {SECTIONS[section]}\n"


async def test_http_callbacks_need_no_extra(programs: Path, folder: Path, origin: Origin, sink: Sink) -> None:
    process = await trio.lowlevel.open_process(
        [programs / "downloader", "run", "-c", config_of(folder)],
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    service = Running("run", process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.read)
        try:
            port = (await service.event("api.listening"))["port"]
            base = f"http://127.0.0.1:{port}"
            async with httpx2.AsyncClient(trust_env=False) as client:
                job = job_for(origin.url("/bytes/9"), sink.url())
                response = await client.post(f"{base}/download", json=job)
                assert response.status_code == 201, response.text
                [received] = await sink.heard_of(response.json()["id"])
                assert (received.payload["success"], received.payload["size"]) == (True, 9)
                refused = await client.post(
                    f"{base}/download", json={**job, "s3_bucket": "theirs", "s3_region": "eu-west-2"}
                )
            assert (refused.status_code, refused.json()["code"]) == (422, "bucket_not_allowed")
            await service.stop()
        finally:
            await service.kill()
