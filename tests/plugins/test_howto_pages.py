"""The guides in docs/howto: the commands are run as written, the configurations are read."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import httpx2
import pytest

from downloader.config import Settings, load_settings
from downloader.service import diagnose
from downloader.service.doctor import FindingState
from downloader.storage import Body
from downloader_plugins.filesystem import open_filesystem
from readme import running, wait_for_port
from servers.azurite import ACCOUNT, KEY, Azurite
from servers.pages import SHELL, line_of, sh, write
from servers.plugins import opened_storage
from servers.ports import spare_ports
from servers.valkey import Valkey

PORTS = dict(zip(("8000", "5555", "5556", "9092", "10000"), map(str, spare_ports(5)), strict=True))
"""Free ports, in place of the ports in the guides."""

GUIDES = {
    path.stem: re.sub(rf"\b({'|'.join(PORTS)})\b", lambda port: PORTS[port[0]], path.read_text("utf-8"))
    for path in (Path(__file__).parents[2] / "docs/howto").glob("*.md")
}

ENVIRON = {
    "REDIS_URL": "rediss://:secret@redis.internal",
    "STORE_KEY": "A" * 43 + "=",
    "SHOP_TOKEN": "shop" * 4,
    "PAGE_TOKEN": "page" * 4,
    "PROMETHEUS_TOKEN": "scraper" * 4,
    "WEBHOOK_SECRET": "whsec_c2VjcmV0",
    "OPERATOR_TOKEN": "operator" * 2,
    "SHOP_WEBHOOK_SECRET": "whsec_c2VjcmV0",
}
"""What the guides' configurations refer to."""

HEADERS = {
    "Content-Disposition": "attachment",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}
"""As at the API's `/files`."""

BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)

PORT = int(PORTS["8000"])
"""Where the services of the walks listen."""


def blocks(name: str, kind: str) -> list[str]:
    return [text for language, text in BLOCK.findall(GUIDES[name]) if language == kind]


START_S = 120.0
"""The machine is shared, and a program may wait long for its turn."""


def walk(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """A test that types a guide."""
    for mark in (pytest.mark.slow, pytest.mark.plugin, pytest.mark.fault, pytest.mark.timeout(600)):
        test = mark(test)
    return test


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reader's, with the service installed in `.venv`."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "logs").mkdir()
    return tmp_path


def serve(stack: ExitStack, command: str, folder: Path, port: int) -> Path:
    """A program of the page in a terminal of its own; what it prints."""
    log = folder / "logs" / str(port)
    wait_for_port(port, stack.enter_context(running(command, folder, log)), seconds=START_S)
    return log


def commands(page: str) -> list[str]:
    """All but the first, which installs what the tests' environment has."""
    install, *others = SHELL.findall(GUIDES[page])
    assert install.startswith(".venv/bin/pip install -q ")
    name = re.sub(r"\[.*", "", install.split()[-1].strip("'")).replace("-", "_")
    assert find_spec(name) is not None
    return others


def configure(folder: Path, page: str) -> None:
    """The page's configuration, with the port above."""
    write(folder, GUIDES[page])
    with (folder / "config.toml").open("a") as config:
        config.write(f"\n[api]\nport = {PORT}\n")


def tried(doctor: str, folder: Path) -> None:
    """The doctor finds no fault, if it has the time that a busy machine needs."""
    assert doctor == ".venv/bin/downloader doctor -c config.toml\n"
    own = {"data_dir": str(folder / "downloader-data")}
    given = load_settings(folder / "config.toml", environ={}, overrides=own)
    found = diagnose(given, show=lambda _: None, part_s=50, stuck_s=110)
    assert {one.part: one.text for one in found if one.state is FindingState.FAILED} == {}


@walk
def test_the_s3_guide_ends_with_a_file_in_the_bucket(folder: Path) -> None:
    moto, bucket, doctor, run, submit, look = commands("s3")
    configure(folder, "s3")
    with ExitStack() as stack:
        serve(stack, moto, folder, int(PORTS["5555"]))
        sh(bucket, folder)
        tried(doctor, folder)
        serve(stack, run, folder, PORT)
        state, job_id, size, _ = sh(f"DOWNLOADER_API=http://127.0.0.1:{PORT} {submit}", folder).split()
        assert state == "succeeded"
        assert sh(look, folder).splitlines() == [f"{size} files/{job_id[:3]}/{job_id}"]


@pytest.mark.azure
def test_the_cloud_guide_ends_with_a_file_in_the_container(folder: Path) -> None:
    _, _, container, doctor, run, submit, look, theirs = SHELL.findall(GUIDES["cloud"])
    configure(folder, "cloud")
    with ExitStack() as stack:
        azurite = stack.enter_context(Azurite(int(PORTS["10000"])))
        own = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={azurite.url}"
        sh(container.replace("UseDevelopmentStorage=true", own), folder)
        tried(doctor, folder)
        serve(stack, run, folder, PORT)
        state, job_id, size, _ = sh(f"DOWNLOADER_API=http://127.0.0.1:{PORT} {submit}", folder).split()
        assert state == "succeeded"
        found = sh(look.replace("UseDevelopmentStorage=true", own), folder)
        assert found.splitlines() == [f"{size} files/{job_id[:3]}/{job_id}"]
        state, job_id, *_ = sh(f"DOWNLOADER_API=http://127.0.0.1:{PORT} {theirs}", folder).split()
        assert state == "succeeded"
        assert f"theirs/{job_id[:3]}/{job_id}" in sh(look.replace("UseDevelopmentStorage=true", own), folder)


@walk
def test_the_keys_guide_ends_with_a_file_in_each_place(folder: Path) -> None:
    run, submit, look = SHELL.findall(GUIDES["keys"])
    configure(folder, "keys")
    with ExitStack() as stack:
        serve(stack, run, folder, PORT)
        rows = [
            row.split()
            for row in sh(f"export DOWNLOADER_API=http://127.0.0.1:{PORT}\n{submit}", folder).splitlines()
        ]
        assert [row[0] for row in rows] == ["succeeded"] * 3
        paths = sh(look, folder).splitlines()
    digest = hashlib.sha256((folder / "files/127.0.0.1/openapi.json").read_bytes()).hexdigest()
    today = datetime.now(UTC).date().isoformat()
    assert paths == [
        "files/127.0.0.1/openapi.json",
        f"files/{today}/openapi-{rows[1][1]}.json",
        f"files/blobs/{digest}.json",
    ]


@walk
def test_the_kafka_guide_ends_with_a_message_on_the_topic(folder: Path) -> None:
    broker, topics, doctor, run, submit, consumer = commands("kafka")
    configure(folder, "kafka")
    with ExitStack() as stack:
        serve(stack, broker, folder, int(PORTS["9092"]))
        sh(topics, folder)
        tried(doctor, folder)
        serve(stack, run, folder, PORT)
        job_id = json.loads(sh(submit, folder))["id"]
        log = folder / "logs" / "consumer"
        stack.enter_context(running(consumer, folder, log))
        assert_told(job_id, line_of(log, f"{job_id} ").partition(" ")[2])


@walk
def test_the_sqs_guide_ends_with_a_message_in_the_queue(folder: Path) -> None:
    moto, queue, doctor, run, submit, receive = commands("sqs")
    configure(folder, "sqs")
    with ExitStack() as stack:
        serve(stack, moto, folder, int(PORTS["5556"]))
        assert sh(queue, folder).endswith("/downloads\n")
        tried(doctor, folder)
        serve(stack, run, folder, PORT)
        job_id = json.loads(sh(submit, folder))["id"]
        assert_told(job_id, sh(receive, folder))


def assert_told(job_id: str, message: str) -> None:
    callback = json.loads(message)
    assert (callback["job_id"], callback["success"], callback["extra"]) == (job_id, True, "my-id-17")


@walk
def test_the_tls_guide_ends_with_an_answer_over_tls(folder: Path) -> None:
    certificate, run, ask = SHELL.findall(GUIDES["tls"])
    write(folder, GUIDES["tls"])
    sh(certificate, folder)
    with ExitStack() as stack:
        serve(stack, f"{run.strip()} --port {PORT}", folder, PORT)
        assert json.loads(sh(ask, folder))["status"] == "ok"
        command = f"SSL_CERT_FILE=cert.pem .venv/bin/downloader jobs --api https://localhost:{PORT}"
        assert sh(command, folder) == ""


@walk
def test_the_guide_of_backups_ends_with_the_jobs_of_the_backup(folder: Path) -> None:
    back_up, restore = SHELL.findall(GUIDES["backups"])
    run = f".venv/bin/downloader run --allow 127.0.0.1 --port {PORT}"
    api = f"DOWNLOADER_API=http://127.0.0.1:{PORT} .venv/bin/downloader"
    with ExitStack() as stack:
        serve(stack, run, folder, PORT)
        submit = f"{api} submit --wait http://127.0.0.1:{PORT}/openapi.json"
        _, job_id, *_ = sh(submit, folder).split()
    sh(back_up, folder)
    stored = folder / "downloader-data" / "files" / job_id[:3] / job_id
    content = stored.read_bytes()
    stored.unlink()
    sh(restore, folder)
    with ExitStack() as stack:
        serve(stack, run, folder, PORT)
        assert json.loads(sh(f"{api} job {job_id} --json", folder))["state"] == "succeeded"
        assert stored.read_bytes() == content


@pytest.mark.parametrize("name", [name for name in GUIDES if blocks(name, "toml")])
def test_the_configurations_of_a_guide_are_valid(name: str, tmp_path: Path) -> None:
    for text in blocks(name, "toml"):
        config = tmp_path / "config.toml"
        config.write_text(text)
        load_settings(config, environ=ENVIRON, overrides={})


@pytest.mark.slow
@pytest.mark.plugin
async def test_nginx_serves_stored_files_as_the_nginx_guide_says(tmp_path: Path) -> None:
    files, api = blocks("nginx", "nginx")
    [config, _] = blocks("nginx", "toml")
    section = tomllib.loads(config.replace("/srv/", f"{tmp_path}/"))["processor"]["filestorage"]
    del section["type"]
    async with opened_storage(open_filesystem, section) as storage:
        await storage.put("NSb/NSb4FOAs9fVaQw", Body(size=4, sha256="", mime_type="text/html", data=b"<p>x"))
    tmp_path.joinpath("files", ".tmp", "part").write_bytes(b"part")
    with nginx(tmp_path, files.replace("/srv/", f"{tmp_path}/"), api) as client:
        answer = client.get("http://files.example.org/NSb/NSb4FOAs9fVaQw")
        assert (answer.status_code, answer.content) == (200, b"<p>x")
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert client.get("http://files.example.org/.tmp/part").status_code == 404
        assert client.get("http://downloads.example.org/").status_code == 401


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


@contextmanager
def nginx(folder: Path, *servers: str) -> Iterator[httpx2.Client]:
    """Debian's nginx with these servers, on a socket in the folder; a client of it."""
    path = folder / "s"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder};" for kind in kinds)
    sites = "".join(servers).replace("listen 80;", f"listen unix:{path};")
    folder.joinpath("nginx.conf").write_text(
        f"daemon off; user root root; pid {folder}/pid; events {{ }}\n"
        f"http {{ access_log off; {temporary}\n{sites} }}\n"
    )
    command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command) as process:
        try:
            while not listens(path):
                assert process.poll() is None
                time.sleep(0.005)
            with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path))) as client:
                yield client
        finally:
            process.terminate()


@pytest.mark.slow
@pytest.mark.plugin
def test_the_doctor_approves_of_a_server_with_the_redis_guides_settings(tmp_path: Path) -> None:
    [text] = [text for text in blocks("redis", "text") if "ACL" not in text]
    options = [word for line in text.splitlines() for word in ("--" + line).split()]
    with Valkey(*options) as server:
        redis = {"url": server.url, "durability": "aof"}
        given = Settings.model_validate({"data_dir": str(tmp_path), "api": {"port": 0}, "redis": redis})
        [found] = [one for one in diagnose(given, show=lambda _: None) if one.part == "redis"]
        assert found.state is FindingState.OK, found.text
