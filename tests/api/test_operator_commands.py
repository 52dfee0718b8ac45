"""The commands for a running service, in this process, against the API on a real store."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from pydantic import SecretStr

from downloader.cli.jobs import _list
from downloader.client import ApiProblem, Client, Job, Unreachable
from downloader.config import ApiSettings, TokenSettings
from downloader.model import CallbackOutcome, ErrorCode, FileFacts, Kind, Lease, Outcome, Verdict
from downloader.phases import Phases
from downloader.wire import BacklogPoint, LineProblem, ListedJob, Progress
from servers.api import JOB, Served, Serving
from servers.cli import Ran, Run
from servers.jobs import end_all, leased, submitted

STORED = Outcome(
    verdict=Verdict.SUCCEEDED, response_code=200, file=FileFacts(size=3, sha256="ab", mime_type="text/plain")
)
GONE = Outcome(verdict=Verdict.FAILED, error="gone", error_code=ErrorCode.HTTP_STATUS, response_code=410)
HTTP = ("--callback", "https://client.example/done")


async def test_submit_reports_each_job(run: Run, api: Served) -> None:
    ran = await run("submit", "https://a.example/1", "https://a.example:8443/2", "nonsense", *HTTP)
    [first, second, third] = ran.out.splitlines()
    assert (ran.status, ran.err) == (1, "")
    assert first.split()[0::2] == ["accepted", "https://a.example/1"]
    assert second.split()[0::2] == ["accepted", "https://a.example:8443/2"]
    assert third.startswith("refused url_malformed nonsense url ")
    sizes = set(await api.store.aggregation_sizes())
    assert sizes == {"a.example", "a.example:8443"}
    job = await api.store.get(first.split()[1])
    assert job is not None
    assert (job.spec.aggr_limit, job.spec.callback_type, job.spec.callback_dst) == (4, "http", HTTP[1])


async def test_without_a_callback_none_is_sent(run: Run, api: Served) -> None:
    job = json.dumps({"url": "https://h/2", "callback_url": "https://client.example/2"})
    text = f"https://h/1\n{job}\n"
    rows = (await run("submit", "--from-file", "-", "--json", stdin=text)).json_lines()
    specs = [found.spec for row in rows if (found := await api.store.get(row["id"])) is not None]
    assert [spec.callback(success=True) for spec in specs] == [
        ("", ""),
        ("http", "https://client.example/2"),
    ]


async def test_submit_from_standard_input(run: Run, api: Served) -> None:
    text = f'# a comment\n\nhttps://h/1\n{json.dumps({**JOB, "extra": "mine"})}\n{{"url": "https://h/3"}}\n'
    flags = ("--aggr-id", "g", "--aggr-limit", "9", "-F", "extra=5", "-F", "subpath=x", *HTTP)
    ran = await run("submit", "--from-file", "-", "--json", *flags, stdin=text)
    assert ran.status == 0
    rows = ran.json_lines()
    assert [row["url"] for row in rows] == ["https://h/1", JOB["url"], "https://h/3"]
    specs = [job.spec for row in rows if (job := await api.store.get(row["id"])) is not None]
    assert [(spec.aggr_id, spec.aggr_limit, spec.extra, spec.subpath) for spec in specs] == [
        ("g", 9, "5", "x"),
        (JOB["aggr_id"], JOB["aggr_limit"], "mine", "x"),
        ("g", 9, "5", "x"),
    ]


async def test_submit_with_a_priority(run: Run) -> None:
    [row] = (await run("submit", "https://h/1", "--priority", "7", "--json")).json_lines()
    assert "  priority     7\n" in (await run("job", row["id"])).out
    [document] = (await run("job", row["id"], "--json")).json_lines()
    assert document["priority"] == 7


async def test_a_job_that_waits_says_what_its_aggregation_waits_for(run: Run, api: Served) -> None:
    moment = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    soon = ("--aggr-id", "h", "-F", f"not_before={moment}", "--json")
    [later] = (await run("submit", "https://h/2", *soon)).json_lines()
    assert "  aggregation  h\n" in (await run("job", later["id"])).out
    [row] = (await run("submit", "https://h/1", "--aggr-id", "h", "--json")).json_lines()
    assert "  aggregation  h (waits: no processor runs)\n" in (await run("job", row["id"])).out
    assert (await run("pause", "h")).status == 0
    for each in (row, later):
        assert "  aggregation  h (paused)\n" in (await run("job", each["id"])).out
    assert (await run("resume", "h")).status == 0
    await end_all(api.store, GONE)
    assert "  aggregation     h\n" in (await run("job", row["id"])).out


async def test_refused_jobs_as_json(run: Run) -> None:
    ran = await run("submit", "ftp://h/x", "--json", *HTTP)
    [row] = ran.json_lines()
    assert (ran.status, row["code"], row["field"], row["url"]) == (1, "url_scheme", "url", "ftp://h/x")


async def test_failures_are_counted_and_retried_by_a_part_of_the_name(run: Run, api: Served) -> None:
    flags = ("--aggr-limit", "9", *HTTP)
    for name in ("tenant-1", "tenant-2", "other"):
        await run("submit", "https://h/1", "--aggr-id", name, *flags)
    await end_all(api.store, GONE, callback=CallbackOutcome(verdict=Verdict.FAILED, error="500"))
    lines = [line.split("\t") for line in (await run("failures", "-q", "Tenant")).out.splitlines()]
    assert {(line[0], line[1], line[2], line[5]) for line in lines} == {
        ("1", kind, name, error)
        for name in ("tenant-1", "tenant-2")
        for kind, error in (("download", "gone"), ("callback", "500"))
    }
    [document] = (await run("failures", "--json")).json_lines()
    assert (document["downloads"]["jobs"], document["callbacks"]["jobs"]) == (3, 3)
    assert (await run("retry", "--failed", "-q", "tenant")).out == "2 callbacks are sent again\n"
    assert "-q" in (await run("retry", "x", "-q", "tenant")).complaint


async def test_a_warning_about_unknown_fields_is_printed_once(run: Run) -> None:
    ran = await run("submit", "https://h/1", "https://h/2", "-F", "mime_typ=image/*", *HTTP)
    assert (ran.status, len(ran.out.splitlines())) == (0, 2)
    assert "`mime_typ`" in ran.complaint
    assert "`mime_type`" in ran.complaint


async def test_submit_and_wait(run: Run, ending: Callable[[Outcome], None]) -> None:
    ending(STORED)
    ran = await run("submit", "--wait", "https://h/1?key=secret", "https://h/2", *HTTP)
    assert (ran.status, ran.err) == (0, "")
    lines = [line.split() for line in ran.out.splitlines()]
    assert sorted((state, size, url) for state, _, size, url in lines) == [
        ("succeeded", "3", "https://h/1?key=secret"),
        ("succeeded", "3", "https://h/2"),
    ]


async def test_submit_and_wait_for_a_failure(run: Run, ending: Callable[[Outcome], None]) -> None:
    ending(GONE)
    ran = await run("submit", "--wait", "--json", "https://h/1", *HTTP)
    [row] = ran.json_lines()
    assert (ran.status, row["state"], row["error_code"], row["url"]) == (
        1,
        "failed",
        "http_status",
        "https://h/1",
    )
    ran = await run("submit", "--wait", "https://h/1", *HTTP)
    assert ran.out.split()[0::2] == ["failed", "http_status", "gone"]


async def test_submit_and_wait_for_a_job_that_is_cancelled(run: Run, api: Served) -> None:
    async def cancel_once_accepted() -> None:
        leases: Sequence[Lease] = ()
        while not leases:
            await trio.sleep(0.02)
            leases = (await api.store.lease(Kind.DOWNLOAD, "me", 1, 30)).leases
        await api.store.cancel(leases[0].spec, None, 60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_once_accepted)
        ran = await run("submit", "--wait", "https://h/1", *HTTP)
    assert (ran.status, ran.out.split()[0]) == (1, "cancelled")


async def test_all_jobs_of_an_aggregation_are_cancelled(run: Run, api: Served) -> None:
    await run("submit", "https://h/1", "https://h/2", "--aggr-id", "a/b", *HTTP)
    assert (await run("cancel", "--aggr-id", "a/b")).out == "2 jobs are cancelled\n"
    assert (await run("cancel", "--aggr-id", "a/b", "--json")).json_lines() == [{"cancelled": 0}]
    assert await api.store.aggregation_sizes() == {}
    assert "give ids, or --aggr-id, or --group" in (await run("cancel", "x", "--aggr-id", "a")).complaint


async def test_all_are_paused_and_resumed(run: Run, api: Served) -> None:
    assert (await run("pause", "--all")).out == "all aggregations are paused\n"
    assert await api.store.all_paused()
    assert (await run("resume", "--all", "--json")).json_lines() == [{"paused": False}]
    assert not await api.store.all_paused()
    assert "--all" in (await run("pause", "a", "--all")).complaint


async def test_job(run: Run, api: Served) -> None:
    [row] = (await run("submit", "https://h/1", "--json", *HTTP)).json_lines()
    ran = await run("job", row["id"])
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"{row['id']} pending\n  url ")
    phases = Phases({"first_byte": 2.5}, "192.0.2.1", [(302, "https://h/2?a=***")])
    outcome = replace(STORED, phases=phases)
    await end_all(api.store, outcome, callback=CallbackOutcome(verdict=Verdict.FAILED, error="answered 500"))
    ran = await run("job", row["id"])
    for text in (
        "succeeded\n",
        "3 bytes, text/plain\n",
        "failed, http https://client.example/done",
        "answered 500\n",
        "  instance         me\n",
        "  phases           first byte 2.5 s (kept connection)\n",
        "  address          192.0.2.1\n",
        "  redirect         302 to https://h/2?a=***\n",
    ):
        assert text in ran.out
    [document] = (await run("job", row["id"], "--json")).json_lines()
    assert (document["file"]["sha256"], document["callback"]["state"]) == ("ab", "failed")
    ran = await run("job", "NSb4FOAs9fVaQw", row["id"], "--json")
    assert (ran.status, len(ran.json_lines())) == (1, 1)
    assert ran.complaint == "NSb4FOAs9fVaQw: 404 unknown_job: There is no job with this id"


async def test_retry(run: Run, api: Served) -> None:
    ids = [
        row["id"] for row in (await run("submit", "https://h/1", "https://h/2", "--json", *HTTP)).json_lines()
    ]
    ran = await run("retry", ids[0])
    assert (ran.status, ran.complaint.startswith(f"{ids[0]}: 409 not_to_be_retried: ")) == (1, True)
    await end_all(api.store, STORED, callback=CallbackOutcome(verdict=Verdict.FAILED, error="answered 500"))
    ran = await run("retry", ids[0])
    assert (ran.status, ran.out) == (0, f"{ids[0]} is called back again\n")
    ran = await run("retry", "--failed", "--aggr-id", "other", "--since", "2026-01-01T00:00")
    assert (ran.status, ran.out) == (0, "0 callbacks are sent again\n")
    assert (await run("retry", "--failed", "--json")).json_lines() == [{"retried": 1}]
    await end_all(api.store, STORED, callback=CallbackOutcome(verdict=Verdict.SUCCEEDED))
    [row] = (await run("submit", "https://h/3", "--json", *HTTP)).json_lines()
    await end_all(api.store, GONE, callback=CallbackOutcome(verdict=Verdict.SUCCEEDED))
    ran = await run("retry", row["id"], "--download", "--json")
    assert (ran.status, ran.json_lines()) == (0, [{"id": row["id"]}])


async def test_retry_of_failed_downloads(run: Run, api: Served) -> None:
    await run("submit", "https://h/1", "https://h/2", "https://other/3", *HTTP)
    await end_all(api.store, GONE, callback=CallbackOutcome(verdict=Verdict.SUCCEEDED))
    await run("submit", "https://h/4", *HTTP, "--tag", "a", "--tag", "b")
    [tagged] = (
        await run("jobs", "--state", "pending", "--aggr-id", "h", "--tag", "b", "--json")
    ).json_lines()
    assert tagged["tags"] == ["a", "b"]
    await end_all(api.store, GONE, callback=CallbackOutcome(verdict=Verdict.SUCCEEDED))
    all_failed = ("retry", "--failed", "--download")
    assert (await run(*all_failed, "--tag", "c")).out == "0 downloads are repeated\n"
    assert (await run(*all_failed, "--tag", "c", "--tag", "a")).out == "1 download is repeated\n"
    assert (await run(*all_failed, "--error-code", "timeout")).out == "0 downloads are repeated\n"
    assert (await run(*all_failed, "--destination", "http nobody")).out == "0 downloads are repeated\n"
    wanted = ("--aggr-id", "other", "--error-code", "http_status", "--destination", "http c")
    assert (await run(*all_failed, *wanted)).out == "1 download is repeated\n"
    assert (await run(*all_failed, "--since", "2026-01-01T00:00", "--json")).json_lines() == [{"retried": 2}]


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


async def test_jobs(run: Run, api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        await run("submit", "https://h/1", f"https://{'long.' * 9}example/2", "--json", *HTTP)
    ).json_lines()
    assert (await run("jobs")).out == ""
    ran = await run("jobs", "--state", "pending", "--aggr", "h")
    columns = ran.out.removesuffix("\n").split("\t")
    assert ran.status == 0
    assert columns[:5] == [rows[0]["id"], "pending", "", "", "h"]
    assert columns[5:] == ["", "", "", "https://h/1"]
    gone = CallbackOutcome(verdict=Verdict.FAILED, error="Received Status code 500\t" * 9)
    await end_all(api.store, GONE, callback=gone)
    found = (await run("jobs", "--callback", "failed", "--since", "2026-01-01", "--json")).json_lines()
    assert {each["id"] for each in found} == {row["id"] for row in rows}
    for selection in (
        ("--error-code", "http_status", "--destination", "http c", "-n", "1", "-q", "H"),
        ("--since", "1h", "-n", "1"),
        ("--since", "yesterday", "--aggr-id", "h"),
    ):
        [each] = (await run("jobs", "--state", "failed", "--json", *selection)).json_lines()
        assert each["error_code"] == "http_status"
    assert (await run("jobs", "--state", "failed", "--error-code", "timeout")).out == ""
    [line] = (await run("jobs", "--state", "failed", "--aggr-id", "h")).out.splitlines()
    assert line.split("\t")[:3] == [rows[0]["id"], "failed", "failed"]
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "25")  # without it Rich ignores COLUMNS of a dumb terminal
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    await run("jobs", "--state", "failed")
    await run("jobs", "--state", "cancelled")
    head, *table, nothing = terminal.getvalue().splitlines()
    assert head.split() == ["job", "state", "callback", "ended", "aggregation", "error"]
    assert all(" 500\\tRec" in line for line in table)
    assert sorted(line.split()[0] for line in table) == sorted(row["id"] for row in rows)
    assert all(len(line) <= 80 and line[47:].startswith(("h ", "long.long")) for line in table)
    assert nothing == "no such jobs"
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    await run("jobs", "--state", "failed", "-n", "1")
    head, row = terminal.getvalue().splitlines()
    assert head.split()[-3:] == ["code", "destination", "url"]
    monkeypatch.setenv("COLUMNS", "80")
    await run("submit", "https://wait.example/a")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    await run("jobs", "--state", "pending", "--aggr-id", "wait.example")
    head, row = terminal.getvalue().splitlines()
    assert head.split() == ["job", "state", "so", "far", "aggregation", "url"]
    assert row.split()[1:] == ["pending", "wait.example", "https://wait.example/a"]
    assert "https://" in row


def test_a_running_job_is_listed_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(received=1_500_000, instance="i")
    job = ListedJob(id="0" * 14, aggr_id="a", url="http://h/", state="running", progress=progress)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "25")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    _list([job], head=True)
    assert terminal.getvalue().splitlines()[1].split() == [job.id, "running", "1.5", "MB", "a", "http://h/"]
    monkeypatch.setattr(sys, "stdout", piped := io.StringIO())
    _list([job], head=True)
    assert piped.getvalue().rstrip("\n").split("\t")[-2:] == ["http://h/", "1500000"]


async def test_jobs_that_end_are_followed(run: Run, api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job is printed once, the newest last; a job that fails again is printed again."""
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 5:
            raise KeyboardInterrupt
        trio.from_thread.run(end_next)

    async def end_next() -> None:
        if len(looks) == 4:
            assert await api.store.retry(ids[0], download=True, limit=1)
        else:
            ids.append((await api.client.post("/download", json=JOB | {"aggr_id": "h"})).json()["id"])
        await end_all(api.store, GONE, callback=CallbackOutcome(verdict=Verdict.SUCCEEDED))

    ids: list[str] = []
    looks.append(0)
    await end_next()
    monkeypatch.setattr("time.sleep", sleep)
    ran = await run("jobs", "--state", "failed", "--follow", "--json")
    assert ran.status == 130
    assert [job["id"] for job in ran.json_lines()] == [*ids, ids[0]]
    assert len(ids) == 3


async def test_only_jobs_that_have_ended_can_be_followed(run: Run) -> None:
    ran = await run("jobs", "--follow")
    assert (ran.status, ran.out) == (2, "")
    assert ran.complaint.startswith("--follow needs ")


async def test_a_job_is_watched_until_its_callback_has_ended(
    run: Run, api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["downloader.cli.job"], "LOOK_S", 0.01)
    [row] = (await run("submit", "https://h/1", "--json", *HTTP)).json_lines()
    ran: list[Ran] = []

    async def watch() -> None:
        ran.append(await run("job", row["id"], "--watch"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await end_all(api.store, GONE, callback=CallbackOutcome(verdict=Verdict.SUCCEEDED))
    assert ran[0].status == 1, "the download failed"
    assert f"\n{row['id']} failed\n" in f"\n{ran[0].out}"
    [final] = (await run("job", row["id"], "--watch", "--json")).json_lines()
    assert final["callback"]["state"] == "succeeded"


async def test_a_watch_goes_on_when_the_service_has_restarted(
    run: Run, api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    [row] = (await run("submit", "https://h/1", "--json", *HTTP)).json_lines()
    looks: list[int] = []
    ask = Client.job

    def job(client: Client, job_id: str) -> Job:
        looks.append(len(looks))
        if looks[-1] in (1, 2):
            raise Unreachable("the service does not answer")
        if looks[-1] == 3:
            raise ApiProblem(LineProblem(code="store_unavailable", detail="no"), status=503)
        return ask(client, job_id)

    def pause(_seconds: float) -> None:
        if len(looks) == 4:
            trio.from_thread.run(end)

    async def end() -> None:
        await end_all(api.store, GONE, callback=CallbackOutcome(verdict=Verdict.SUCCEEDED))

    monkeypatch.setattr(Client, "job", job)
    monkeypatch.setattr("time.sleep", pause)
    ran = await run("job", row["id"], "--watch")
    assert ran.status == 1, "the download failed"
    assert f"{row['id']} failed" in ran.out
    assert ran.err == "downloader: the service does not answer; trying again until it answers\n"
    looks[:] = [0]
    assert (await run("job", row["id"], "--watch")).complaint == "the service does not answer", "at the start"


async def test_a_hint_names_the_flag_of_the_command(run: Run, api: Served) -> None:
    [row] = (await run("submit", "https://h/1", "--json")).json_lines()
    await end_all(api.store, GONE)
    ran = await run("retry", row["id"])
    assert ran.status == 1
    assert "--download" in ran.err
    assert "?download" not in ran.err


async def test_jobs_of_an_unknown_group(run: Run, api: Served) -> None:
    ran = await run("jobs", "--group", "night-17")
    assert (ran.status, ran.out) == (1, "")
    assert ran.complaint == "There is no group of jobs of this name"
    await run("submit", "https://h/1", "--group", "night-17")
    ran = await run("jobs", "--group", "night-17", "--state", "failed")
    assert (ran.status, ran.out, ran.err) == (0, "", "")


async def test_an_aggregation_without_jobs_has_the_limit_that_was_set(run: Run, api: Served) -> None:
    for change, limit in (("rate=2", ""), ("limit=7", "7")):
        await run("aggregations", "a", "--set", change)
        [line] = (await run("aggregations")).out.splitlines()
        assert line.split("\t")[1:5] == ["0", "0", limit, "2"]
        assert ("limit" in (await run("aggregations", "a")).out) is bool(limit)


async def test_backlog(run: Run, api: Served) -> None:
    assert (await run("backlog")).status == 0
    now = datetime.now(UTC)
    for minutes, succeeded in ((10, 100), (5, 130)):
        at = now - timedelta(minutes=minutes)
        await api.store.note_backlog(
            BacklogPoint(at=at, downloads=7, callbacks=2, succeeded=succeeded, failed=1)
        )
    lines = (await run("backlog")).out.splitlines()[:2]  # the API adds a point too
    assert [line.split("\t")[1:] for line in lines] == [["7", "2", "0", "0"], ["7", "2", "30", "0"]]
    assert [point["succeeded"] for point in (await run("backlog", "--json")).json_lines()][:2] == [100, 130]


async def test_audit(run: Run, api: Served) -> None:
    assert (await run("audit")).out == ""
    await run("pause", "--all")
    await run("aggregations", "a", "--set", "limit=2", "--set", "rate=null")
    await submitted(api.store, "a")
    for _ in range(2):  # the second request finds no job, and changes nothing
        await run("cancel", "--aggr-id", "a")
    lines = [line.split("\t")[1:] for line in (await run("audit")).out.splitlines()]
    assert lines == [
        ["-", "127.0.0.1", "cancel jobs", "a count=1"],
        ["-", "127.0.0.1", "adjust", "a limit=2 rate=null"],
        ["-", "127.0.0.1", "pause all", "paused=true"],
    ]
    [newest] = (await run("audit", "-n", "1", "--json")).json_lines()
    assert newest["changed"] == {"aggr_id": "a", "count": 1}


async def test_the_bytes_so_far_of_running_jobs(run: Run, api: Served) -> None:
    [row] = (await run("submit", "https://h/1", "--json", *HTTP)).json_lines()
    await leased(api.store)
    await api.store.report("one", "processor", {"instance": "host-1", "running": {row["id"]: 7}}, 60)
    assert (await run("jobs")).out.rstrip("\n").split("\t")[-1] == "7"


async def test_events(run: Run) -> None:
    [snapshot] = (await run("events", "-n", "1")).json_lines()
    assert snapshot["store"] is True


async def test_flags_may_stand_in_front(run: Run, api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOWNLOADER_API")
    url = f"http://127.0.0.1:{api.port}"
    assert (await run("--api", url, "--json", "aggregations")).status == 0
    assert (await run(f"--api={url}", "jobs")).status == 0


async def test_cancel(run: Run, api: Served) -> None:
    [row] = (await run("submit", "https://h/1", "--json", *HTTP)).json_lines()
    ran = await run("cancel", row["id"])
    assert (ran.status, ran.out) == (0, f"{row['id']} is cancelled\n")
    assert (await run("job", row["id"])).out.startswith(f"{row['id']} cancelled\n")
    [row] = (await run("submit", "https://h/1", "--json", *HTTP)).json_lines()
    await end_all(api.store, STORED)
    ran = await run("cancel", row["id"], "--json")
    assert (ran.status, ran.out) == (1, "")
    assert ran.complaint == f"{row['id']}: 409 not_to_be_cancelled: The download of this job is over"


async def test_aggregations(run: Run, api: Served) -> None:
    await run("submit", "https://a/1", "https://b/1", "https://b/2", *HTTP)
    assert (await run("aggregations", "a")).out.startswith("a\n  state      waits: no processor runs\n")
    await api.store.report("one", "processor", {"instance": "one"}, 60)
    assert (await run("aggregations")).out == "b\t0\t2\t4\na\t0\t1\t4\n"
    ran = await run("aggregations", "b", "--set", "limit=2", "--set", "delay=0.5")
    assert (ran.status, ran.err) == (0, "")
    assert "  limit      2 (the jobs ask for 4)\n  delay      0.5 s between starts" in ran.out
    assert (await run("aggregations", "b", "--json")).json_lines()[0]["delay"] == 0.5
    assert (await run("pause", "a", "b")).out == "a is paused: 1 pending\nb is paused: 2 pending\n"
    assert (await run("aggregations")).out.splitlines()[0] == "b\t0\t2\t2\t\t0.5\tpaused"
    ran = await run("resume", "a", "c", "--json")
    assert (ran.status, ran.json_lines()[0]["paused"]) == (1, False)
    assert ran.complaint.startswith("c: 404 unknown_aggregation: ")
    assert [row["aggr_id"] for row in (await run("aggregations", "--json")).json_lines()] == ["b", "a"]
    ran = await run("aggregations", "b", "--set", "limit=null")
    assert (ran.status, ran.err) == (0, "")
    assert "  limit      4\n" in ran.out
    ran = await run("aggregations", "a", "--set", "limit=0")
    assert (ran.status, ran.complaint.startswith("422 out_of_range: limit ")) == (2, True)


async def test_top_without_a_terminal(run: Run) -> None:
    await run("submit", "https://a.example/1", *HTTP)
    ran = await run("top")
    assert ran.status == 0
    assert ["a.example", "0", "4", "1"] in [line.split() for line in ran.out.splitlines()]
    [state] = (await run("top", "--json")).json_lines()
    assert state["aggregations"][0]["aggr_id"] == "a.example"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["submit"], "nothing to submit"),
        (["submit", "--from-file", "-"], "nothing to submit"),
        (["submit", "--from-file", "no-such.txt"], "no-such.txt: cannot be read"),
        (["submit", "https://h/", "-F", "x"], "--field x: must be NAME=VALUE"),
        (["submit", "https://h/", "--aggr-limit", "0"], 'Invalid value "0" for --aggr-limit.'),
        (["submit", "https://h/", "--priority", "10"], 'Invalid value "10" for --priority.'),
        (["submit", "https://h/", "--api", "nonsense"], "must be an http or https URL, not 'nonsense'"),
        (["job"], "give an id"),
        (["cancel"], "give ids"),
        (["cancel", "x", "--group", "g"], "give ids"),
        (["cancel", "--aggr-id", "a", "--group", "g"], "give ids"),
        (["jobs", "--state", "done"], 'Invalid value "done" for --state. Choose from: "pending"'),
        (["jobs", "--state", "pending"], "422 query: aggr_id is required for pending jobs"),
        (["jobs", "--group", "g", "--follow"], "--follow needs --callback"),
        (["jobs", "--since", "2026-11-27"], "422 query: since applies only to jobs whose download is over"),
        (["pause"], "give an id"),
        (["aggregations", "--set", "limit=1"], "--set needs the names of aggregations"),
        (["aggregations", "a", "--set", "limit=many"], "--set limit=many: must be NAME=NUMBER"),
        (["aggregations", "a", "--set", "speed=2"], "--set speed=2: must be NAME=NUMBER or NAME=null, where"),
        (["retry"], "give the ids of jobs, or --failed"),
        (["retry", "x", "--failed"], "give the ids of jobs, or --failed"),
        *(
            (
                ["retry", "x", flag, "tls"],
                "--aggr-id, -q, --since, --error-code, --destination, --group and --tag need --failed",
            )
            for flag in ("--aggr-id", "--error-code", "--destination", "--group", "--tag")
        ),
        (["retry", "--failed", "--since", "soon"], "--since"),
    ],
)
async def test_wrong_usage(run: Run, arguments: list[str], expected: str) -> None:
    ran = await run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert expected in ran.complaint


@pytest.mark.parametrize("others", ["https://h/1\n", ""])
async def test_a_line_that_is_no_job_is_refused_and_spoils_no_other(
    run: Run, ending: Callable[[Outcome], None], tmp_path: Path, others: str
) -> None:
    ending(STORED)
    (tmp_path / "jobs").write_text('{"url": \n' + others)
    ran = await run("submit", "--wait", "--from-file", str(tmp_path / "jobs"), *HTTP)
    assert (ran.status, ran.err) == (1, "")
    refused, *done = ran.out.splitlines()
    assert refused == f'refused bad_json {{"url": {tmp_path / "jobs"}, line 1: not a JSON object'
    assert [line.split()[0] for line in done] == ["succeeded"] * bool(others)


async def test_jobs_from_standard_input_are_waited_for(run: Run, ending: Callable[[Outcome], None]) -> None:
    ending(GONE)
    jobs = [{"url": f"https://h/{number}", "aggr_id": "a"} for number in range(3)]
    text = "".join(f"{json.dumps(job)}\n" for job in jobs)
    ran = await run("submit", "--wait", "--json", "--from-file", "-", stdin=text)
    rows = ran.json_lines()
    assert (ran.status, {row["url"] for row in rows}) == (1, {job["url"] for job in jobs})
    assert {(row["aggr_id"], row["state"]) for row in rows} == {("a", "failed")}


async def test_ctrl_c_says_what_goes_on(
    run: Run, ending: Callable[[Outcome], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:  # noqa: ARG002  # of files
            raise KeyboardInterrupt

    ending(STORED)
    monkeypatch.setattr(sys, "stdout", Interrupted())
    ran = await run("submit", "--wait", "https://h/1", "https://h/2")
    assert ran.status == 130
    assert ran.complaint == "interrupted: 1 of 2 jobs have not ended, and go on (see downloader jobs)"


@pytest.mark.parametrize("command", ["job", "pause", "aggregations"])
async def test_a_name_that_is_not_unicode_is_unknown(run: Run, command: str) -> None:
    ran = await run(command, "\udcff")
    assert (ran.status, ran.out) == (1, "")
    assert ran.complaint.startswith("\\udcff: 404 unknown_")


async def test_no_job_has_an_aggregation_whose_name_is_not_unicode(run: Run) -> None:
    assert await run("jobs", "--aggr-id", "\udcff") == Ran(0, "", "")


@pytest.mark.parametrize("command", [["submit", "https://h/"], ["job", "x"], ["aggregations"], ["top"]])
async def test_a_service_that_does_not_run(run: Run, command: list[str]) -> None:
    ran = await run(*command, "--api", "http://127.0.0.1:1")
    assert (ran.status, ran.out) == (1, "")
    assert ran.complaint.startswith("cannot reach http://127.0.0.1:1: ")


async def test_tokens(serving: Serving, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    token = TokenSettings(name="n", token=SecretStr("t" * 20), scopes=["read"])
    api = await serving(settings=ApiSettings(tokens=[token]))
    address = ("--api", f"http://127.0.0.1:{api.port}")
    ran = await run("job", "NSb4FOAs9fVaQw", *address)
    assert ran.status == 2
    assert ran.complaint.startswith("401 unauthorized: ")
    assert "DOWNLOADER_TOKEN" in ran.complaint
    monkeypatch.setenv("DOWNLOADER_TOKEN", "t" * 20)
    ran = await run("job", "NSb4FOAs9fVaQw", *address)
    assert (ran.status, "404 unknown_job" in ran.complaint) == (1, True)
    ran = await run("submit", "https://h/", *HTTP, *address)
    assert ran.status == 2
    assert ran.complaint.startswith("403 forbidden: ")
    ran = await run("top", "--json", *address, "--token", "wrong")
    assert (ran.status, "wrong" in ran.err) == (2, False)
    for token_ in ("hunter2\n", "hunter\xe9"):
        ran = await run("jobs", *address, "--token", token_)
        assert (ran.status, "hunter" in ran.err) == (2, False)
        assert ran.complaint.startswith("the token has a character that no header can have")
