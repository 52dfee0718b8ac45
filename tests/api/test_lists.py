"""Tables that `submit --from-file` reads, and the lists that `--results` writes."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from downloader.model import ErrorCode, FileFacts, Outcome, ResponseMetadata, Verdict
from servers.api import Served
from servers.cli import Run
from servers.pages import SHELL, write

MD5 = "5eb63bbbe01eeed093cb22bb8f5acdc3"
GUIDE = (Path(__file__).parents[2] / "docs/howto/lists.md").read_text("utf-8")
STORED = Outcome(
    verdict=Verdict.SUCCEEDED, response_code=200, file=FileFacts(size=3, sha256="ab", mime_type="text/plain")
)
GONE = Outcome(verdict=Verdict.FAILED, error="gone", error_code=ErrorCode.HTTP_STATUS, response_code=410)


async def submitted(run: Run, api: Served, text: str, *flags: str) -> list[dict[str, Any]]:
    """What the store has of the jobs in a list that has no faults."""
    ran = await run("submit", "--from-file", "-", "--json", *flags, stdin=text)
    assert (ran.status, ran.err) == (0, "")
    jobs = [await api.store.get(row["id"]) for row in ran.json_lines()]
    return [json.loads(job.spec.to_json()) for job in jobs if job is not None]


@pytest.mark.parametrize("tab", ["\t", ","])
async def test_columns_become_fields(run: Run, api: Served, tab: str) -> None:
    rows = [
        ["url", " aggr_limit", "extra", "tags", "extract_image_size", "aggr_rate", "sha256", ""],
        ["https://h/1", "7", 'a "b",\nc', "x, y", "TRUE", "0.5", "12" * 32, ""],
        ["https://h/2", "", "", "", "", "", "", "left out"],
    ]
    table = io.StringIO()
    csv.writer(table, delimiter=tab).writerows(rows)
    text = f"\ufeff# a comment\n{table.getvalue()}\r\n"
    first, second = await submitted(run, api, text, "--aggr-limit", "9", "-F", "extra=mine")
    assert (first["url"], first["aggr_limit"], first["extra"]) == ("https://h/1", 7, 'a "b",\nc')
    assert (first["tags"], first["extract_image_size"], first["aggr_rate"]) == (["x", "y"], True, 0.5)
    assert first["sha256"] == "12" * 32
    assert (second["url"], second["aggr_limit"], second["extra"]) == ("https://h/2", 9, "mine")
    assert "tags" not in second


async def test_a_list_for_google(run: Run, api: Served) -> None:
    text = 'TsvHttpData-1.0\nhttps://h/"1\t11\tXrY7u+Ae7tCTyyK7j1rNww==\nhttps://h/2\n\nhttps://h/3\t0\n'
    first, second, third = await submitted(run, api, text)
    assert (first["url"], first["size"], first["md5"]) == ('https://h/"1', 11, MD5)
    assert not {"size", "md5"} & second.keys()
    assert third["size"] == 0


async def test_a_text_in_a_flag_keeps_its_quotes_and_digits(run: Run, api: Served) -> None:
    flags = ["-F", 'if_none_match="33a64df5"', "-F", "group=17", "-F", "max_retries=5", "-F", 'tags=["x"]']
    [job] = await submitted(run, api, "https://h/1\n", *flags)
    assert (job["if_none_match"], job["group"], job["max_retries"]) == ('"33a64df5"', "17", 5)
    assert job["tags"] == ["x"]


@pytest.mark.parametrize("first", ["https://h/a,b", "https://h/url"])
async def test_a_url_begins_no_table(run: Run, api: Served, first: str) -> None:
    jobs = await submitted(run, api, f"{first}\nhttps://h/2,c\n")
    assert [job["url"] for job in jobs] == [first, "https://h/2,c"]


@pytest.mark.parametrize(
    ("text", "line", "fault"),
    [
        ("url,extra\nX,a,b\n", 2, "3 cells in a table of 2 columns"),
        ("url,extra\n\nX\n", 3, "1 cells in a table of 2 columns"),
        ('url,extra\n"X\n\n1",a\n', 2, None),
        ('url,extra\nhttps://h/0,"\n\n"\n,a\n', 5, "no url"),
        ("url,max_retries\nX,many\n", 2, "max_retries: not of type integer: many"),
        ('#\nurl,extra\nX,"a"b\n', 3, "',' expected after '\"'"),
        ('url,extra\nX,"a\nhttps://h/2,b\n', 2, "unexpected end of data"),
        ("TsvHttpData-1.0\nX\tmany\n", 2, "size: not a number of bytes: many"),
        ("TsvHttpData-1.0\nX\t1\tXrY7\n", 2, "md5: not an MD5 in base64: XrY7"),
        ("TsvHttpData-1.0\nX\t1\t!\n", 2, "md5: not an MD5 in base64: !"),
        ("TsvHttpData-1.0\nX\t1\t\ta\n", 2, "must be a URL, a size and an MD5, with tabs between them"),
    ],
)
async def test_a_bad_row_is_refused_with_its_line(run: Run, text: str, line: int, fault: str | None) -> None:
    ran = await run("submit", "--from-file", "-", "--json", stdin=text)
    problems = [row["detail"] for row in ran.json_lines() if row.get("code") == "bad_row"]
    assert problems == ([] if fault is None else [f"standard input, line {line}: {fault}"])
    assert (ran.status, ran.err) == (1, "")


async def test_a_cell_that_is_nested_too_deeply(run: Run) -> None:
    text = f"url,request_headers\nX,{'[' * 100_000}\n"
    [row] = (await run("submit", "--from-file", "-", "--json", stdin=text)).json_lines()
    assert row["code"] == "bad_row"
    assert row["detail"].startswith("standard input, line 2: request_headers: not of type object: [[")


async def test_a_long_first_line_begins_no_table(run: Run, api: Served) -> None:
    extra = "x" * 140_000  # more than a cell of a table may have
    [job] = await submitted(run, api, json.dumps({"url": "https://h/1", "extra": extra}))
    assert (job["url"], job["extra"]) == ("https://h/1", extra)


async def test_a_bad_row_spoils_no_other(run: Run) -> None:
    text = 'url,extra\nhttps://h/1,a\nhttps://h/2,"a"b\nhttps://h/3,c\n'
    rows = (await run("submit", "--from-file", "-", "--json", stdin=text)).json_lines()
    assert sorted((row["url"], "id" in row) for row in rows) == [
        ("", False),
        ("https://h/1", True),
        ("https://h/3", True),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".ndjson"])
async def test_results_have_a_row_for_each_job(
    run: Run, ending: Callable[[Outcome], None], tmp_path: Path, suffix: str
) -> None:
    ending(STORED)
    path = tmp_path / f"results{suffix}"
    urls = ("https://h/1", "https://h/a,b", "nonsense")
    ran = await run("submit", *urls, "-F", f"md5={MD5}", "--wait", "--results", str(path))
    assert (ran.status, ran.err) == (1, "")
    text = path.read_text("utf-8")
    rows: list[dict[str, Any]]
    if suffix == ".ndjson":
        rows = [json.loads(line) for line in text.splitlines()]
    else:
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ","))
    refused, *ended = sorted(rows, key=lambda row: str(row["state"]))
    assert {row["url"] for row in ended} == set(urls[:2])
    facts = {(row["state"], str(row["size"]), row["sha256"], row["md5"], row["path"] != "") for row in ended}
    assert facts == {("succeeded", "3", "ab", MD5, True)}
    assert (refused["url"], refused["state"], refused["error_code"]) == (
        "nonsense",
        "refused",
        "url_malformed",
    )


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", "'"), (".tsv", ""), (".ndjson", "")])
async def test_a_spreadsheet_finds_no_formula(
    run: Run, ending: Callable[[Outcome], None], tmp_path: Path, suffix: str, mark: str
) -> None:
    ending(replace(STORED, response=ResponseMetadata(etag="=cmd()", last_modified="a=b")))
    path = tmp_path / f"results{suffix}"
    assert (await run("submit", "https://h/1", "--wait", "--results", str(path))).status == 0
    text = path.read_text("utf-8")
    assert f"{mark}=cmd()" in text
    assert ("'=cmd()" in text) is bool(mark)
    assert "'a=b" not in text


async def test_results_of_an_interrupted_run(
    run: Run, ending: Callable[[Outcome], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:  # noqa: ARG002  # of files
            raise KeyboardInterrupt

    ending(GONE)
    monkeypatch.setattr(sys, "stdout", Interrupted())
    path = tmp_path / "results.csv"
    ran = await run("submit", "--wait", "--results", str(path), "https://h/1", "https://h/2")
    assert ran.status == 130
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))
    assert sorted((row["state"], row["error_code"]) for row in rows) == [
        ("accepted", ""),
        ("failed", "http_status"),
    ]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("results.txt", "must end with .csv, .tsv or .ndjson"),
        ("no/results.csv", "cannot be written: No such file or directory"),
    ],
)
async def test_results_that_cannot_be_written(run: Run, api: Served, name: str, complaint: str) -> None:
    ran = await run("submit", "https://h/1", "--results", name)
    assert (ran.status, ran.complaint) == (2, f"--results {name}: {complaint}")
    assert await api.store.aggregation_sizes() == {}


async def test_the_guide(
    run: Run, ending: Callable[[Outcome], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(STORED)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GUIDE)
    for command in SHELL.findall(GUIDE):
        program, *arguments = command.split()
        ran = await run(*arguments)
        assert (program, ran.status, ran.err) == ("downloader", 0, "")
    names = (tmp_path / "results.csv").read_text("utf-8").splitlines()[0].split(",")
    assert [name for name in names if f"`{name}`" not in GUIDE] == []
    assert len((tmp_path / "results.ndjson").read_text("utf-8").splitlines()) == 2
