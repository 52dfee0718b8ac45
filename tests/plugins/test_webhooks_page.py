"""The receiver of the webhooks page, run unchanged, and called by the service's notifier."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import trio

from downloader.model import JobSpec, Outcome, Verdict
from downloader.notify import Delivered, Payload, RetryLater
from downloader.webhooks import WebhookError
from downloader.wire import callback_body
from servers.forked import environment
from servers.webhooks import opened

PAGE = (Path(__file__).parents[2] / "docs/webhooks.md").read_text("utf-8")
OLD, NEW, FOREIGN = "whsec_b2xk", "whsec_bmV3", "whsec_Zm9yZWlnbg"
SPEC = JobSpec(id="6QEywYsd0jrKAg", aggr_id="a", aggr_limit=1, url="http://example.org/x")


def payload() -> Payload:
    body = callback_body(
        SPEC, Outcome(verdict=Verdict.FAILED, error="gone"), attempts=1, download_url="http://d/x"
    )
    return Payload(job_id=SPEC.id, aggr_id="a", body=body)


@pytest.mark.slow
async def test_the_receiver_of_the_page_takes_what_is_signed_and_once(tmp_path: Path) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "receiver.py").write_text(program)
    process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [sys.executable, str(tmp_path / "receiver.py"), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment({"WEBHOOK_SECRETS": f"{NEW} {OLD}"}),
        text=True,
    )
    assert process.stdout is not None
    try:
        first = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
        url = f"http://127.0.0.1:{first.removeprefix('listening on ').strip()}/"
        for section in ({"secret": OLD}, {"secret": NEW}, {"secrets": [FOREIGN, NEW]}):
            async with opened(section) as notifier:
                assert await notifier.deliver(url, payload()) == Delivered()
        for section in ({"secret": FOREIGN}, {}):
            async with opened(section) as notifier:
                refused = await notifier.deliver(url, payload())
                assert isinstance(refused, RetryLater)
                assert "401" in refused.reason
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.post(url, content=payload().body)
            assert (answer.status_code, "missing headers" in answer.text) == (401, True)
    finally:
        process.kill()
        said = process.stdout.read()
        process.stdout.close()
        process.wait()
    assert said == f"{SPEC.id} gone\n"


def test_the_page_tells_each_error() -> None:
    kinds = {kind.__name__ for kind in WebhookError.__subclasses__()}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == kinds
