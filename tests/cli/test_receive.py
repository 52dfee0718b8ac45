"""`downloader receive`, called by the service's own notifier."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from downloader.cli import main
from downloader.cli.receive import _lines
from downloader.model import FileFacts, JobSpec, Outcome, Verdict
from downloader.notify import Delivered, Payload, RetryLater
from downloader.wire import callback_body
from servers.cli import SCRIPT
from servers.forked import environment
from servers.webhooks import opened

OURS, FOREIGN = "whsec_b2xk", "whsec_Zm9yZWlnbg"
SPEC = JobSpec(id="6QEywYsd0jrKAg", aggr_id="a", aggr_limit=1, url="http://example.org/x", extra="order 17")
FILE = FileFacts(size=10, sha256="ab" * 32, mime_type="image/png", image_size="", filename="x")
FAILED = Outcome(verdict=Verdict.FAILED, error="gone")
STORED = Outcome(verdict=Verdict.SUCCEEDED, response_code=200, file=FILE)


def body_of(outcome: Outcome) -> bytes:
    url = "http://d/x" if outcome is STORED else ""
    return callback_body(SPEC, outcome, attempts=1, download_url=url)


@contextmanager
def receiving(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The URL of a receiver, and its process."""
    process = subprocess.Popen(
        [SCRIPT, "receive", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix("listening on ").strip(), process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
async def test_it_checks_signatures_and_prints_callbacks() -> None:
    with receiving("--secret", OURS) as (url, process):
        for outcome in (STORED, FAILED):
            async with opened({"secret": OURS}) as notifier:
                payload = Payload(job_id=SPEC.id, aggr_id="a", body=body_of(outcome))
                assert await notifier.deliver(url, payload) == Delivered()
        for section in ({"secret": FOREIGN}, {}):
            async with opened(section) as notifier:
                refused = await notifier.deliver(url, payload)
                assert isinstance(refused, RetryLater)
                assert "401" in refused.reason
        process.send_signal(signal.SIGINT)
        out, _ = await trio.to_thread.run_sync(process.communicate)
        assert process.returncode == 0
        assert out.splitlines()[:2] == [
            f"succeeded {SPEC.id} 10 http://d/x order 17",
            f"failed {SPEC.id} http://example.org/x gone order 17",
        ]
        assert [line.partition(":")[0] for line in out.splitlines()[2:]] == ["refused", "refused"]


@pytest.mark.slow
async def test_it_may_respond_with_an_error_and_print_json() -> None:
    with receiving("--status", "500", "--json") as (url, process):
        async with opened({}) as notifier:
            refused = await notifier.deliver(url, Payload(job_id=SPEC.id, aggr_id="a", body=body_of(FAILED)))
            assert isinstance(refused, RetryLater)
            assert "500" in refused.reason
        process.send_signal(signal.SIGTERM)
        out, _ = await trio.to_thread.run_sync(process.communicate)
        assert json.loads(out) == json.loads(body_of(FAILED))


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (b"[" + body_of(STORED) + b"," + body_of(STORED) + b"]", ["succeeded", "succeeded"]),
        (b'{"group": "g", "jobs": 2}', ['{"group":']),
        (b"\x1b[31m", ["not"]),
        (b"[" * 99_999, ["not"]),
    ],
)
def test_other_bodies(body: bytes, lines: list[str]) -> None:
    printed = _lines(body, as_json=False)
    assert [line.split()[0] for line in printed] == lines
    assert "\x1b" not in "".join(printed)


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["receive", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"downloader: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )
