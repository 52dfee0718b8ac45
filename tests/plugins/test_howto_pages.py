"""The guides in docs/howto: their walks are typed as they stand, their configurations are read."""

from __future__ import annotations

import fcntl
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from downloader.config import load_settings
from readme import running, wait_for_port
from servers.pages import ANSWER_S, SHELL, line_of, sh, write

GUIDES = {
    path.stem: path.read_text("utf-8") for path in (Path(__file__).parents[2] / "docs/howto").glob("*.md")
}
ENVIRON = {"REDIS_PASSWORD": "secret", "STORE_KEY": "A" * 43 + "="}
"""What the guides' configurations refer to."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

walk = pytest.mark.usefixtures("alone")
"""The service of each walk listens on port 8000, as its reader's does."""


@pytest.fixture
def alone() -> Iterator[None]:
    with Path(tempfile.gettempdir(), "downloader-howto.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reader's, with the service installed in `.venv`."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "logs").mkdir()
    return tmp_path


def serve(stack: ExitStack, command: str, folder: Path, port: int) -> Path:
    """A program of the page in a terminal of its own; what it prints."""
    log = folder / "logs" / str(port)
    wait_for_port(port, stack.enter_context(running(command, folder, log)), seconds=ANSWER_S)
    return log


def commands(page: str) -> list[str]:
    """All but the first, which installs what the tests' environment has."""
    install, *others = SHELL.findall(GUIDES[page])
    assert install.startswith(".venv/bin/pip install -q ")
    name = re.sub(r"\[.*", "", install.split()[-1].strip("'")).replace("-", "_")
    assert find_spec(name) is not None
    return others


def tried(doctor: str, folder: Path) -> None:
    """The doctor finds no fault."""
    said = sh(doctor, folder).splitlines()
    assert said
    assert {line.split()[0] for line in said} <= {"ok", "note"}


@pytest.mark.slow
@pytest.mark.plugin
@pytest.mark.fault
@walk
def test_the_s3_guide_ends_with_a_file_in_the_bucket(folder: Path) -> None:
    moto, bucket, doctor, run, submit, look = commands("s3")
    write(folder, GUIDES["s3"])
    with ExitStack() as stack:
        serve(stack, moto, folder, 5555)
        sh(bucket, folder)
        tried(doctor, folder)
        serve(stack, run, folder, 8000)
        state, job_id, size, _ = sh(submit, folder).split()
        assert state == "succeeded"
        assert sh(look, folder).splitlines() == [f"{size} files/{job_id[:3]}/{job_id}"]


@pytest.mark.slow
@pytest.mark.plugin
@pytest.mark.fault
@walk
def test_the_kafka_guide_ends_with_a_message_on_the_topic(folder: Path) -> None:
    broker, topics, doctor, run, submit, consumer = commands("kafka")
    write(folder, GUIDES["kafka"])
    with ExitStack() as stack:
        serve(stack, broker, folder, 9092)
        sh(topics, folder)
        tried(doctor, folder)
        serve(stack, run, folder, 8000)
        job_id = json.loads(sh(submit, folder))["id"]
        log = folder / "logs" / "consumer"
        stack.enter_context(running(consumer, folder, log))
        assert_told(job_id, line_of(log, f"{job_id} ").partition(" ")[2])


@pytest.mark.slow
@pytest.mark.plugin
@pytest.mark.fault
@walk
def test_the_sqs_guide_ends_with_a_message_in_the_queue(folder: Path) -> None:
    moto, queue, doctor, run, submit, receive = commands("sqs")
    write(folder, GUIDES["sqs"])
    with ExitStack() as stack:
        serve(stack, moto, folder, 5556)
        assert sh(queue, folder).endswith("/downloads\n")
        tried(doctor, folder)
        serve(stack, run, folder, 8000)
        job_id = json.loads(sh(submit, folder))["id"]
        assert_told(job_id, sh(receive, folder))


def assert_told(job_id: str, message: str) -> None:
    callback = json.loads(message)
    assert (callback["job_id"], callback["success"], callback["extra"]) == (job_id, True, "my-id-17")


@pytest.mark.parametrize("name", GUIDES)
def test_the_configurations_of_a_guide_are_valid(name: str, tmp_path: Path) -> None:
    for kind, text in BLOCK.findall(GUIDES[name]):
        if kind == "toml":
            config = tmp_path / "config.toml"
            config.write_text(text)
            load_settings(config, environ=ENVIRON, overrides={})
