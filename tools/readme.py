"""Types what README, quickstart and tutorial say, in a copy of this checkout; exits 1 if it fails.

Not for pytest: it installs the package from the registry as a newcomer does. `nox -s readme` runs it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
INSTALL_S = 300.0
ANSWER_S = 60.0
STOP_S = 30.0
CRAWL_S = 180.0
POLL_S = 0.05
IGNORED = (
    ".git",
    ".venv",
    ".nox",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "downloader-data",
    ".bench-*",
    "_build",
)


def say(text: str) -> None:
    """Print a line to CI's log."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def blocks(readme: str) -> list[str]:
    """The README's shell commands, in order."""
    return re.findall(r"^```sh\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)


@contextmanager
def running(command: str, folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a terminal of its own, ended by Ctrl-C."""
    with (
        log.open("wb") as out,
        subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            stdout=out,
            stderr=out,
            env=environment(),
            start_new_session=True,
            # What is started in the background by a shell ignores Ctrl-C, and so does all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # takes no lock
        ) as process,
    ):
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(STOP_S)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """Ours, without the virtual environment that this runs in."""
    found = {
        name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "NOX_"))
    }
    ours = str(Path(sys.prefix) / "bin")
    found["PATH"] = os.pathsep.join(path for path in found["PATH"].split(os.pathsep) if path != ours)
    return found


def wait_for_port(port: int, process: subprocess.Popen[bytes], *, seconds: float) -> None:
    """Wait until somebody listens there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"nobody listens on port {port}") from None
            time.sleep(POLL_S)
        else:
            return


def wait_for_callback(log: Path) -> dict[str, object]:
    """The callback that the README's sink prints."""
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("{"):
                callback: dict[str, object] = json.loads(line)
                return callback
        time.sleep(POLL_S)
    raise SystemExit(f"no callback within {ANSWER_S} s; the sink said: {log.read_text()}")


def sh(command: str, folder: Path, *, seconds: float = ANSWER_S) -> str:
    """Type a command; what it prints."""
    say(f"$ {command}")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=seconds,
    )
    shown = done.stdout.decode()
    say(shown)
    return shown


@contextmanager
def serving(folder: Path, logs: Path, *, service: str, sink: str, origin: str) -> Iterator[None]:
    """The three programs that a page starts in terminals of their own."""
    with ExitStack() as stack:
        for name, command, port in (
            ("service", service, 8000),
            ("sink", sink, 9000),
            ("origin", origin, 9001),
        ):
            process = stack.enter_context(running(command, folder, logs / name))
            wait_for_port(port, process, seconds=INSTALL_S)
        yield


def submit_license(command: str, folder: Path, logs: Path) -> str:
    """The job that both pages submit, its callback and its file; returns the name of the file."""
    job_id: str = json.loads(sh(command, folder))["id"]
    callback = wait_for_callback(logs / "sink")
    say(json.dumps(callback))
    assert callback["job_id"] == job_id
    assert callback["success"] is True
    assert callback["size"] == (ROOT / "LICENSE").stat().st_size
    stored = Path("downloader-data", "files", job_id[:3], job_id)
    assert (folder / stored).read_bytes() == (ROOT / "LICENSE").read_bytes()
    return str(stored)


def walk_readme(folder: Path, logs: Path) -> None:
    """The first job, by command and by API."""
    run, wait, post, *_ = blocks((ROOT / "README.md").read_text("utf-8"))
    with running(run, folder, logs / "service") as service:
        wait_for_port(8000, service, seconds=INSTALL_S)
        state, job_id, *_ = sh(wait, folder, seconds=CRAWL_S).split()
        assert state == "succeeded"
        document = json.loads((folder / "downloader-data" / "files" / job_id[:3] / job_id).read_bytes())
        assert document["openapi"].startswith("3.1")
        assert json.loads(sh(post, folder))["id"]


def walk_quickstart(folder: Path, logs: Path) -> None:
    """All of the page."""
    page = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    install, run, sink, origin, submit, wait, jobs, find = blocks(page)
    sh(install, folder, seconds=INSTALL_S)
    with serving(folder, logs, service=run, sink=sink, origin=origin):
        stored = submit_license(submit, folder, logs)
        _, job_id, *_ = sh(wait, folder).split()
        assert job_id in [job["id"] for job in json.loads(sh(jobs, folder))["jobs"]]
        assert stored in sh(find, folder).splitlines()


def walk_tutorial(folder: Path, logs: Path) -> None:
    """All of the page, in the environment of the quickstart."""
    page = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    for name, text in re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        (folder / name).write_text(text)
    [printed] = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    site, receiver, run, crawl, politely, steer = blocks(page)
    with serving(folder, logs, service=run, sink=receiver, origin=site):
        assert sh(crawl, folder, seconds=CRAWL_S) == printed
        refused = (logs / "origin").read_text().count(" 429\n")
        assert refused > 0, "the site has refused nothing"
        # The site counts the requests of the last second, and whoever types the next command takes longer.
        time.sleep(1.5)
        assert sh(politely, folder, seconds=CRAWL_S) == printed
        assert (logs / "origin").read_text().count(" 429\n") == refused, "the site has refused a polite crawl"
        said = sh(steer, folder, seconds=CRAWL_S)
        [shown] = [json.loads(line) for line in said.splitlines() if line.startswith('{"aggr_id": "site"')]
        assert shown["paused"], shown
        assert said.endswith(printed)
    assert (logs / "sink").read_text().count("\nsucceeded ") == 60


def main() -> None:
    # A shell that starts us in the background has it ignored, and what we start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="downloader-readme-") as name:
        folder, logs = Path(name, "clone"), Path(name, "logs")
        logs.mkdir()
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*IGNORED))
        try:
            walk_quickstart(folder, logs)
            walk_readme(folder, logs)  # whose install command is the same, and has nothing left to install
            walk_tutorial(folder, logs)
        except BaseException:
            say("".join(log.read_text(errors="replace") for log in sorted(logs.iterdir())))
            raise
    say("The README's first five minutes, the quickstart and the tutorial work.")


if __name__ == "__main__":
    main()
