"""The client's distribution, alone in a new environment, against a running service."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
import trio

from servers.fleet import open_fleet
from servers.origin import Origin
from servers.valkey import Valkey
from servers.wheels import build_wheel, install, run, shared_environment

ROOT = Path(__file__).parents[2]

# The dependencies come from a package index.
pytestmark = [pytest.mark.slow, pytest.mark.plugin, pytest.mark.fault, pytest.mark.timeout(400)]

PROGRAM = """\
import json
import sys
from importlib.metadata import distributions

import anyio

from downloader.client import AsyncClient, Client, JobFields
from downloader.webhooks import WebhookError, verify

API, URL = sys.argv[1:]
JOB: JobFields = {"aggr_id": "a", "aggr_limit": 1, "url": URL, "callback_type": "none"}


async def state() -> str:
    async with AsyncClient(API) as client:
        return (await client.wait(await client.submit(**JOB), timeout_s=60)).state


try:
    verify(headers={}, body=b"", secrets="whsec_c2VjcmV0")
except WebhookError as error:
    refused = str(error)

with Client(API) as client:
    job = client.wait(client.submit(**JOB), timeout_s=60)

# A value that does not exist is an error: otherwise the comments below would be refused as unused.
assert job.state != "suceeded"  # type: ignore[comparison-overlap]
assert job.error_code != "http-status"  # type: ignore[comparison-overlap]

print(
    json.dumps(
        {
            "states": [job.state, anyio.run(state)],
            "size": job.file.size if job.file is not None else 0,
            "refused": refused,
            "modules": sorted(sys.modules),
            "distributions": sorted(row.name for row in distributions()),
        }
    )
)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs of the fresh environment are."""
    return shared_environment(
        tmp_path_factory,
        "client",
        lambda programs, folder: install(programs, build_wheel(programs, ROOT / "client", folder)),
    )


@pytest.fixture(scope="module")
def wheel(programs: Path) -> Path:
    [wheel] = programs.parents[1].glob("*.whl")
    return wheel


async def test_it_works_without_the_service_s_packages(
    programs: Path, folder: Path, server: Valkey, origin: Origin
) -> None:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    async with open_fleet(folder, server) as fleet:
        await fleet.start_all("api", "processor", "notifier")
        out = await trio.to_thread.run_sync(
            run, programs / "python", program, str(fleet.client.base_url), origin.url("/bytes/9")
        )
        await fleet.stop_all()
    told = json.loads(out)
    assert (told["states"], told["size"]) == (["succeeded", "succeeded"], 9)
    assert told["refused"].startswith("missing headers: webhook-id")
    heavy = {"trio", "trio_asyncio", "quart", "redis", "rich", "downloader.net", "downloader.config"}
    assert heavy.isdisjoint(told["modules"])
    assert {"downloader-client", "httpx2", "pydantic", "standardwebhooks"} <= set(told["distributions"])
    assert len(told["distributions"]) < 20


def test_a_program_that_uses_it_is_checked_strictly(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", programs / "python")
    assert "no issues found" in run(*mypy, "program.py", cwd=tmp_path)


def test_its_files_are_those_of_the_service(wheel: Path) -> None:
    """So whichever of the two distributions was installed last, the modules are the same."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert "downloader/client/__init__.py" in names
        assert [name for name in names if archive.read(name) != (ROOT / "src" / name).read_bytes()] == []
