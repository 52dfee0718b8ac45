"""robots.txt (RFC 9309): refused URLs are not fetched, and no robots.txt does harm."""

from __future__ import annotations

import random
import threading
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from downloader.errors import StoreUnavailable
from downloader.fetch import Fetcher
from downloader.fetch.robots import Robots, Rules
from downloader.model import ErrorCode, Outcome, Verdict
from downloader.net import Url
from servers.lab import Lab, open_lab
from servers.origin import Exchange, Handler, Origin, gate, open_origin, raw, repeat, respond
from servers.proxies import open_proxy

REFUSED = (Verdict.FAILED, ErrorCode.ROBOTS)
OK = (Verdict.SUCCEEDED, "")
LATER = (Verdict.THROTTLED, ErrorCode.ROBOTS)
DENY = b"User-agent: *\nDisallow: /private\n"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    headers = {"User-Agent": "Fetchbot/1.0 (+https://example.org/bot)"}
    async with open_lab(tmp_path, robots=True, request_headers=headers) as opened:
        yield opened


def end(outcome: Outcome) -> tuple[Verdict, str]:
    return outcome.verdict, outcome.error_code


def file_and_robots(origin: Origin, robots: Handler, path: str = "/private/x") -> str:
    origin.on("/robots.txt", robots)
    return origin.on(path, respond(200, b"file"))


async def test_a_disallowed_url_is_not_fetched(lab: Lab, origin: Origin) -> None:
    url = file_and_robots(origin, respond(200, DENY))
    outcome = await lab.fetch(url, request_headers={"Authorization": "secret"})
    assert end(outcome) == REFUSED
    assert outcome.error == "refused by the robots.txt of 127.0.0.1"
    assert origin.asked("/private/x") == []
    [asked] = origin.asked("/robots.txt")
    assert "authorization" not in asked.headers
    assert asked.headers["user-agent"].startswith("Fetchbot/1.0")
    assert end(await lab.fetch(origin.on("/y", respond(200, b"file")))) == OK
    assert len(origin.asked("/robots.txt")) == 1


async def test_it_is_off_by_default(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(tmp_path) as lab:
        assert end(await lab.fetch(file_and_robots(origin, respond(200, DENY)))) == OK
    assert origin.asked("/robots.txt") == []


@pytest.mark.parametrize("status", [204, 301, 400, 401, 403, 404, 410])
async def test_a_missing_robots_txt_allows_all(lab: Lab, origin: Origin, status: int) -> None:
    assert end(await lab.fetch(file_and_robots(origin, respond(status, DENY)))) == OK


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_origin_that_cannot_answer_is_asked_later(lab: Lab, origin: Origin, status: int) -> None:
    headers = [("Retry-After", "7")]
    url = file_and_robots(origin, respond(status, headers=headers))
    outcome = await lab.fetch(url)
    assert end(outcome) == LATER
    assert outcome.cooldown is not None
    assert (outcome.cooldown.seconds, outcome.cooldown.asked) == (7, True)
    assert end(await lab.fetch(url, throttled=10)) == (Verdict.RETRY, ErrorCode.ROBOTS)
    assert end(await lab.fetch(url, throttled=10, attempts=2)) == REFUSED
    assert len(origin.asked("/robots.txt")) == 1, "it is remembered for a while"
    assert lab.fetcher.tools.robots is not None
    [entry] = lab.fetcher.tools.robots.entries.values()
    assert entry.until - trio.current_time() <= 30
    assert origin.asked("/private/x") == []


async def test_an_unreachable_origin_fails_as_a_download_does(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(file_and_robots(origin, raw(b"", then="rst")))
    assert end(outcome) == (Verdict.RETRY, ErrorCode.CONNECT)
    assert origin.asked("/private/x") == []
    assert end(await lab.fetch("http://10.1.2.3/x")) == (Verdict.FAILED, ErrorCode.EGRESS)


async def test_each_hop_is_asked(lab: Lab, origin: Origin) -> None:
    file_and_robots(origin, respond(200, DENY))
    away = origin.on("/away", respond(302, headers=[("Location", "/private/x")]))
    assert end(await lab.fetch(away)) == REFUSED


@pytest.mark.row("H29")
async def test_each_proxy_has_its_own_robots_txt(lab: Lab, origin: Origin) -> None:
    url = file_and_robots(origin, respond(200, DENY))
    async with open_proxy("http") as proxy:
        assert end(await lab.fetch(url, proxy=proxy.url())) == REFUSED
        origin.on("/robots.txt", respond(200, b""))
        assert end(await lab.fetch(url)) == OK
        assert end(await lab.fetch(url, proxy=proxy.url())) == REFUSED
    assert len(origin.asked("/robots.txt")) == 2


async def test_a_redirect_leaves_robots_txt_its_time(lab: Lab, origin: Origin) -> None:
    left_s: list[float] = []

    class Timed(Robots):
        async def check(
            self, url: Url, *, aggregation: str, proxy: Url | None, is_own_host: bool = True
        ) -> None:
            left_s.append(trio.current_effective_deadline() - trio.current_time())
            await super().check(url, aggregation=aggregation, proxy=proxy, is_own_host=is_own_host)

    timed = Timed(transport=lab.fetcher.tools.transport, headers={}, on_crawl_delay=None)
    lab = replace(lab, fetcher=Fetcher(replace(lab.fetcher.tools, robots=timed), random.Random(7)))
    file_and_robots(origin, respond(200, b""))
    away = origin.on("/away", respond(302, headers=[("Location", "/private/x")]))
    assert end(await lab.fetch(away, download_timeout=1000)) == OK
    assert len(left_s) == 2
    assert min(left_s) > 900


async def test_attempts_share_one_request(lab: Lab, origin: Origin) -> None:
    answer = trio.Event()
    url = file_and_robots(origin, gate(answer, respond(200, DENY)), "/x")
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def leader() -> None:
            with first:
                await lab.fetch(url)

        async def follower() -> None:
            assert end(await lab.fetch(url)) == OK

        nursery.start_soon(leader)
        await origin.seen("/robots.txt")
        for _ in range(5):
            nursery.start_soon(follower)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()  # another one asks then
        await origin.seen("/robots.txt", 2)
        answer.set()
    assert len(origin.asked("/robots.txt")) == 2
    assert len(origin.asked("/x")) == 5


@pytest.mark.parametrize(
    ("value", "age_s"),
    [("max-age=1", 60), ("public, MAX-AGE=600", 600), ("max-age=999999", 86400), ("", 86400)],
)
async def test_its_age_follows_cache_control_within_bounds(
    lab: Lab, origin: Origin, value: str, age_s: int
) -> None:
    await lab.fetch(file_and_robots(origin, respond(200, DENY, [("Cache-Control", value)]), "/x"))
    assert lab.fetcher.tools.robots is not None
    [entry] = lab.fetcher.tools.robots.entries.values()
    assert age_s - 30 < entry.until - trio.current_time() <= age_s


@pytest.mark.row("H34")
async def test_the_cache_is_bounded(lab: Lab, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("downloader.fetch.robots.MAX_CACHE_BYTES", 1000)
    robots = lab.fetcher.tools.robots
    assert robots is not None
    rules = b"User-agent: *\nDisallow: /" + b"a" * 200
    url = file_and_robots(origin, respond(200, rules), "/x")
    await lab.fetch(url)
    await lab.fetch(url.replace("127.0.0.1", "localhost"))
    assert [key[0].host for key in robots.entries] == ["localhost"]


async def test_a_crawl_delay_reported_before_any_file_is_fetched(lab: Lab, origin: Origin) -> None:
    told: list[tuple[str, float, float]] = []

    async def on_crawl_delay(host: str, seconds: float, age_s: float) -> None:
        told.append((host, seconds, age_s))

    robots = lab.fetcher.tools.robots
    assert robots is not None
    robots.on_crawl_delay = on_crawl_delay
    text = b"User-agent: *\nCrawl-delay: 2.5\nDisallow: /private\n"
    url = file_and_robots(origin, respond(200, text), "/x")
    outcome = await lab.fetch(url)
    assert (*end(outcome), outcome.retry_after_s) == (Verdict.RELEASE, ErrorCode.ROBOTS, 0.0)
    assert [(host, seconds) for host, seconds, _ in told] == [("127.0.0.1", 2.5)]
    assert told[0][2] == pytest.approx(86400, abs=30)
    assert origin.asked("/x") == []
    assert end(await lab.fetch(url)) == OK, "the store has let it start now"
    assert len(told) == 1


@pytest.mark.row("H29")
async def test_neither_a_proxy_nor_a_redirect_sets_the_delay_of_a_host(lab: Lab, origin: Origin) -> None:
    told: list[str] = []

    async def on_crawl_delay(host: str, seconds: float, age_s: float) -> None:
        told.append(host)

    robots = lab.fetcher.tools.robots
    assert robots is not None
    robots.on_crawl_delay = on_crawl_delay
    url = file_and_robots(origin, respond(200, b"User-agent: *\nCrawl-delay: 3600"), "/x")
    async with open_proxy("http") as proxy, open_origin() as other:
        assert end(await lab.fetch(url, proxy=proxy.url())) == OK
        other.on("/robots.txt", respond(404))
        away = other.on("/away", respond(302, headers=[("Location", url)]))
        assert end(await lab.fetch(away)) == OK
    assert told == []
    assert end(await lab.fetch(url)) == (Verdict.RELEASE, ErrorCode.ROBOTS), "its host asks for it"
    assert told == ["127.0.0.1"]


async def test_a_store_that_does_not_answer_ends_no_process(lab: Lab, origin: Origin) -> None:
    async def on_crawl_delay(host: str, seconds: float, age_s: float) -> None:
        raise StoreUnavailable("gone")

    robots = lab.fetcher.tools.robots
    assert robots is not None
    robots.on_crawl_delay = on_crawl_delay
    url = file_and_robots(origin, respond(200, b"User-agent: *\nCrawl-delay: 1"), "/x")
    assert end(await lab.fetch(url)) == (Verdict.RELEASE, ErrorCode.STORAGE)
    assert origin.asked("/x") == []


# Hostile ones.


@pytest.mark.parametrize(("count", "in_loop"), [(100, True), (300, False)])
async def test_many_rules_do_not_hold_up_the_event_loop(
    lab: Lab, origin: Origin, monkeypatch: pytest.MonkeyPatch, count: int, *, in_loop: bool
) -> None:
    compared_in: list[bool] = []

    def allow(_rules: Rules, _url: Url) -> bool:
        compared_in.append(threading.current_thread() is threading.main_thread())
        return True

    monkeypatch.setattr(Rules, "allow", allow)
    text = b"User-agent: *\n" + b"".join(b"Disallow: /%d\n" % number for number in range(count))
    assert end(await lab.fetch(file_and_robots(origin, respond(200, text), "/x"))) == OK
    assert compared_in == [in_loop]


@pytest.mark.row("H12")
async def test_an_endless_one_is_cut(lab: Lab, origin: Origin) -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n" + DENY + b"#"
    url = file_and_robots(origin, repeat(head, b"x" * 65536))
    tracemalloc.start()
    assert end(await lab.fetch(url)) == REFUSED
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 1024 * 1024


@pytest.mark.row("H12")
async def test_a_slow_robots_txt_is_given_up(lab: Lab, origin: Origin) -> None:
    async def drip(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await exchange.send(b"#")
            await trio.sleep(0.01)

    robots = lab.fetcher.tools.robots
    assert robots is not None
    robots.within_s = 0.3
    url = file_and_robots(origin, drip)
    with trio.fail_after(20):
        assert end(await lab.fetch(url)) == LATER
    assert origin.asked("/private/x") == []


@pytest.mark.row("H5")
@pytest.mark.parametrize(
    ("target", "requests"),
    [
        ("/robots.txt", 6),
        ("http://169.254.169.254/", 1),
        ("http://10.0.0.1/", 1),
        ("file:///etc/passwd", 1),
        ("//[::1", 1),
    ],
)
async def test_redirects_lead_nowhere(lab: Lab, origin: Origin, target: str, requests: int) -> None:
    away = respond(302, headers=[("Location", target)])
    assert end(await lab.fetch(file_and_robots(origin, away))) == OK
    assert len(origin.asked("/robots.txt")) == requests


@pytest.mark.row("H13")
@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(range(256)) * 100,
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nno gzip",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
    ],
)
async def test_garbage_is_no_rule(lab: Lab, origin: Origin, data: bytes) -> None:
    assert end(await lab.fetch(file_and_robots(origin, raw(data)))) == OK
