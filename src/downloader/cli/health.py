"""`downloader health`: whether a service on this machine answers; the image's health check."""

from __future__ import annotations

from itertools import dropwhile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from downloader.cli.options import load
from downloader.cli.roles import api, run
from downloader.errors import DownloaderError


def health(*, pid: Annotated[int, Parameter(name="--pid")] = 1) -> None:
    """Tell by the exit status whether the service in this container is healthy.

    Asks the API of a running service GET /health/live, at the address that
    the arguments of its process and its configuration give. A processor or
    notifier has no port: it counts as healthy while its process runs. The
    image uses it as its health check. Linux only.

    For example:
      downloader health
      downloader health --pid 4711

    Args:
        pid: Process id of the service; 1 in a container.
    """
    from downloader.cli import make_app

    try:
        words = Path(f"/proc/{pid}/cmdline").read_text("utf-8").split("\0")[:-1]
    except OSError as error:
        raise DownloaderError(f"process {pid}: {error.strerror}") from error
    arguments = list(dropwhile(lambda word: Path(word).name != "downloader", words))[1:]
    command, bound, _ = make_app().parse_args(arguments, exit_on_error=False, print_error=False)
    if command in (run, api):
        from httpx2 import HTTPTransport

        from downloader.client import Client

        flags = {f"api.{name}": bound.arguments.get(name) for name in ("host", "port")}
        found = load(bound.arguments.get("config"), flags).api
        # Whatever name the certificate has: the connection stays on this machine.
        with Client(found.local_url, retries=0, transport=HTTPTransport(verify=False)) as client:
            client.ping()
