"""Types what the README says, in a copy of this checkout, and looks whether it comes true; exits 1 if not.

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
ANSWER_S = 15.0
STOP_S = 30.0
POLL_S = 0.05
IGNORED = (".git", ".venv", ".nox", ".*_cache", "__pycache__", "downloader-data", ".bench-*", "_build")


def say(text: str) -> None:
    """For whoever reads CI's log."""
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


def walk(folder: Path, logs: Path) -> None:
    """The first five minutes."""
    run, sink, origin, submit, look, *_ = blocks((ROOT / "README.md").read_text("utf-8"))
    with ExitStack() as stack:
        names = {"service": (run, 8000), "sink": (sink, 9000), "origin": (origin, 9001)}
        for name, (command, port) in names.items():
            process = stack.enter_context(running(command, folder, logs / name))
            wait_for_port(port, process, seconds=INSTALL_S)
        say(f"$ {submit}")
        answer = subprocess.run(
            ["bash", "-c", submit], cwd=folder, stdout=subprocess.PIPE, check=True, timeout=ANSWER_S
        )
        job_id = json.loads(answer.stdout)["id"]
        callback = wait_for_callback(logs / "sink")
        say(json.dumps(callback))
        assert callback["job_id"] == job_id
        assert callback["success"] is True
        assert callback["size"] == (ROOT / "LICENSE").stat().st_size
        shown = subprocess.run(
            ["bash", "-c", look], cwd=folder, stdout=subprocess.PIPE, check=True, timeout=ANSWER_S
        ).stdout
        say(shown.decode())
        assert b"GNU GENERAL PUBLIC LICENSE" in shown
        stored = folder / "downloader-data" / "files" / job_id[:3] / job_id
        assert stored.read_bytes() == (ROOT / "LICENSE").read_bytes()


def main() -> None:
    # A shell that starts us in the background has it ignored, and what we start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="downloader-readme-") as name:
        folder, logs = Path(name, "clone"), Path(name, "logs")
        logs.mkdir()
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*IGNORED))
        try:
            walk(folder, logs)
        except BaseException:
            say("".join(log.read_text(errors="replace") for log in sorted(logs.iterdir())))
            raise
    say("The README's first five minutes work.")


if __name__ == "__main__":
    main()
