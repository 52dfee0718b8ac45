"""A process that has imported the service, and forks for each program to be run.

Run as a program by `servers.forked`, with a socket of whole messages as standard input. A request is JSON,
with standard input, output and error as descriptors if it starts something; the answer is a number:

- `{"module", "arguments", "environ", "cwd"}`: `python -m MODULE ARGUMENTS`, in a session of its own; answers
  its process id.
- `{"ended": ID}`: answers that one's exit status, negative for a signal. Until then the id is not used again.

What it has started ends with it, and it ends when the socket closes.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import threading
from typing import Any

import downloader
import downloader_plugins

REQUEST_BYTES = 100_000
"""Above any environment, and below what a socket takes as one message."""

PR_SET_PDEATHSIG = 1


def import_all() -> None:
    """Import what any role needs, plugins too, into memory that children share."""
    for package in (downloader, downloader_plugins):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name != "downloader.__main__" and not found.name.startswith("downloader.testing"):
                importlib.import_module(found.name)
    assert threading.active_count() == 1, "only this thread would be there after a fork"
    gc.collect()
    gc.freeze()


def serve(control: socket.socket) -> dict[str, Any]:
    """Serve requests until the socket closes; returns in a child, with the program to be run."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, REQUEST_BYTES, 3)
        if not data:
            sys.exit()
        request: dict[str, Any] = json.loads(data)
        if "ended" in request:
            _, status = os.waitpid(request["ended"], 0)
            control.send(b"%d" % os.waitstatus_to_exitcode(status))
        elif os.fork() == 0:
            become(control, request, descriptors)
            return request
        for descriptor in descriptors:
            os.close(descriptor)


def become(control: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
    """Make this child like a newly started process, and send the process id."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.path[:0] = filter(None, request["environ"].get("PYTHONPATH", "").split(os.pathsep))
    importlib.invalidate_caches()
    sys.argv[1:] = request["arguments"]
    control.send(b"%d" % os.getpid())
    control.detach()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, max(descriptors) + 1)


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    import_all()
    runpy.run_module(serve(socket.socket(fileno=0))["module"], run_name="__main__", alter_sys=True)
