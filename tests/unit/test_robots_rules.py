"""The rules of a robots.txt for one crawler (RFC 9309)."""

from __future__ import annotations

import tracemalloc

import pytest

from downloader.fetch.robots import Rules, product_token
from downloader.net import Url


def allows(text: str, target: str = "/x", user_agent: str = "Fetchbot/1.0") -> bool:
    return Rules.parse(text.encode(), product_token(user_agent)).allow(Url.parse(f"http://h{target}"))


@pytest.mark.parametrize(
    ("text", "target", "allowed"),
    [
        ("", "/x", True),
        ("User-agent: *\nDisallow: /", "/x", False),
        ("User-agent: *\nDisallow: /\nAllow: /x", "/x", True),
        ("user-agent: FETCHBOT\ndisallow: /x", "/x", False),
        ("User-agent: fetchbot/2.0\nDisallow: /x", "/x", False),
        ("User-agent: other\nDisallow: /", "/x", True),
        ("User-agent: fetch\nDisallow: /", "/x", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: fetchbot\nDisallow: /y", "/x", True),
        (
            "User-agent: fetchbot\nDisallow: /a\nUser-agent: *\nAllow: /\nUser-agent: Fetchbot\nDisallow: /x",
            "/x",
            False,
        ),
        ("User-agent: other\nUser-agent: fetchbot\nDisallow: /x # why", "/x", False),
        ("User-agent: fetchbot\nUser-agent: other\nDisallow: /x", "/x", False),
        ("User-agent: fetchbot\nSitemap: http://h/s\nDisallow: /x", "/x", False),
        ("\ufeffUser-agent: *\r\nDisallow: /x\r\n", "/x", False),
        ("User-agent: *\nDisallow: /*.gif$", "/a/b.gif", False),
        ("User-agent: *\nDisallow: /*.gif$", "/a/b.gif?c", True),
        ("User-agent: *\nDisallow: /*?q=", "/find?q=1", False),
        ("User-agent: *\nDisallow: /%7Euser", "/~user/x", False),
        ("User-agent: *\nDisallow: /", "/robots.txt", True),
        ("Disallow: /", "/x", True),
        ("<html>Disallow: /</html>", "/x", True),
        ("\x00\xff binary \x01\n: : :\nUser-agent\n*", "/x", True),
    ],
)
def test_rules(text: str, target: str, *, allowed: bool) -> None:
    assert allows(text, target) is allowed


def test_the_product_token() -> None:
    assert product_token("Fetch_Bot-x/1.0 (a)") == "fetch_bot-x"
    assert product_token("") == product_token("1.0") == ""
    assert not allows("User-agent: *\nDisallow: /x", user_agent="")


@pytest.mark.parametrize(("written", "delay_s"), [("2.5", 2.5), ("3600", 3600), ("86400", 3600), ("soon", 0)])
def test_a_crawl_delay_is_an_hour_at_most(written: str, delay_s: float) -> None:
    text = f"User-agent: *\nCrawl-delay: {written}\n"
    assert Rules.parse(text.encode(), "fetchbot").crawl_delay_s == delay_s


def test_the_rules_of_thousands_of_crawlers_take_no_memory() -> None:
    agents = "".join(f"User-agent: a{'b' * (number % 60)}\n" for number in range(15_000))
    text = f"{agents}User-agent: fetchbot\n" + "".join(f"Disallow: /{number}\n" for number in range(15_000))
    tracemalloc.start()
    rules = Rules.parse(text.encode(), "fetchbot")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 1024 * 1024
    assert not rules.allow(Url.parse("http://h/77"))


@pytest.mark.row("H34")
@pytest.mark.parametrize("rule", ["allow:/{:03}", "Disallow: /" + "a" * 200 + "{}"])
def test_the_size_of_rules_is_about_what_they_take(rule: str) -> None:
    data = ("User-agent: *\n" + "\n".join(rule.format(number) for number in range(40_000)))[: 500 * 1024]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    rules = Rules.parse(data.encode(), "fetchbot")
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rules.count > 1000
    assert rules.size / 2 < after - before <= rules.size


def test_too_many_wildcards_refuse_all() -> None:
    text = "User-agent: *\n" + "".join(f"Disallow: /*{number}\n" for number in range(20_000))
    assert not allows(text, "/" + "x" * 8000)
