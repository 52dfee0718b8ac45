"""Builds the image of the Containerfile and runs it as its users do; exits 1 if something does not hold.

Not for pytest: it needs root, Debian's tools for containers, a Debian mirror and the package registry.
`nox -s image` runs it. The image is built on the machine's network, and run on one without any way out, where
every port is free. `--keep FOLDER` keeps what was made, and a second run with it makes only our own image.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from containers import (
    BASE,
    VALKEY,
    VALKEY_RECIPE,
    Container,
    Engine,
    build,
    build_base,
    isolated,
    pip_secrets,
    say,
    until,
)
from peer import BODY, PORT, Peer, open_peer

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
IMAGE = "docker.io/library/downloader"
"""What compose.yaml's `downloader` means to an engine that speaks Docker's API."""

PACKAGES = "buildah podman runc debootstrap docker-compose netavark aardvark-dns nftables"
TOOLS = ("buildah", "podman", "runc", "debootstrap", "docker-compose", "nft")

USER = 10001
GRACE_S = 20.0
STOP_S = 30.0
"""What docs/deployment.md tells people to give a container."""

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def get(path: str, *, port: int = 8000) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        body: bytes = answer.read()
    return body


def answers(path: str, *, port: int = 8000) -> bool:
    """Whether a GET succeeds."""
    try:
        get(path, port=port)
    except OSError:
        return False
    return True


def ready(*, port: int = 8000) -> None:
    """Wait until somebody serves."""
    until(lambda: answers("/health/ready", port=port), what="readiness")


def submit(path: str, *, host: str = "127.0.0.1") -> str:
    """POST a job whose peer is ours; returns its id."""
    return post(f"http://{host}:{PORT}{path}", callback=f"http://{host}:{PORT}/done")


def post(url: str, *, callback: str) -> str:
    """POST a job; returns its id."""
    job = {"aggr_id": "image", "aggr_limit": 2, "url": url, "callback_url": callback}
    request = urllib.request.Request("http://127.0.0.1:8000/download", data=json.dumps(job).encode())
    with urllib.request.urlopen(request, timeout=5) as answer:
        job_id: str = json.load(answer)["id"]
    return job_id


def check_content(engine: Engine) -> None:
    """The image's configuration, and what is in it."""
    image = engine.inspect("image", IMAGE)
    config = image["Config"]
    assert config["Entrypoint"] == ["/opt/downloader/bin/downloader"], config
    assert config["Cmd"] == ["run"], config
    assert config["User"] == f"{USER}:{USER}", config
    assert config["WorkingDir"] == "/data", config
    assert list(config["Volumes"]) == ["/data"], config
    assert list(config["ExposedPorts"]) == ["8000/tcp"], config
    assert config["StopSignal"] == "SIGTERM", config
    assert image["Healthcheck"]["Test"] == ["CMD", "/opt/downloader/bin/downloader", "health"], image
    assert config["Labels"]["org.opencontainers.image.description"] == PROJECT["description"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == PROJECT["license"]
    own_bytes = image["Size"] - engine.inspect("image", BASE)["Size"]
    say(f"the image is {own_bytes / 1e6:.0f} MB larger than its base")

    # No sources, no installer, no caches, and nothing that the service could write but its volume.
    look = "ls /opt; ls /opt/downloader/bin | grep pip; ls -d /src /root/.cache;"
    look += "find /opt /usr /etc /data -writable ! -type l"
    seen = engine.once(IMAGE, "-c", look, options=["--entrypoint=/bin/sh"])
    assert seen.out.split() == ["downloader", "/data"], seen
    package = (ROOT / "src/downloader/__init__.py").read_text("utf-8")
    assert f'__version__ = "{engine.once(IMAGE, "version").out}"\n' in package
    plugins = {one["name"] for one in json.loads(engine.once(IMAGE, "plugins", "--json").out)}
    for path in [ROOT / "pyproject.toml", *ROOT.glob("examples/*/pyproject.toml")]:
        groups = tomllib.loads(path.read_text("utf-8"))["project"].get("entry-points", {})
        wanted = {
            name for group, names in groups.items() if group.startswith("downloader.") for name in names
        }
        assert wanted <= plugins, f"{path}: {wanted - plugins} not in the image"


def check_everything(engine: Engine, peer: Peer) -> None:
    """No arguments: all roles and a Valkey in a container that can write nothing but its volume."""
    allow = '["127.0.0.1"]'
    options = [
        *("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--volume=everything:/data"),
        f"--env=DOWNLOADER_EGRESS__DOWNLOADS__ALLOW={allow}",
        f"--env=DOWNLOADER_EGRESS__CALLBACKS__ALLOW={allow}",
    ]
    began = time.monotonic()
    container = engine.start(IMAGE, options=options)
    ready()
    say(f"`run` was ready {time.monotonic() - began:.2f} s after the container was asked for")

    status = Path(f"/proc/{container.pid}/status").read_text()
    assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}" in status, status
    inside = container.processes()
    assert [pid for pid, _, args in inside if "/opt/downloader/bin/downloader run" in args] == [1], inside
    assert len([args for _, _, args in inside if "valkey-server" in args]) == 1, inside

    job_id = submit("/file")
    callback = peer.callback(job_id)
    assert callback["success"] is True, callback
    assert callback["sha256"] == hashlib.sha256(BODY).hexdigest(), callback
    volume = Path(engine.inspect("volume", "everything")["Mountpoint"])
    files = volume / "downloader-data" / "files"
    assert (files / job_id[:3] / job_id).read_bytes() == BODY

    held_id = submit("/held")
    assert peer.holding.wait(10)
    began = time.monotonic()
    container.signal("SIGTERM")
    until(lambda: container.events("service.stopping"), what="the drain")
    peer.release.set()
    assert container.wait(STOP_S) == 0
    took = time.monotonic() - began
    assert took < GRACE_S, took
    assert (files / held_id[:3] / held_id).read_bytes() == BODY
    assert container.events("service.stopped")
    say(f"SIGTERM with a download in flight: drained in {took:.2f} s")

    engine.ask("podman", "start", container.name)
    ready()
    # The queue was on the volume: a callback that was not sent before the end is sent now.
    assert peer.callback(held_id)["success"] is True
    assert container.wait_for_stop() == 0
    container.remove()


def check_any_user(engine: Engine) -> None:
    """A user id of the platform's choice in group 0, and several processes under process 1."""
    options = ["--read-only", "--user=1000620000:0"]
    container = engine.start(IMAGE, "run", "--processes", "2", options=options)
    ready()
    until(lambda: len(container.events("service.started")) == 2, what="both processes")
    assert not [state for _, state, _ in container.processes() if state.startswith("Z")]
    assert container.wait_for_stop() == 0
    container.remove()


def check_one_role(engine: Engine) -> None:
    """`api -c FILE --host --port` against a Valkey beside it."""
    file = engine.folder / "custom-config.toml"
    file.write_text('[redis]\nurl = "redis://127.0.0.1:6379"\n[backends.http]\n')
    valkey = engine.start(VALKEY, "valkey-server")
    until(lambda: answers_tcp(6379), what="the Valkey")
    arguments = ("api", "-c", "/custom-config.toml", "--host", "0.0.0.0", "--port", "8010")
    container = engine.start(
        IMAGE, *arguments, options=["--read-only", f"--volume={file}:/custom-config.toml:ro"]
    )
    ready(port=8010)
    [started] = container.events("service.started")
    assert started["roles"] == ["api"], started
    engine.ask("podman", "healthcheck", "run", container.name)
    assert len(container.processes()) == 1, container.processes()
    assert container.wait_for_stop() == 0
    container.remove()
    valkey.remove()


def check_commands(engine: Engine) -> None:
    """Commands that end, and a start that cannot be."""
    fetched = engine.once(IMAGE, "fetch", "http://127.0.0.1:9000/file", options=["--read-only"])
    assert fetched.out.startswith(f"ok {len(BODY)} "), fetched

    readonly = engine.once(IMAGE, options=["--read-only", f"--volume={engine.folder / 'empty'}:/data"])
    assert readonly.status == 2, readonly
    assert readonly.err.startswith("downloader: data_dir: "), readonly
    assert len(readonly.err.splitlines()) == 1, readonly

    # Before it has any part that could drain, too. Process 1 has no default action for signals.
    container = engine.start(IMAGE)
    while container.pid:
        container.signal("SIGTERM")
    assert container.exit_status == 128 + signal.SIGTERM, container.exit_status
    container.remove()


def check_compose(engine: Engine, peer: Peer) -> None:
    """compose.yaml, by Docker's own compose, which checks it against the specification."""
    address = f"unix://{engine.folder}/podman.sock"
    override = engine.folder / "override.json"
    ours = ("api", "processor", "notifier")
    # The image has been built, with what this machine needs to reach its package index.
    override.write_text(json.dumps({"services": {name: {"pull_policy": "never"} for name in ours}}))
    environment = {
        **engine.environment,
        "DOCKER_HOST": address,
        "COMPOSE_PROJECT_NAME": "fleet",
        # Of the network that compose makes: there our peer is the gateway.
        "DOWNLOADS_ALLOW": '["10.0.0.0/8", "origin"]',
        "CALLBACKS_ALLOW": '["10.0.0.0/8", "sink"]',
    }

    def compose(*arguments: str) -> str:
        command = ["docker-compose", "-f", str(ROOT / "compose.yaml"), "-f", str(override), *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    config = json.loads(compose("config", "--format", "json"))
    for name in ours:
        recipe = config["services"][name]["build"]
        assert Path(recipe["context"], recipe["dockerfile"]) == ROOT / "Containerfile"
    assert config["services"]["valkey"]["image"] == VALKEY

    with ExitStack() as stack:
        command = ["podman", "system", "service", "--time=0", address]
        service = stack.enter_context(subprocess.Popen(command, env=engine.environment))
        stack.callback(service.terminate)
        until((engine.folder / "podman.sock").exists, what="podman's API")
        with health_checks(engine, "fleet-valkey-1"):
            compose("--profile", "demo", "up", "--detach", "--no-build", "--scale", "processor=2")
        stack.callback(compose, "down", "--volumes")
        ready()
        for name in ("api", "processor", "notifier", "origin"):
            engine.ask("podman", "healthcheck", "run", f"fleet-{name}-1")
        network = engine.inspect("network", "fleet_default")["subnets"][0]["gateway"]
        job_id = submit("/file", host=network)
        callback = peer.callback(job_id)
        assert callback["success"] is True, callback
        assert callback["download_url"].startswith("http://127.0.0.1:8000/files/"), callback
        # Written by a processor, read by the API.
        assert get(callback["download_url"].removeprefix("http://127.0.0.1:8000")) == BODY
        job_id = post("http://origin:9001/LICENSE", callback="http://sink:9000/done")
        until(lambda: job_id in Container(engine, "fleet-sink-1").log(), what="the demo's callback")
        [printed] = [line for line in Container(engine, "fleet-sink-1").log().splitlines() if job_id in line]
        assert json.loads(printed)["success"] is True, printed
        compose("--profile", "demo", "stop")
        for name in ("api-1", "processor-1", "processor-2", "notifier-1"):
            container = Container(engine, f"fleet-{name}")
            assert container.exit_status == 0, name
            assert container.events("service.stopped"), name


@contextmanager
def health_checks(engine: Engine, name: str) -> Iterator[None]:
    """Run a container's health check now and then; podman leaves that to systemd, which need not run here."""
    done = threading.Event()

    def check() -> None:
        while not done.wait(0.3):
            engine.run("podman", "healthcheck", "run", name)

    thread = threading.Thread(target=check)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def answers_tcp(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def loopback_up() -> None:
    """Switch on the one interface that a new network namespace has; netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))


def build_all(engine: Engine) -> None:
    """Base, stand-in for the Valkey, and our image."""
    engine.write()
    if engine.run("buildah", "inspect", "--type=image", VALKEY).status:
        build_base(engine)
        (engine.folder / "empty").mkdir(exist_ok=True)
        build(engine, engine.folder / "empty", "--tag", VALKEY, recipe=VALKEY_RECIPE)
    also = " ".join(f"./{path.parent.relative_to(ROOT)}" for path in ROOT.glob("examples/*/pyproject.toml"))
    began = time.monotonic()
    secrets = pip_secrets(engine.folder)
    build(engine, ROOT, f"--build-arg=PACKAGES={also}", *secrets, "--tag", IMAGE)
    say(f"the image took {time.monotonic() - began:.0f} s to build")


def check_all(engine: Engine) -> None:
    """Everything that needs no network but its own."""
    loopback_up()
    try:
        with open_peer() as peer:
            check_content(engine)
            check_everything(engine, peer)
            check_any_user(engine)
            check_one_role(engine)
            check_commands(engine)
            check_compose(engine, peer)
    except BaseException:
        for name in engine.ask("podman", "ps", "--all", "--quiet").split():
            say(f"--- {name}\n{Container(engine, name).log()}")
        raise
    finally:
        engine.run("podman", "rm", "--all", "--force", "--time=0", "--volumes")
        engine.run("podman", "volume", "rm", "--all", "--force")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--stage", choices=("build", "check"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        (build_all if arguments.stage == "build" else check_all)(Engine(arguments.keep))
        return
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise SystemExit(f"not installed: {', '.join(missing)}. apt-get install {PACKAGES}")
    if os.geteuid() != 0:
        raise SystemExit("the test of the image needs root")
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="downloader-image-", dir="/var/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        isolated(__file__, "--stage=build", f"--keep={folder}", network=True)
        isolated(__file__, "--stage=check", f"--keep={folder}", network=False)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)
    say("The image works.")


if __name__ == "__main__":
    main()
