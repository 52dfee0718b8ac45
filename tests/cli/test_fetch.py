"""`downloader fetch` as users run the command, against a real origin on loopback."""

import hashlib
import os
import pty
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import trio

from downloader.cli.fetch_folder import HIDDEN
from servers.cli import Ran, run_cli
from servers.forked import Forked, fork
from servers.origin import PNG, Exchange, Origin, body_of, open_origin, raw, respond

pytestmark = pytest.mark.slow  # each starts a process

WAIT_S = 40.0
MIB = 1024 * 1024


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with open_origin() as opened:
        opened.on("/a.png", respond(200, PNG))
        opened.on("/text", respond(200, b"hello\n"))
        opened.on("/none", respond(404))
        yield opened


def launch(*arguments: str | Path, stdin: int | None = None, stdout: int, stderr: int) -> Forked:
    """`downloader fetch`, running."""
    words = ["fetch", *map(str, arguments)]
    return fork(words, stdin=stdin, stdout=stdout, stderr=stderr, environ={"TERM": "xterm"})


async def fetch(*arguments: str | Path, stdin: str = "", cwd: Path | None = None) -> Ran:
    return await trio.to_thread.run_sync(lambda: run_cli("fetch", *arguments, stdin=stdin, cwd=cwd))


def names(folder: Path) -> list[str]:
    """The files that a user sees."""
    return sorted(path.name for path in folder.iterdir() if path.name != HIDDEN)


async def test_files_get_their_names_and_lines(origin: Origin, tmp_path: Path) -> None:
    ran = await fetch(origin.url("/a.png?x=1"), origin.url("/text"), cwd=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert names(tmp_path) == ["a.png", "text"]
    assert (tmp_path / "a.png").read_bytes() == PNG
    assert sorted(ran.out.splitlines()) == sorted(
        [
            f"ok {len(PNG)} a.png {origin.url('/a.png?x=1')}",
            f"ok 6 text {origin.url('/text')}",
        ]
    )


async def test_json_and_status_1_when_one_fails(origin: Origin, tmp_path: Path) -> None:
    ran = await fetch(origin.url("/a.png"), origin.url("/none"), "-o", tmp_path / "out", "--json")
    assert (ran.status, ran.err) == (1, "")
    good, bad = sorted(ran.json_lines(), key=lambda row: row["url"])
    assert good.pop("seconds") >= 0
    assert good == {
        "url": origin.url("/a.png"),
        "ok": True,
        "skipped": False,
        "path": str(tmp_path / "out" / "a.png"),
        "size": len(PNG),
        "sha256": hashlib.sha256(PNG).hexdigest(),
        "mime_type": "image/png",
        "error": "",
        "error_code": "",
        "response_code": 200,
        "attempts": 1,
    }
    assert (bad["ok"], bad["path"], bad["error_code"], bad["response_code"]) == (
        False,
        "",
        "http_status",
        404,
    )
    assert bad["error"].startswith("Received Status code 404")
    assert names(tmp_path / "out") == ["a.png"]


async def test_urls_of_standard_input_and_types(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("mine")
    urls = f"# list\n{origin.url('/a.png')}\n\n{origin.url('/text')}\n{origin.url('/a.png')}\n"
    ran = await fetch("--from-file", "-", "--mime", "image/*", "-o", tmp_path, stdin=urls)
    assert ran.status == 1
    assert names(tmp_path) == ["a (2).png", "a.png"]
    assert len(origin.asked("/a.png")) == 1, "a URL that is listed twice is fetched once"
    [failed] = [line for line in ran.out.splitlines() if line.startswith("failed")]
    assert failed == (
        f"failed mime_type {origin.url('/text')} Expected mime-type to be (image/*), found (text/plain)"
    )


async def test_headers_retries_and_the_origins_names(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("mine")
    origin.on("/get", respond(200, b"hello\n", [("Content-Disposition", 'attachment; filename="/x/a.pdf"')]))
    headers = ["--header", "X-Key: a: b", "--header", "user-agent:me"]
    ran = await fetch(
        origin.url("/get"),
        origin.url("/status/503"),
        *headers,
        "--retries",
        "0",
        "--max-rate",
        "1GB",
        "-o",
        tmp_path,
    )
    assert ran.status == 1
    assert names(tmp_path) == ["a (2).pdf", "a.pdf"]
    assert (tmp_path / "a.pdf").read_text() == "mine"
    [request] = origin.asked("/get")
    assert (request.headers["x-key"], request.headers["user-agent"]) == ("a: b", "me")
    assert request.headers["accept"] == "*/*"
    assert len(origin.asked("/status/503")) == 1


async def test_nothing_is_overwritten(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("mine")
    ran = await fetch(origin.url("/text"), "-o", tmp_path)
    assert ran.status == 0
    assert ((tmp_path / "text").read_text(), (tmp_path / "text (2)").read_text()) == ("mine", "hello\n")


async def test_a_host_has_its_limit(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url(f"/slow/0.1/1?{number}") for number in range(8)]
    ran = await fetch(*urls, "--limit", "2", "-o", tmp_path)
    assert ran.status == 0
    assert len(names(tmp_path)) == 8
    assert max(origin.peak.values()) == 2


async def test_a_temporary_error_is_retried(origin: Origin, tmp_path: Path) -> None:
    ran = await fetch(origin.url("/flaky/1/503/5?key=k"), "-o", tmp_path, "--json")
    [row] = ran.json_lines()
    assert (ran.status, row["attempts"]) == (0, 2)
    assert row["seconds"] < 4.5, "two at most of backoff: the loop must not wait for its next look"


async def test_text_of_an_origin_is_escaped_on_a_terminal(origin: Origin, tmp_path: Path) -> None:
    origin.on("/x%1b%5b31m.txt", raw(b"HTTP/1.1 404 \x1b[31mred\r\nContent-Length: 0\r\n\r\n"))
    ran = await fetch(origin.url("/x%1b%5b31m.txt"), "-o", tmp_path)
    assert ran.status == 1
    assert "\x1b" not in ran.out + ran.err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_interrupted_it_leaves_nothing_half_written(
    origin: Origin, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 1_000_000
    origin.on("/big", raw(start, then="hang"))
    urls = [origin.url("/text"), origin.url("/big")]
    read, write = os.pipe()
    with TemporaryFile("w+") as err, os.fdopen(read) as out:
        process = launch("-o", tmp_path, *urls, stdout=write, stderr=err.fileno())
        os.close(write)
        with trio.fail_after(WAIT_S):
            line = await trio.to_thread.run_sync(out.readline)
            await origin.wait_until(lambda: bool(origin.asked("/big")), seconds=WAIT_S)
            process.send_signal(number)
            rest = await trio.to_thread.run_sync(out.read)
            assert await process.wait() == status
        err.seek(0)
        assert (rest, err.read()) == (
            "",
            "downloader: interrupted: 1 fetched, 6 bytes; 0 failed; 1 not fetched\n",
        )
    assert line == f"ok 6 {tmp_path / 'text'} {origin.url('/text')}\n"
    assert names(tmp_path) == ["text"]


class Versioned:
    """A file of 4 MiB as a static server gives it; only its first 3 MiB, and then nothing, while `hangs`."""

    def __init__(self, origin: Origin, path: str) -> None:
        self.url = origin.on(path, self.answer)
        self.hangs = True
        self.change("v1")

    def change(self, version: str) -> None:
        self.body, self.tag = body_of(4 * MIB, version), f'"{version}"'

    async def answer(self, exchange: Exchange) -> None:
        asked = exchange.request.headers
        fields = [("ETag", self.tag)]
        if self.hangs:
            head = f"HTTP/1.1 200 OK\r\nETag: {self.tag}\r\nContent-Length: {4 * MIB}\r\n\r\n"
            await raw(head.encode() + self.body[: 3 * MIB], then="hang")(exchange)
        elif "range" in asked and asked["if-range"] == self.tag:
            start = int(asked["range"].removeprefix("bytes=").removesuffix("-"))
            fields.append(("Content-Range", f"bytes {start}-{4 * MIB - 1}/{4 * MIB}"))
            await exchange.respond(206, self.body[start:], fields)
        else:
            await exchange.respond(200, self.body, fields)


async def stopped(number: signal.Signals, folder: Path, *urls: str) -> tuple[int, str]:
    """Start a run, and send it a signal when it has written a MiB of a file; its status, and what it said."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process = launch("-o", folder, *urls, stdout=out.fileno(), stderr=err.fileno())
        with trio.fail_after(WAIT_S):
            while not any(  # noqa: ASYNC110  # nothing but the file tells of it
                path.stat().st_size >= MIB for path in (folder / HIDDEN).glob("spool/*")
            ):
                await trio.sleep(0.01)
            process.send_signal(number)
            status = await process.wait()
        err.seek(0)
        return status, err.read()


async def test_a_run_that_was_killed_is_continued_by_the_next(origin: Origin, tmp_path: Path) -> None:
    big, urls = Versioned(origin, "/big"), [origin.url("/text")]
    await fetch(*urls, "-o", tmp_path)
    status, _ = await stopped(signal.SIGKILL, tmp_path, *urls, big.url)
    assert (status, names(tmp_path)) == (-signal.SIGKILL, ["text"])
    big.hangs = False
    ran = await fetch(*urls, big.url, "-o", tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"skipped 6 {tmp_path / 'text'} {urls[0]}",
        f"ok {4 * MIB} {tmp_path / 'big'} {big.url}",
    ]
    assert (tmp_path / "big").read_bytes() == big.body
    [_, second] = origin.asked("/big")
    assert int(second.headers["range"][len("bytes=") : -1]) >= MIB
    ran = await fetch(*urls, big.url, "-o", tmp_path, "--json")
    assert [(row["ok"], row["skipped"], row["sha256"]) for row in ran.json_lines()] == [
        (True, True, hashlib.sha256(b"hello\n").hexdigest()),
        (True, True, hashlib.sha256(big.body).hexdigest()),
    ]
    assert [len(origin.asked(path)) for path in ("/text", "/big")] == [1, 2], "skipped without a request"


async def test_a_file_that_has_changed_is_fetched_as_a_whole(origin: Origin, tmp_path: Path) -> None:
    big = Versioned(origin, "/big")
    status, said = await stopped(signal.SIGINT, tmp_path, big.url)
    assert status == 130
    first, second = said.splitlines()
    assert first == "downloader: interrupted: 0 fetched, 0 bytes; 0 failed; 1 not fetched"
    assert re.fullmatch(r"downloader: the same command resumes 1 file, of which \d\.\d MB are here", second)
    big.hangs = False
    big.change("v2")
    ran = await fetch(big.url, "-o", tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert (tmp_path / "big").read_bytes() == big.body
    assert len(origin.asked("/big")) == 2


async def test_a_reader_that_goes_away_gets_no_traceback(origin: Origin, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with TemporaryFile("w+") as err:
        process = launch("-o", tmp_path, origin.url("/text"), stdout=write, stderr=err.fileno())
        os.close(write)
        with trio.fail_after(WAIT_S):
            assert await process.wait() == 1
        err.seek(0)
        assert err.read() == ""
    assert names(tmp_path) == ["text"]


async def test_a_terminal_gets_bars_and_a_table(origin: Origin, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    urls = [origin.url("/a.png"), origin.url("/none")]
    process = launch("-o", tmp_path, *urls, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)

    def read() -> str:
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # how a terminal ends
                return shown.decode()
            shown += chunk

    with trio.fail_after(WAIT_S):
        shown = await trio.to_thread.run_sync(read)
    os.close(ours)
    assert await process.wait() == 1
    assert "files" in shown
    table = shown[shown.rindex("result") :]
    assert "a.png" in table
    assert "Received Status code 404" in table
    assert "1 fetched" in table
    assert "1 failed" in table
