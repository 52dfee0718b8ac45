"""Secrets of jobs and of the configuration, sought in all that a running service says. Row H20."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from servers.fleet import Tables, job_for, open_fleet
from servers.origin import Origin, respond
from servers.proxies import open_proxy
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

CANARY = "c4n4ry"
"""In every place where a secret may stand."""

EXTRA = "3xtr4"
"""In the job's `extra`, which answers and callbacks return, and the encrypted store does not show."""

NAME = "größer 下载"
"""A header's value in UTF-8, for the origin alone."""

TOKEN = f"{CANARY}-0123456789abcdef"
TOKENS = [{"name": "all", "token": TOKEN, "scopes": ["admin"]}]

PAGES = (
    *("/", "/health/ready", "/dashboard/aggregations", "/stats/processor", "/stats/notifier"),
    *("/jobs/00000000000000", "/none", f"/none/{CANARY}?{CANARY}"),
)


async def first_event(port: int) -> bytes:
    """What the page is told first."""
    data = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        head = f"GET /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        await stream.send_all(head.encode())
        with trio.fail_after(20):
            while b"\n\n" not in data.partition(b"data:")[2]:
                data += await stream.receive_some(65536)
    return data


@pytest.mark.row("H20")
async def test_h20_a_running_service_tells_no_secret(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    # The password of the server's default user is none: it takes any.
    tables: Tables = {
        "redis": {"url": f"unix://default:{CANARY}@{server.socket}", "encryption_keys": ["A" * 43 + "="]},
        "processor": {"max_retries": 1},
        "processor.request_headers": {"Authorization": CANARY},
    }
    query = f"?X-Amz-Signature={CANARY}"
    away = ("Location", f"http://user:{CANARY}@169.254.169.254/{query}")
    origin.on("/away", respond(302, CANARY.encode(), [away, ("Set-Cookie", CANARY)]))
    headers = {"Cookie": CANARY, "X-Name": NAME}
    asked: dict[str, Any] = {"user_agent": CANARY, "request_headers": headers, "extra": EXTRA}
    async with open_proxy("http") as proxy, open_fleet(folder, server, tables) as fleet:
        run = await fleet.start("run", environ={"DOWNLOADER_API__TOKENS": json.dumps(TOKENS)})
        fleet.client.headers["Authorization"] = f"Bearer {TOKEN}"

        async def post(path: str, *, to: str = "/ok", **more: Any) -> str:
            url = f"{origin.url(path, userinfo=f'user:{CANARY}@')}{query}#{CANARY}"
            back = sink.url(to).replace("http://", f"http://user:{CANARY}@") + query
            return await fleet.post(**job_for(url, back, group=path, **asked, **more))

        good = await post("/bytes/9", aggr_proxy=proxy.url(f"user:{CANARY}@"))
        bad = [await post(path) for path in ("/status/404", "/status/503", "/away")]
        untold = await post("/bytes/8", to="/status/500")
        lost = await post("/bytes/7", aggr_proxy=f"http://user:{CANARY}@169.254.169.254:1080")
        await run.event("callback.failed", job_id=untold)
        ids = [good, *bad, untold, lost]
        await sink.heard_of(*ids)
        assert proxy.heads, "the proxy with a password was not used"
        assert b"\r\nX-Name: " + NAME.encode() + b"\r\n" in origin.asked("/status/404")[0].raw

        answers = [await fleet.client.get(page) for page in (*PAGES, *(f"/jobs/{one}" for one in ids))]
        answers.append(await fleet.client.post("/download", json=job_for(CANARY, CANARY)))
        answers.append(await fleet.client.post("/download", content=f'{{"{CANARY}'.encode()))
        wrong = {"Authorization": f"Bearer {CANARY}-of-somebody-else"}
        answers.append(await fleet.client.get("/stats", headers=wrong))
        assert {answer.status_code for answer in answers} == {200, 400, 401, 404, 422}
        for answer in answers:
            assert CANARY not in answer.text, answer.url
            assert CANARY not in str(answer.headers)
        assert CANARY.encode() not in await first_event(fleet.client.base_url.port or 0)
        await fleet.stop_all()
        for job_id in (*bad, untold):  # without a proxy: its password has to be comparable in the store
            record = server.command("GET", f"downloader:1:{{0}}:job:{job_id}")
            assert b"sealed" in record
            assert CANARY.encode() not in record
            assert EXTRA.encode() not in record
    said = [json.dumps(line) for line in run.log] + run.noise
    assert [line for line in said if CANARY in line] == []
    assert len(run.events("job.failed")) == 4
