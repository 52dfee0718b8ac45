"""Groups of jobs through the clients and the command line."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator

import pytest
import trio

from downloader.client import ApiProblem, AsyncClient, Client, WaitTimeout
from downloader.model import Kind, Outcome, Verdict
from servers.api import Served
from servers.cli import Run
from servers.jobs import downloaded, leased

OK = Outcome(verdict=Verdict.SUCCEEDED)
NO = Outcome(verdict=Verdict.FAILED, error="no")


@pytest.fixture
async def client(api: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"http://127.0.0.1:{api.port}") as opened:
        yield opened


async def end(api: Served, outcome: Outcome) -> None:
    await api.store.settle("me", [downloaded(await leased(api.store), outcome, None, 60)])


async def test_a_group_from_its_jobs_to_its_end(api: Served, client: AsyncClient) -> None:
    for outcome in (OK, NO):
        await client.submit(aggr_id="a", aggr_limit=1, url="https://h/", group="g", callback_type="none")
        await end(api, outcome)
    await client.submit(aggr_id="a", aggr_limit=1, url="https://h/", group="g", callback_type="none")
    group = await client.set_group_callback("g", callback_dst="https://client.example/done", extra=[1])
    assert (group.state, group.jobs, group.unfinished) == ("open", 3, 1)
    with pytest.raises(WaitTimeout, match="is open after 0 s, and 1 of its jobs"):
        await client.wait_group("g", timeout_s=0)
    assert len([job async for job in client.jobs(group="g")]) == 1
    assert len([job async for job in client.jobs(group="g", state="failed")]) == 1
    assert [group.name async for group in client.groups()] == ["g"]
    assert await client.cancel_group("g") == 1
    assert (await client.seal_group("g")).state == "complete"
    group = await client.wait_group("g")
    assert (group.succeeded, group.failed, group.cancelled) == (1, 1, 1)
    assert group == await client.group("g")
    lease = await leased(api.store, kind=Kind.CALLBACK)
    assert (lease.id, lease.spec.extra) == (group.callback_id, "[1]")
    assert (await client.reopen_group("g")).state == "open"
    with pytest.raises(ApiProblem) as caught:
        await client.group("other")
    assert caught.value.code == "unknown_group"


async def test_without_an_event_loop(api: Served) -> None:
    def work() -> str:
        with Client(f"http://127.0.0.1:{api.port}") as client:
            client.seal_group("g")
            assert [group.name for group in client.groups()] == ["g"]
            return client.wait_group("g").state

    assert await trio.to_thread.run_sync(work) == "complete"


async def test_on_the_command_line(run: Run, api: Served) -> None:
    assert (await run("groups")).out == ""
    ran = await run("submit", "https://h/1", "https://h/2", "--group", "g", "--seal")
    assert ran.status == 0, ran.err
    ran = await run("submit", "https://h/3", "--group", "g", "--json")
    assert (ran.status, ran.json_lines()[0]["code"]) == (1, "group_sealed")
    assert (await run("groups")).out == "g\tsealed\t2\t0\t0\t0\t2\n"
    for outcome in (OK, NO):
        await end(api, outcome)
    ran = await run("wait", "g", "--timeout", "9")
    assert (ran.status, ran.err) == (1, "")
    assert re.search("^  state +complete$", ran.out, re.MULTILINE)
    [shown] = (await run("groups", "g", "--json")).json_lines()
    assert (shown["succeeded"], shown["failed"]) == (1, 1)
    assert json.loads((await run("groups", "--json")).out) == shown
    ran = await run("groups", "h", "--seal")
    assert "complete" in ran.out
    assert (await run("wait", "h")).status == 0
    assert "open" in (await run("groups", "h", "--reopen")).out
    assert (await run("groups", "h", "--reopen", "--seal")).status == 2
    assert (await run("groups", "--reopen")).status == 2
    assert (await run("groups", "other")).status == 1
    ran = await run("submit", "https://h/1", "--seal")
    assert (ran.status, "--seal needs --group" in ran.err) == (2, True)


async def test_a_group_with_a_refused_job_is_not_sealed(run: Run, api: Served) -> None:
    ran = await run("submit", "https://h/1", "nonsense", "--group", "g", "--seal")
    assert ran.status == 1
    group = await api.store.group("g")
    assert group is not None
    assert (group.state, group.jobs) == ("open", 1)
    [job] = (await run("jobs", "--state", "pending", "--aggr-id", "h", "--json")).json_lines()
    assert "  group        g\n" in (await run("job", job["id"])).out


async def test_jobs_of_a_group_are_listed_retried_and_cancelled(run: Run, api: Served) -> None:
    for group in ("g", "g", "other"):
        assert (await run("submit", "https://h/1", "--group", group)).status == 0
    rows = (await run("jobs", "--group", "g", "--json")).json_lines()
    assert [(row["group"], row["state"]) for row in rows] == [("g", "pending")] * 2
    for _ in range(3):
        await end(api, NO)
    assert (await run("jobs", "--group", "g")).out == ""
    assert len((await run("jobs", "--group", "g", "--state", "failed")).out.splitlines()) == 2
    ran = await run("retry", "--failed", "--download", "--group", "g")
    assert ran.out == "2 downloads are repeated\n"
    assert (await run("cancel", "--group", "other")).out == "0 jobs are cancelled\n"
    assert (await run("cancel", "--group", "g", "--json")).json_lines() == [{"cancelled": 2}]
    ran = await run("cancel", "--group", "missing")
    assert (ran.status, ran.complaint) == (1, "There is no group of jobs of this name")
