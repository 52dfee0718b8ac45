"""The service as its users start it, from any environment that has a version of it installed."""

from __future__ import annotations

import http.client
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import free_port, printed, python

_READY_S = 30.0
_STOP_S = 30.0
_POLL_S = 0.02

_DESCRIBE = """\
import json, platform, downloader, trio
print(json.dumps({"python": platform.python_version(), "trio": trio.__version__, "at": downloader.__file__}))
"""


@dataclass(frozen=True, slots=True)
class Build:
    """A version of the service: an environment in which it is installed."""

    label: str
    python: str
    """The environment's interpreter."""

    def facts(self) -> dict[str, str]:
        """Versions, and the commit if it is installed from a checkout."""
        facts = self._describe()
        source = Path(facts.pop("at")).parent
        git = ["git", "-C", str(source), "describe", "--always", "--dirty"]
        commit = subprocess.run(git, capture_output=True, check=False).stdout.decode().strip()
        return {**facts, "commit": commit or "?"}

    def answer_of(self, module: str, *args: object) -> dict[str, Any] | None:
        """The JSON object that a helper of this version's own bench prints.

        Helpers that call the store from inside are bound to its version.

        Returns:
            `None`: this version is not installed from a checkout, or its bench has no such helper.
        """
        checkout = Path(self._describe()["at"]).parents[2]
        if not (checkout / "bench" / f"{module}.py").exists():
            return None
        return printed(python(module, *args, interpreter=self.python), checkout)

    def _describe(self) -> dict[str, str]:
        return printed([self.python, "-c", _DESCRIBE])


@dataclass(frozen=True, slots=True)
class Service:
    """A running service."""

    pid: int
    port: int
    files: Path
    """Root of its file storage."""


class ServiceFailed(Exception):
    """The service did not start or did not stop; the text has its log's end."""


CONFIG = """\
data_dir = "{folder}/data"
[redis]
url = "{store}"
[processor]
concurrency = {concurrency}
grace = 10
retry_backoff = 1
ca_file = "{ca_file}"
[processor.filestorage]
type = "filesystem"
rootdir = "{folder}/files"
[egress.downloads]
allow = ["127.0.0.1"]
[egress.callbacks]
allow = ["127.0.0.1"]
[backends.http]
timeout = 30
[log]
level = "warning"
"""

CONCURRENCY = 256
"""Downloads in flight per process: the service's default, and so the floor's."""


@contextmanager
def service(
    folder: Path,
    build: Build,
    *,
    role: str = "run",
    processes: int = 1,
    store: str = "embedded",
    concurrency: int = CONCURRENCY,
    ca_file: str = "",
) -> Iterator[Service]:
    """A service, from its being ready to its having stopped.

    Args:
        folder: for its data; is made.
        build: which version.
        role: `run` or `api`.
        processes: of `run`.
        store: URL of the store; `embedded`: one of its own.
        concurrency: downloads in flight per process.
        ca_file: the authority of an HTTPS origin.
    """
    folder.mkdir()
    log, config, port = folder / "log", folder / "bench.toml", free_port()
    config.write_text(CONFIG.format(folder=folder, store=store, concurrency=concurrency, ca_file=ca_file))
    command = [build.python, "-m", "downloader", role, "-c", str(config), "--port", str(port)]
    if processes > 1:
        command += ["--processes", str(processes)]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=folder) as process:
        try:
            _await_ready(process, port, log)
            yield Service(pid=process.pid, port=port, files=folder / "files")
        finally:
            stop(process, log)


def stop(process: subprocess.Popen[bytes], log: Path) -> None:
    """SIGTERM, and wait for the end.

    Raises:
        ServiceFailed: it had to be killed, or ended with another status than 0.
    """
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise ServiceFailed(f"the service had to be killed: {_tail(log)}") from None
    if process.returncode:
        raise ServiceFailed(f"the service ended with status {process.returncode}: {_tail(log)}")


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceFailed(f"the service ended with status {process.returncode}: {_tail(log)}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        with suppress(OSError):
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        connection.close()
        time.sleep(_POLL_S)  # from outside there is nothing else to wait on
    raise ServiceFailed(f"the service was not ready after {_READY_S} s: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
