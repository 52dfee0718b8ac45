"""`downloader doctor` against real servers, and against dead servers."""

from __future__ import annotations

import base64
import json
import os
import pty
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trio

from downloader.config import Settings
from downloader.service import Finding, diagnose
from downloader.service.doctor import FindingState, is_loopback, secrets_of
from servers.aws import CREDENTIALS, REGION, Moto
from servers.cli import TIMEOUT_S, run_cli
from servers.fleet import Tables, open_fleet, to_toml
from servers.forked import environment, fork
from servers.kafka import Tansu
from servers.ports import spare_port
from servers.stranger import install
from servers.valkey import Valkey
from servers.valkey_groups import open_cluster, watched_by_sentinel

pytestmark = pytest.mark.slow

PARTS = [
    *("redis", "processor.filestorage", "processor.s3", "backends.http"),
    *("spool", "api"),
]


def settings(folder: Path, **tables: Any) -> Settings:
    own = {"data_dir": str(folder / "data"), "api": {"port": 0}, "backends": {"http": {}}}
    return Settings.model_validate({**own, **tables})


def examined(given: Settings, **bounds: float) -> dict[str, Finding]:
    def never(findings: object) -> None:
        pytest.fail(f"it was given up: {findings}")

    return {finding.part: finding for finding in diagnose(given, show=never, **bounds)}


def on(server: Valkey, **more: Any) -> dict[str, Any]:
    # Long, because a busy machine may take a second for an answer; `lease` allows no more.
    return {"url": server.url, "timeout": 15.0, **more}


def failed(findings: dict[str, Finding]) -> dict[str, str]:
    return {part: found.text for part, found in findings.items() if found.state is FindingState.FAILED}


def test_all_parts_pass_and_nothing_is_left(folder: Path, server: Valkey) -> None:
    findings = examined(settings(folder, redis=on(server, durability="aof")))
    assert list(findings) == PARTS
    assert failed(findings) == {}
    text = findings["redis"].text
    assert text.startswith(("Valkey ", "Redis "))
    assert ", waiting for aof; secrets of jobs are not encrypted; it has no maxmemory" in text
    assert findings["processor.filestorage"].text == "filesystem: wrote and deleted an object"
    assert findings["processor.s3"].text == "opens; nothing to try until a job brings a bucket"
    assert not [path for path in folder.rglob("*") if path.is_file()]
    keys = server.command("KEYS", "*")
    assert all(name in keys for name in (b":layout", b":synced"))
    assert keys.startswith(b"*2"), "what a start leaves, and no more"


def test_secrets_are_encrypted(folder: Path, server: Valkey) -> None:
    key = base64.b64encode(bytes(32)).decode()
    found = examined(settings(folder, redis=on(server, encryption_keys=[key])))["redis"]
    assert "; secrets of jobs are encrypted" in found.text


def test_the_fleets_own_data_stay(folder: Path, server: Valkey) -> None:
    server.command("SET", "downloader:1:{0}:layout", '{"version": 1, "shards": 1}')
    (folder / "data" / "files" / "abc").mkdir(parents=True)
    (folder / "data" / "files" / "abc" / "abcdef").write_text("a file")
    assert failed(examined(settings(folder, redis=on(server)))) == {}
    assert server.command("DBSIZE") == b":1\r\n"
    assert (folder / "data" / "files" / "abc" / "abcdef").read_text() == "a file"


def test_the_embedded_store_is_started_and_stopped(folder: Path) -> None:
    found = examined(settings(folder))["redis"]
    assert (found.state, found.text.split(" ")[0]) == (FindingState.OK, "Valkey")
    assert not [path for path in folder.rglob("*") if path.is_socket()]


async def test_beside_a_service_that_runs(folder: Path) -> None:
    async with open_fleet(folder, None, {"api": {"port": spare_port()}}) as fleet:
        run = await fleet.start("run")
        ran = await trio.to_thread.run_sync(run_cli, "doctor", "-c", folder / "run-0.toml", "--json")
        assert (ran.status, ran.err) == (0, "")
        findings = {found["part"]: found for found in json.loads(ran.out)}
        assert findings["redis"]["state"] == "ok"
        assert "is served by a downloader that runs" in findings["api"]["text"]
        await run.stop()


async def test_roles_that_disagree(folder: Path, server: Valkey) -> None:
    async def fleet_finding() -> Finding:
        return (await trio.to_thread.run_sync(examined, settings(folder, redis=on(server))))["fleet"]

    async with open_fleet(folder, server) as fleet:
        await fleet.start_all("api", "processor", "notifier")
        assert (await fleet_finding()).text == "3 roles run, with the same settings"
        differing: Tables = {"processor": {"download_url": "http://files.test/"}, "backends.http": {}}
        await fleet.start("api", tables=differing)
        found = await fleet_finding()
        assert found.state is FindingState.FAILED
        host = socket.gethostname()
        assert found.text == (
            f"backends differs: http (api on {host}, notifier on {host}); none (api on {host});"
            f" processor.download_url differs: http://files.test/ (api on {host});"
            f" none (api on {host}, notifier on {host}, processor on {host})"
        )
        await fleet.stop_all()


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.example", False)],
)
def test_addresses_that_only_this_machine_reaches(host: str, alone: bool) -> None:  # noqa: FBT001
    assert is_loopback(host) is alone


def test_a_store_that_refuses_us(folder: Path) -> None:
    with Valkey("--requirepass", "right") as guarded:
        url = f"unix://:hunter2@{guarded.socket}"
        findings = examined(settings(folder, redis={"url": url, "timeout": 15.0}))
    assert list(failed(findings)) == ["redis"]
    assert findings["redis"].text.startswith(f"{guarded.socket}: the store refuses us: ")
    assert "hunter2" not in str(findings)


@pytest.mark.parametrize("peer", ["closed", "silent"])
def test_a_store_that_does_not_answer(folder: Path, peer: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if peer == "closed":
            listener.close()
        began = time.monotonic()
        findings = examined(settings(folder, redis={"url": f"redis://127.0.0.1:{port}", "timeout": 1.0}))
    assert time.monotonic() - began < 60
    assert list(failed(findings)) == ["redis"], "the others are tried nevertheless"
    assert findings["redis"].text.startswith(f"cannot reach the store at 127.0.0.1:{port}: ")


def test_a_store_of_another_shape_or_durability(folder: Path) -> None:
    with Valkey() as plain:
        found = examined(settings(folder, redis=on(plain)))["redis"]
        assert found.state is FindingState.NOTE
        assert found.text.endswith(
            "it has no maxmemory: jobs are accepted until the system kills it;"
            " it has no append-only file, so a restart of it may lose jobs"
        )
        found = examined(settings(folder, redis=on(plain, durability="aof")))["redis"]
        assert found.state is FindingState.FAILED
        assert "redis.durability is 'aof', but: " in found.text
        found = examined(settings(folder, redis=on(plain, durability="replicated")))["redis"]
        assert found.state is FindingState.FAILED
        assert found.text == "the store does not answer: on 0 of 1 replicas"
        plain.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        found = examined(settings(folder, redis=on(plain)))["redis"]
        assert (found.state, "it has to be noeviction" in found.text) == (FindingState.NOTE, True)
        plain.command("SET", "downloader:1:{0}:layout", '{"version": 1, "shards": 16}')
        found = examined(settings(folder, redis=on(plain)))["redis"]
        assert (found.state, "16 shards" in found.text) == (FindingState.FAILED, True)


@pytest.mark.timeout(120)
def test_a_cluster_and_a_sentinel(folder: Path) -> None:
    def store(**tables: Any) -> dict[str, Any]:
        ran = run_cli("doctor", "-c", configured(folder, tables), "--json")
        assert ran.err == ""
        found: dict[str, Any] = json.loads(ran.out)[0]
        return found

    with open_cluster() as nodes:
        found = store(redis={"url": f"redis://127.0.0.1:{nodes[0].port}", "cluster": True})
        assert found["state"] == "note"
        assert found["text"].startswith(("Valkey ", "Redis "))
        assert found["text"].endswith("it has no append-only file, so a restart of it may lose jobs")
    with watched_by_sentinel(folder) as watched:
        sentinel = {"master": "mymaster", "nodes": [f"127.0.0.1:{watched.sentinel_port}"]}
        found = store(redis={"durability": "replicated"}, **{"redis.sentinel": sentinel})
        assert found["state"] == "note"
        assert "Sentinel mymaster" in found["text"]
        assert ", waiting for replicated; " in found["text"]
        found = store(**{"redis.sentinel": {**sentinel, "master": "another"}})
        assert found["state"] == "failed"


def test_folders_that_cannot_be_written(folder: Path, server: Valkey) -> None:
    (folder / "file").touch()
    wrong = settings(
        folder,
        redis=on(server),
        processor={
            "storage_dir": str(folder / "file" / "spool"),
            "filestorage": {"type": "filesystem", "rootdir": "/proc/none"},
        },
    )
    findings = examined(wrong)
    assert failed(findings).keys() == {"processor.filestorage", "spool"}
    assert findings["processor.filestorage"].text.startswith("rootdir /proc/none cannot be written: ")
    assert str(folder / "file") in findings["spool"].text
    embedded = examined(Settings.model_validate({"data_dir": "/proc/none"}))
    assert failed(embedded).keys() == {"redis", "processor.filestorage", "spool"}


def test_a_disk_that_is_too_full(folder: Path, server: Valkey) -> None:
    full = {"disk_high": 0.0001, "disk_low": 0.0001}
    found = examined(settings(folder, redis=on(server), processor=full))["spool"]
    assert found.state is FindingState.FAILED
    assert "no download starts at disk_high" in found.text
    soon = {"disk_high": 100, "disk_low": 0.0001}
    assert examined(settings(folder, redis=on(server), processor=soon))["spool"].state is FindingState.NOTE


def test_a_port_of_another_program_and_an_open_api(folder: Path, server: Valkey) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = examined(settings(folder, redis=on(server), api={"port": port}))["api"]
    assert found.state is FindingState.FAILED
    assert found.text.endswith("Address already in use; another program has it")
    found = examined(settings(folder, redis=on(server), api={"host": "0.0.0.0", "port": 0}))["api"]
    assert (found.state, "every client that reaches it may do everything" in found.text) == (
        FindingState.NOTE,
        True,
    )


@pytest.fixture
def stranger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A section of the stranger's backend, which is installed."""
    install(folder / "stranger")
    monkeypatch.syspath_prepend(str(folder / "stranger"))
    monkeypatch.delitem(sys.modules, "strangers_bad", raising=False)
    return {"mode": "raises", "cure": str(folder / "cure"), "diary": str(folder / "diary")}


@pytest.mark.parametrize(
    ("name", "section", "expected"),
    [
        ("bad", {"open": "refuses"}, "loft: there is no room for it"),
        ("bad", {"open": "raises"}, "cannot be opened: OSError: the loft is shut"),
        ("bad", {}, "OSError: *** is not to be printed"),
        ("bad", {"mode": "exits"}, "SystemExit: 3"),
        ("broken", {}, "notifier plugin 'broken' (stranger 2.5) cannot be imported: ModuleNotFoundError: "),
        ("pigeon", {}, "no notifier plugin 'pigeon' is installed (installed: absent, bad, broken, "),
    ],
)
def test_a_failing_backend_is_reported_beside_a_working_one(
    folder: Path, stranger: dict[str, str], name: str, section: dict[str, str], expected: str
) -> None:
    check_failing_backend(folder, stranger, name, section, expected)


def check_failing_backend(
    folder: Path, stranger: dict[str, str], name: str, section: dict[str, str], expected: str
) -> None:
    backends = {name: {**stranger, "password": "hunter2", **section}, "http": {}}
    findings = examined(settings(folder, backends=backends), part_s=6)
    assert list(failed(findings)) == [f"backends.{name}"]
    assert findings[f"backends.{name}"].text.startswith(expected)
    assert "hunter2" not in str(findings)
    assert findings["backends.http"].state is FindingState.OK
    assert not Path(stranger["diary"]).exists(), "nothing is delivered"


def test_backends_that_hang_are_reported_beside_working_ones(folder: Path, stranger: dict[str, str]) -> None:
    def check(section: dict[str, str]) -> None:
        own = folder / "-".join([*section, *section.values()])
        check_failing_backend(own, stranger, "bad", section, "hangs: no end within 6 s")

    with ThreadPoolExecutor() as executor:
        list(executor.map(check, ({"open": "hangs"}, {"mode": "hangs"}, {"mode": "clings"})))


def test_the_result_of_a_backends_check_is_shown(
    folder: Path, server: Valkey, stranger: dict[str, str]
) -> None:
    Path(stranger["cure"]).touch()
    findings = examined(settings(folder, redis=on(server), backends={"bad": stranger}))
    assert (findings["backends.bad"].state, findings["backends.bad"].text) == (
        FindingState.OK,
        "the loft is open",
    )


def test_an_object_that_is_not_deleted_is_reported(
    folder: Path, server: Valkey, stranger: dict[str, str]
) -> None:
    keeping = {"type": "keeping", "path": str(folder / "kept")}
    findings = examined(settings(folder, redis=on(server), processor={"filestorage": keeping}))
    assert failed(findings) == {"processor.filestorage": "deleted an object, which is still there"}


def test_a_backend_stuck_in_a_thread_is_left_behind(folder: Path, server: Valkey) -> None:
    section = {"mode": "blocks", "cure": str(folder / "cure"), "diary": str(folder / "diary")}
    code = (
        "import json, sys; from downloader.config import Settings\n"
        "from downloader.service.doctor import *\n"
        "given = Settings.model_validate(json.loads(sys.argv[1]))\n"
        "def show(findings):\n"
        "    print(*(f'{f.state} {f.part}: {f.text}' for f in findings), sep='\\n', flush=True)\n"
        "diagnose(given, show=show, part_s=1, stuck_s=4)\n"
    )
    given = {"data_dir": str(folder / "data"), "redis": on(server), "backends": {"bad": section}}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given)],
        env=environment(install(folder / "stranger")),
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert "failed backends.bad: hangs, and ignores its cancel" in lines
    # Port 8000 of this machine may be free, taken, or a downloader's, or not answer in time.
    assert any(line.split()[1] == "api:" for line in lines)


@pytest.mark.timeout(120)
def test_buckets_and_queues_that_are_not_there(
    folder: Path, server: Valkey, moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    s3 = {"type": "s3", "bucket": "files", "region": REGION, "endpoint_url": moto.url}
    sqs = {"region": REGION, "endpoint_url": moto.url, "queues": ["jobs"], "timeout": 40}
    given = settings(
        folder, redis=on(server), processor={"filestorage": s3}, backends={"sqs": sqs, "storage": {}}
    )
    findings = examined(given, part_s=50, stuck_s=110)
    assert list(failed(findings)) == ["processor.filestorage"]
    assert "files" in findings["processor.filestorage"].text
    assert findings["backends.sqs"].text == "not tried, because the file storage does not open"
    moto.s3.create_bucket(Bucket="files", CreateBucketConfiguration={"LocationConstraint": "eu-west-2"})
    findings = examined(given, part_s=50, stuck_s=110)
    assert list(failed(findings)) == ["backends.sqs"]
    assert "jobs" in findings["backends.sqs"].text
    moto.sqs.create_queue(QueueName="jobs")
    findings = examined(given, part_s=50, stuck_s=110)
    assert failed(findings) == {}
    assert findings["processor.filestorage"].text == "s3: wrote and deleted an object"
    assert moto.s3.list_objects_v2(Bucket="files")["KeyCount"] == 0
    assert findings["backends.storage"].state is FindingState.OK


def test_kafka_that_is_there_and_that_is_not(folder: Path, server: Valkey) -> None:
    with Tansu() as tansu:
        kafka = {"bootstrap_servers": tansu.servers}
        given = settings(folder, redis=on(server), backends={"kafka": kafka})
        found = examined(given)["backends.kafka"]
        assert (found.state, found.text.split(",")[0]) == (FindingState.OK, "1 broker")
    found = examined(given)["backends.kafka"]
    assert (found.state, tansu.servers in found.text) == (FindingState.FAILED, True)


@pytest.mark.row("H20")
def test_secrets_are_found_wherever_they_stand() -> None:
    given = Settings.model_validate(
        {
            "redis": {"url": "redis://user:p%40ss-word@h/0"},
            "api": {"tokens": [{"name": "n", "token": "0123456789abcdef", "scopes": ["read"]}]},
            "processor": {"request_headers": {"Authorization": "Bearer xyz"}},
            "backends": {"kafka": {"sasl_plain_password": "hunter2", "nested": {"secret_key": ["one-1"]}}},
        }
    )
    found = set(secrets_of(given))
    assert {"p@ss-word", "p%40ss-word", "0123456789abcdef", "Bearer xyz", "hunter2", "one-1"} <= found
    assert "h" not in found


def configured(folder: Path, tables: Tables) -> Path:
    config = folder / "config.toml"
    own: Tables = {
        "": {"data_dir": str(folder / "data")},
        "api": {"port": 0},
        "backends.http": {"timeout": 1},
    }
    config.write_text(to_toml({**own, **tables}))
    return config


def test_its_output(folder: Path, server: Valkey) -> None:
    config = configured(folder, {"redis": {"url": server.url}})
    ran = run_cli("doctor", "-c", config)
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert [line.split(":")[0].split(" ")[-1] for line in lines] == PARTS
    assert all(line.startswith(("ok     ", "note   ")) for line in lines)
    found = json.loads(run_cli("doctor", "-c", config, "--json").out)
    assert [row["part"] for row in found] == PARTS
    assert {*found[0]} == {"part", "state", "text", "seconds"}


def test_its_status_says_whether_something_failed(folder: Path) -> None:
    config = configured(folder, {"redis": {"url": "redis://127.0.0.1:1", "timeout": 1.0}})
    ran = run_cli("doctor", "-c", config)
    assert (ran.status, ran.err) == (1, "")
    assert ran.out.startswith("failed redis: cannot reach the store at 127.0.0.1:1: ")
    config.write_text("[redis]\nurrl = 1\n")
    ran = run_cli("doctor", "-c", config)
    assert (ran.status, ran.out) == (2, "")
    assert ran.complaint.endswith("unknown key redis.urrl; did you mean redis.url?")


def test_on_a_terminal_it_is_a_table_as_wide_as_that(folder: Path) -> None:
    config = configured(folder, {"redis": {"url": "redis://127.0.0.1:1", "timeout": 1.0}})
    parent, child = pty.openpty()
    process = fork(["doctor", "-c", str(config)], stdout=child, stderr=child, environ={"COLUMNS": "80"})
    os.close(child)
    said = b""
    try:
        while data := os.read(parent, 65536):
            said += data
    except OSError:  # how Linux tells of the end of a terminal
        pass
    finally:
        os.close(parent)
    assert process.join(TIMEOUT_S) == 1
    lines = said.decode().splitlines()
    assert any("failed" in line and "redis" in line and "\x1b[" in line for line in lines)
