"""Images and containers without a Docker daemon: buildah builds, podman runs, all of it in one folder.

For root on Debian. `Engine.write` makes the folder's configuration; every command finds it by environment,
so the machine's own containers are not touched. What is started under `isolated` ends with it.
"""

from __future__ import annotations

import configparser
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

POLL_S = 0.02
COMMAND_S = 240.0
"""Installing packages is the slowest of commands."""

BASE = "docker.io/library/python:3.13-slim"
"""What the Containerfile builds on. Tests reach no registry of images, so Debian stands in for it."""

VALKEY = "docker.io/valkey/valkey:9"
"""Likewise, for compose.yaml's."""

VALKEY_RECIPE = f"""\
FROM {BASE}
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
    valkey-server valkey-tools >/dev/null
WORKDIR /data
VOLUME /data
"""


T = TypeVar("T")


def say(text: str) -> None:
    """Print a line to CI's log."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def until(look: Callable[[], T], *, what: str, seconds: float = 20.0) -> T:
    """What `look` answers once that is true.

    Raises:
        SystemExit: it was not true in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(POLL_S)
    return found


def isolated(script: str, *arguments: str, network: bool) -> None:
    """Run one of our scripts as root of a namespace: its mounts and processes end with it.

    Args:
        script: path of the Python file.
        arguments: of the script.
        network: whether it gets the machine's network, or one of its own with nothing in it.

    Raises:
        CalledProcessError: it exited with another status than 0.
    """
    apart = ["--mount", "--mount-proc", "--pid", "--fork", "--kill-child", *([] if network else ["--net"])]
    subprocess.run(["unshare", *apart, sys.executable, script, *arguments], check=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A command that has ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Engine:
    """buildah and podman on one folder."""

    folder: Path
    environment: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        names = {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }
        object.__setattr__(self, "environment", {**os.environ, **names})

    def write(self) -> None:
        """Make the configuration."""
        # Engines ask for more than a process without CAP_SYS_RESOURCE may have.
        limits = [
            f"{name}={hard}:{hard}"
            for name, hard in (
                ("nofile", resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
                ("nproc", resource.getrlimit(resource.RLIMIT_NPROC)[1]),
            )
            if hard != resource.RLIM_INFINITY
        ]
        # runc with cgroupfs works under systemd and without, and where cgroups v1 and v2 are mixed.
        (self.folder / "containers.conf").write_text(
            f"[containers]\ndefault_ulimits = {json.dumps(limits)}\nlog_driver = 'k8s-file'\n"
            "[engine]\nruntime = 'runc'\ncgroup_manager = 'cgroupfs'\nevents_logger = 'file'\n"
            f"tmp_dir = '{self.folder}/tmp'\n"
            f"[network]\nnetwork_config_dir = '{self.folder}/networks'\n"
        )
        (self.folder / "storage.conf").write_text(
            "[storage]\ndriver = 'overlay'\n"
            f"graphroot = '{self.folder}/storage'\nrunroot = '{self.folder}/run'\n"
        )

    def run(self, *command: str, input_text: str = "", seconds: float = COMMAND_S) -> Ran:
        """Run a command of any of the tools, whatever its status."""
        done = subprocess.run(
            command,
            input=input_text,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=seconds,
            check=False,
        )
        return Ran(status=done.returncode, out=done.stdout.strip(), err=done.stderr.strip())

    def ask(self, *command: str, input_text: str = "") -> str:
        """What a command prints.

        Raises:
            SystemExit: it failed.
        """
        done = self.run(*command, input_text=input_text)
        if done.status:
            raise SystemExit(f"{' '.join(command)}: status {done.status}\n{done.out}\n{done.err}")
        return done.out

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """What podman knows of an image, a container, a volume or a network."""
        [found] = json.loads(self.ask("podman", kind, "inspect", name))
        return dict(found)

    def start(self, image: str, *arguments: str, options: Sequence[str] = ()) -> Container:
        """A container in the background, on the network of whoever asks."""
        name = self.ask("podman", "run", "--detach", "--network=host", *options, image, *arguments)
        return Container(self, name)

    def once(self, image: str, *arguments: str, options: Sequence[str] = ()) -> Ran:
        """Run a container to its end."""
        return self.run("podman", "run", "--rm", "--network=host", *options, image, *arguments)


@dataclass(frozen=True, slots=True)
class Container:
    """One that was started."""

    engine: Engine
    name: str

    @property
    def pid(self) -> int:
        """The process id of its process 1 outside of it; 0 once it has ended."""
        return int(self.engine.inspect("container", self.name)["State"]["Pid"])

    @property
    def exit_status(self) -> int:
        """The exit status of its process 1, once it has ended."""
        return int(self.engine.inspect("container", self.name)["State"]["ExitCode"])

    def log(self) -> str:
        """What it has printed so far."""
        ran = self.engine.run("podman", "logs", self.name)
        return f"{ran.out}\n{ran.err}".strip()

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Its log lines, all of which have to be JSON, with this event."""
        lines = [json.loads(line) for line in self.log().splitlines()]
        return [line for line in lines if not name or line["event"] == name]

    def processes(self) -> list[tuple[int, str, str]]:
        """Number inside, state and command of each of its processes."""
        shown = self.engine.ask("podman", "top", self.name, "pid", "state", "args").splitlines()[1:]
        return [(int(pid), state, args) for pid, state, args in (line.split(None, 2) for line in shown)]

    def signal(self, name: str) -> None:
        """Send its process 1 a signal; nothing if it has ended."""
        self.engine.run("podman", "kill", f"--signal={name}", self.name)

    def wait_for_stop(self, seconds: float = 30.0) -> int:
        """Its exit status after a SIGTERM."""
        self.signal("SIGTERM")
        return self.wait(seconds)

    def wait(self, seconds: float) -> int:
        """Its exit status, once it has ended by itself."""
        until(lambda: self.pid == 0, what=f"the end of {self.name[:12]}", seconds=seconds)
        return self.exit_status

    def remove(self) -> None:
        """End it and forget it with its unnamed volumes."""
        self.engine.run("podman", "rm", "--force", "--time=0", "--volumes", self.name)


def build_base(engine: Engine) -> None:
    """Debian with Python, from the machine's own mirror, under the name of the official image."""
    mirror, release = debian_mirror()
    root = engine.folder / "base"
    extra = "--include=python3,python3-venv,ca-certificates"
    engine.ask("debootstrap", "--variant=minbase", extra, release, str(root), mirror)
    shutil.rmtree(root / "var/cache/apt/archives")
    # The official image has no bytecode of the standard library either.
    for compiled in (root / "usr/lib").glob("python3*/**/*.pyc"):
        compiled.unlink()
    container = engine.ask("buildah", "from", "scratch")
    engine.ask("buildah", "add", "-q", container, str(root), "/")
    engine.ask("buildah", "commit", "-q", container, BASE)
    engine.ask("buildah", "rm", container)
    shutil.rmtree(root)


def build(engine: Engine, folder: Path, *options: str, recipe: str = "") -> None:
    """Build an image from a folder and its Containerfile, or from a recipe given as text."""
    file = "-" if recipe else str(folder / "Containerfile")
    command = ["buildah", "build", "--quiet", "--pull=never", "--layers=false", "--format=docker", *options]
    engine.ask(*command, "--file", file, str(folder), input_text=recipe)


def debian_mirror() -> tuple[str, str]:
    """Where this machine's apt gets its packages, and the name of its release."""
    system = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    release = system["VERSION_CODENAME"].strip('"')
    offline = ["-o", "APT::Get::IndexTargets::ReleaseInfo=false", "--format", "$(REPO_URI) $(RELEASE)"]
    listed = subprocess.run(
        ["apt-get", "indextargets", *offline, "Created-By: Packages"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for line in listed.stdout.splitlines():
        address, _, name = line.partition(" ")
        if name == release and address.startswith("http"):
            return address, release
    raise SystemExit(f"apt's sources name no mirror of {release}")


def pip_secrets(folder: Path) -> list[str]:
    """This machine's way to its package index as options of a build: a pip.conf, and whom to trust."""
    parser = configparser.ConfigParser(interpolation=None)
    home = Path.home()
    files = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"), home / ".pip/pip.conf"]
    parser.read([*files, home / ".config/pip/pip.conf", os.environ.get("PIP_CONFIG_FILE", "")])
    found = dict(parser["global"]) if parser.has_section("global") else {}
    kept = {}
    for key in ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "cert"):
        variable = f"PIP_{key.replace('-', '_').upper()}"
        if value := os.environ.get(variable) or found.get(key):
            kept[key] = value
    options = []
    if certificates := kept.pop("cert", ""):
        options += ["--secret", f"id=ca.pem,src={certificates}"]
        kept["cert"] = "/run/ca.pem"
    path = folder / "pip.conf"
    path.write_text("".join(["[global]\n", *(f"{key} = {value}\n" for key, value in kept.items())]))
    return ["--secret", f"id=pip.conf,src={path}", *options]
