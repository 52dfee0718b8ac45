"""`downloader api` with and without `[[api.tokens]]`: warnings, and that the file's tokens apply."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from servers.cli import TIMEOUT_S
from servers.forked import fork
from servers.valkey import Valkey

pytestmark = pytest.mark.slow

TOKEN = "c4n4ry-0123456789"
TOKENS = """
[[api.tokens]]
name = "reader"
token = { env = "READER" }
scopes = ["read"]
"""


def start_and_ask(
    valkey: Valkey, folder: Path, *, host: str, tokens: str = ""
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """All log lines of a run, and the status of `GET /` without a token, with it, and of a POST with it."""
    config = folder / "config.toml"
    config.write_text(
        f'data_dir = "{folder / "data"}"\n[redis]\nurl = "{valkey.url}"\nkey_prefix = "{folder.name}"\n'
        f'[api]\nhost = "{host}"\nport = 0\n{tokens}'
        '[log]\nformat = "json"\nlevel = "debug"\n[backends.http]\n'
    )
    log: list[dict[str, Any]] = []
    read, write = os.pipe()
    process = fork(["api", "-c", str(config)], stderr=write, environ={"READER": TOKEN})
    os.close(write)
    with os.fdopen(read) as stderr:
        while not log or log[-1]["event"] != "service.started":
            log.append(json.loads(stderr.readline()))
        port = next(line["port"] for line in log if line["event"] == "api.listening")
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            statuses = {
                "without": client.get("/stats").status_code,
                "with": client.get("/stats", headers=bearer).status_code,
                "post": client.post("/download", json={}, headers=bearer).status_code,
            }
        process.send_signal(signal.SIGTERM)
        log += map(json.loads, stderr)
    assert process.join(TIMEOUT_S) == 0
    return log, statuses


def events(log: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [line for line in log if line["event"] == name]


@pytest.mark.parametrize(("host", "warnings"), [("0.0.0.0", 1), ("127.0.0.1", 0)])
def test_an_open_api(valkey: Valkey, tmp_path: Path, host: str, warnings: int) -> None:
    log, statuses = start_and_ask(valkey, tmp_path, host=host)
    assert [line["level"] for line in events(log, "api.open")] == ["warning"] * warnings
    assert statuses == {"without": 200, "with": 200, "post": 422}


def test_an_api_with_tokens(valkey: Valkey, tmp_path: Path) -> None:
    log, statuses = start_and_ask(valkey, tmp_path, host="0.0.0.0", tokens=TOKENS)
    assert events(log, "api.open") == []
    assert statuses == {"without": 401, "with": 200, "post": 403}
    refused = [
        {key: line.get(key) for key in ("reason", "token", "client")} for line in events(log, "api.refused")
    ]
    assert refused == [
        {"reason": "unauthorized", "token": None, "client": "127.0.0.1"},
        {"reason": "forbidden", "token": "reader", "client": "127.0.0.1"},
    ]
    assert TOKEN not in json.dumps(log)
