"""Types what docs/howto/receivers.md says, and sends each receiver a signed callback and an unsigned one.

Not for pytest: it installs the frameworks from the registry as a reader does. `nox -s receivers` runs it;
`node` and `go` are those on the PATH.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from standardwebhooks import Webhook

from readme import ROOT, blocks, running, say, sh

PORT = 9000
START_S = 180.0
"""`go run` compiles the standard library first."""
SECRET = "whsec_c2VjcmV0LW9mLWEtdGVzdA=="
CALLBACK = json.dumps({"job_id": "NSb4FOAs9fVaQw", "download_url": "", "error": "Tïmeout"}).encode()


def post(body: bytes, headers: dict[str, str]) -> int:
    """Send a callback; the status of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    try:
        connection.request("POST", "/done", body, {"Content-Type": "application/json", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


def signed(body: bytes, *, at: datetime) -> dict[str, str]:
    """The headers of a callback."""
    return {
        "webhook-id": "NSb4FOAs9fVaQw",
        "webhook-timestamp": str(int(at.timestamp())),
        # As while a secret is changed: of two signatures the second is right.
        "webhook-signature": f"v1,bm9uZQ== {Webhook(SECRET).sign('NSb4FOAs9fVaQw', at, body.decode())}",
    }


def wait_until_free(*, taken: bool) -> None:
    """Wait until a receiver listens, or until the one before has ended."""
    deadline = time.monotonic() + START_S
    while True:
        with socket.socket() as connection:
            if (connection.connect_ex(("127.0.0.1", PORT)) == 0) is taken:
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"port {PORT} is {'free' if taken else 'taken'} after {START_S} s")
        time.sleep(0.05)


def walk(section: str, folder: Path) -> None:
    """Write the section's file, type its commands, and judge the receiver."""
    [(name, text)] = re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    (folder / name).write_text(text)
    [commands] = blocks(section)
    *install, run = commands.splitlines()
    for command in install:
        sh(command, folder, seconds=START_S)
    log = folder / f"{name}.log"
    now = datetime.now(UTC)
    wait_until_free(taken=False)
    with running(run, folder, log):
        wait_until_free(taken=True)
        headers = signed(CALLBACK, at=now)
        assert post(CALLBACK, {}) == 401, "an unsigned callback is accepted"
        assert post(CALLBACK.replace(b"NSb", b"NSc"), headers) == 401, "a changed callback is accepted"
        old = signed(CALLBACK, at=datetime.fromtimestamp(now.timestamp() - 3600, UTC))
        assert post(CALLBACK, old) == 401, "a callback from an hour ago is accepted"
        assert post(CALLBACK, headers) == 204, log.read_text()
    lines = log.read_text().splitlines()
    assert "NSb4FOAs9fVaQw Tïmeout" in lines, lines
    say(f"{name} works")


def main() -> None:
    os.environ |= {"WEBHOOK_SECRET": SECRET, "PYTHONUTF8": "1"}
    page = (ROOT / "docs/howto/receivers.md").read_text("utf-8")
    with tempfile.TemporaryDirectory(prefix="downloader-receivers-") as name:
        sh("python3 -m venv .venv", Path(name), seconds=START_S)
        for section in page.split("\n## ")[1:]:
            walk(section, Path(name))


if __name__ == "__main__":
    main()
