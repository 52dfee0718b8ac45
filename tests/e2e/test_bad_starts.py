"""Every failed start is one clear line on standard error and the right status."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from servers.cli import Ran, run_cli
from servers.fleet import DEFAULTS, Tables, merged, to_toml
from servers.valkey import Valkey

pytestmark = pytest.mark.slow


def start(folder: Path, server: Valkey | None, role: str, tables: dict[str, dict[str, Any]]) -> Ran:
    own: Tables = {
        "": {"data_dir": str(folder / "data")},
        "redis": {"url": server.url if server else "embedded", "timeout": 1.0},
    }
    config = folder / "config.toml"
    config.write_text(to_toml(merged(merged(DEFAULTS, own), tables)))
    return run_cli(role, "-c", config)


def test_a_notifier_without_backends(folder: Path, server: Valkey) -> None:
    ran = start(folder, server, "notifier", {"backends.http": {}})
    assert (ran.status, ran.out) == (2, "")
    assert "[backends]" in ran.complaint


def test_an_unknown_key(folder: Path) -> None:
    ran = start(folder, None, "processor", {"processor": {"concurency": 3}})
    assert ran.status == 2
    assert ran.complaint.endswith("unknown key processor.concurency; did you mean processor.concurrency?")


def test_a_value_of_the_wrong_type(folder: Path) -> None:
    ran = start(folder, None, "processor", {"processor": {"lease": "soon"}})
    assert ran.status == 2
    assert "processor.lease must be a valid number" in ran.complaint


@pytest.mark.parametrize(
    ("role", "tables", "expected"),
    [
        ("notifier", {"backends.carrier_pigeon": {"loft": 1}}, "backends.carrier_pigeon: "),
        ("processor", {"processor.filestorage": {"type": "tape"}}, "processor.filestorage"),
        ("notifier", {"backends.http": {"tmeout": 3}}, "backends.http: "),
    ],
)
def test_a_missing_plugin_or_a_wrong_key_of_one(
    folder: Path, server: Valkey, role: str, tables: dict[str, dict[str, Any]], expected: str
) -> None:
    ran = start(folder, server, role, tables)
    assert ran.status == 2
    assert expected in ran.complaint


@pytest.mark.parametrize(
    ("role", "tables"),
    [
        ("run", {"": {"data_dir": "/proc/none"}}),
        ("processor", {"processor.filestorage": {"type": "filesystem", "rootdir": "/proc/none"}}),
        ("processor", {"processor": {"storage_dir": "/dev/null/none"}}),
    ],
)
def test_a_folder_that_cannot_be_written(
    folder: Path, server: Valkey, role: str, tables: dict[str, dict[str, Any]]
) -> None:
    ran = start(folder, None if role == "run" else server, role, tables)
    assert ran.status == 2
    assert "/none" in ran.err
    assert "Traceback" not in ran.err
    assert [line for line in ran.err.splitlines() if not line.startswith("{")] == [
        "downloader: " + ran.err.splitlines()[-1].removeprefix("downloader: ")
    ]


def test_a_port_in_use(folder: Path, server: Valkey) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = start(folder, server, "api", {"api": {"port": port}})
    assert ran.status == 2
    assert ran.complaint == f"api.port: cannot listen on 127.0.0.1:{port}: Address already in use"


@pytest.mark.parametrize("role", ["api", "processor", "notifier", "run"])
def test_an_unreachable_redis(folder: Path, role: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ran = start(folder, None, role, {"redis": {"url": f"redis://:hunter2@127.0.0.1:{port}/0"}})
    assert ran.status == 1
    assert ran.complaint.startswith(f"cannot reach the store at 127.0.0.1:{port}: ")
    assert "hunter2" not in ran.err


def test_a_redis_that_accepts_and_stays_silent(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        ran = start(folder, None, "processor", {"redis": {"url": f"redis://127.0.0.1:{port}"}})
    assert ran.status == 1
    assert ran.complaint.startswith(f"cannot reach the store at 127.0.0.1:{port}: ")


@pytest.mark.parametrize("password", ["wrong", ""])
@pytest.mark.row("F12")
def test_a_wrong_password(folder: Path, password: str) -> None:
    with Valkey("--requirepass", "right") as server:
        url = f"unix://:{password}@{server.socket}" if password else server.url
        ran = start(folder, None, "api", {"redis": {"url": url}})
    assert ran.status in (1, 2)
    assert ran.complaint.startswith(f"{server.socket}: the store refuses us: ")
    assert "wrong@" not in ran.err


def test_a_store_of_another_shape(folder: Path, server: Valkey) -> None:
    server.command("SET", "downloader:1:{0}:layout", '{"version": 1, "shards": 16}')
    ran = start(folder, server, "api", {})
    assert ran.status in (1, 2)
    assert "16 shards" in ran.complaint


def test_a_store_of_a_version_that_is_not_known(folder: Path, server: Valkey) -> None:
    server.command("SET", "downloader:1:{0}:layout", '{"version": 2, "shards": 1}')
    ran = start(folder, server, "api", {})
    assert ran.status in (1, 2)
    assert ran.complaint == f"{server.socket}: the store has layout 2 and this version of the service uses 1"


def test_a_server_that_is_not_redis(folder: Path) -> None:
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as web:
        if (child := os.fork()) == 0:
            os.close(read)
            for _ in range(8):
                connection, _ = web.accept()
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()
            os._exit(0)
        port = web.getsockname()[1]
        try:
            ran = start(folder, None, "api", {"redis": {"url": f"redis://127.0.0.1:{port}"}})
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
            os.close(read)
            os.close(write)
    assert ran.status == 1
    assert f"127.0.0.1:{port}" in ran.complaint


@pytest.mark.parametrize("processes", ["0", "two"])
def test_a_wrong_number_of_processes(folder: Path, processes: str) -> None:
    ran = run_cli("run", "--data-dir", folder / "d", "--processes", processes)
    assert ran.status == 2
    assert "processes" in ran.complaint


def test_a_child_that_cannot_start_ends_the_whole(folder: Path, server: Valkey) -> None:
    tables = {"processor.filestorage": {"type": "filesystem", "rootdir": "/proc/none"}}
    own: Tables = {"": {"data_dir": str(folder / "data")}, "redis": {"url": server.url, "timeout": 1.0}}
    config = folder / "config.toml"
    config.write_text(to_toml(merged(merged(DEFAULTS, own), tables)))
    ran = run_cli("run", "-c", config, "--processes", "2")
    assert ran.status == 2
    assert "/proc/none" in ran.complaint
