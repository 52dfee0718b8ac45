"""When the engine of `downloader fetch` begins which file, in virtual time and without a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from downloader.model import Cooldown, ErrorCode, Lease, Outcome, Verdict
from downloader.oneshot import FetchResult, Run

OK = Outcome(verdict=Verdict.SUCCEEDED)
SECONDS = 1.0
"""How long each attempt takes."""


def throttled(seconds: float, *, asked: bool = True) -> Outcome:
    return Outcome(
        verdict=Verdict.THROTTLED,
        error="429",
        error_code=ErrorCode.HTTP_STATUS,
        retry_after_s=seconds,
        cooldown=Cooldown(seconds=seconds, asked=asked),
    )


def retry(seconds: float) -> Outcome:
    return Outcome(verdict=Verdict.RETRY, error="503", retry_after_s=seconds)


class Scripted:
    """A fetcher whose attempts at a URL end as its script says, then well."""

    def __init__(self, scripts: dict[str, Sequence[Outcome]]) -> None:
        self.begun: list[tuple[float, str]] = []
        self.leases: list[Lease] = []
        self.peak: Counter[str] = Counter()
        self._scripts: dict[str, Iterator[Outcome]] = {url: iter(script) for url, script in scripts.items()}
        self._running: Counter[str] = Counter()
        self._epoch = trio.current_time()

    async def attempt(self, lease: Lease, **_: object) -> Outcome:
        url = lease.spec.url
        self.begun.append((round(trio.current_time() - self._epoch, 3), url))
        self.leases.append(lease)
        for name in (lease.queue, ""):
            self._running[name] += 1
            self.peak[name] = max(self.peak[name], self._running[name])
        await trio.sleep(SECONDS)
        for name in (lease.queue, ""):
            self._running[name] -= 1
        return next(self._scripts.get(url, iter(())), OK)

    def times(self, url: str) -> list[float]:
        """When the attempts at a URL began."""
        return [at for at, begun in self.begun if begun == url]


async def run(
    fetcher: Scripted,
    urls: Sequence[str],
    *,
    limit: int = 4,
    concurrency: int = 100,
    skip: Callable[[str], bool] = lambda _: False,
) -> dict[str, FetchResult]:
    results: list[FetchResult] = []
    engine = Run(
        fetcher=fetcher,
        concurrency=concurrency,
        path_of=Path,
        limit=limit,
        mime_type="",
        on_result=results.append,
        on_progress=lambda *_: None,
    )
    await engine.fetch(urls, skip)
    assert len(results) == len({result.url for result in results})
    return {result.url: result for result in results}


async def test_each_host_has_its_limit_and_uses_it(autojump_clock: MockClock) -> None:
    fetcher = Scripted({})
    urls = [f"http://{host}/{number}" for host in ("a", "b") for number in range(300)]
    results = await run(fetcher, urls, limit=3)
    assert len(results) == 600
    assert fetcher.peak == {"a": 3, "b": 3, "": 6}
    assert max(at for at, _ in fetcher.begun) == 99, "300 files, three at once, a second each"


async def test_all_hosts_together_have_a_limit(autojump_clock: MockClock) -> None:
    fetcher = Scripted({})
    await run(fetcher, [f"http://{host}/" for host in range(1, 21)], concurrency=5)
    assert fetcher.peak[""] == 5


async def test_what_is_skipped_is_not_fetched(autojump_clock: MockClock) -> None:
    fetcher = Scripted({})
    results = await run(fetcher, ["http://a/1", "http://a/2"], skip=lambda url: url.endswith("1"))
    assert list(results) == ["http://a/2"]
    assert results["http://a/2"].index == 1


async def test_a_retry_waits_without_a_place_at_its_host(autojump_clock: MockClock) -> None:
    fetcher = Scripted({"http://a/1": [retry(10), retry(20)]})
    results = await run(fetcher, ["http://a/1", "http://a/2", "http://a/3"], limit=1)
    assert fetcher.begun == [
        (0, "http://a/1"),
        (1, "http://a/2"),
        (2, "http://a/3"),
        (11, "http://a/1"),
        (32, "http://a/1"),
    ]
    assert (results["http://a/1"].ok, results["http://a/1"].attempts) == (True, 3)
    assert [lease.attempts for lease in fetcher.leases if lease.spec.url == "http://a/1"] == [0, 1, 2]


async def test_a_cooldown_holds_its_host_only(autojump_clock: MockClock) -> None:
    fetcher = Scripted({"http://a/1": [throttled(60)]})
    await run(fetcher, ["http://a/1", "http://a/2", "http://b/1", "http://b/2"], limit=1)
    assert fetcher.times("http://a/1") == [0, 61]
    assert fetcher.times("http://a/2") == [62]
    assert fetcher.times("http://b/2") == [1]
    assert [lease.throttled for lease in fetcher.leases if lease.spec.url == "http://a/1"] == [0, 1]


async def test_the_longest_cooldown_counts(autojump_clock: MockClock) -> None:
    fetcher = Scripted({"http://a/1": [throttled(60)], "http://a/2": [throttled(5)]})
    await run(fetcher, ["http://a/1", "http://a/2"], limit=2)
    assert [fetcher.times(url) for url in ("http://a/1", "http://a/2")] == [[0, 61], [0, 61]]


async def test_cooldowns_that_follow_one_another_double(autojump_clock: MockClock) -> None:
    guessed = throttled(30, asked=False)
    fetcher = Scripted({"http://a/1": [guessed, guessed]})
    await run(fetcher, ["http://a/1"])
    assert fetcher.times("http://a/1") == [0, 31, 92]


async def test_responses_to_attempts_before_a_cooldown_are_part_of_it(autojump_clock: MockClock) -> None:
    guessed = throttled(30, asked=False)
    fetcher = Scripted({"http://a/1": [guessed], "http://a/2": [guessed]})
    await run(fetcher, ["http://a/1", "http://a/2"])
    assert fetcher.times("http://a/2") == [0, 31]


async def test_a_cooldown_long_after_another_does_not_double(autojump_clock: MockClock) -> None:
    guessed = throttled(30, asked=False)
    fetcher = Scripted({"http://a/1": [guessed, retry(100), guessed]})
    await run(fetcher, ["http://a/1"])
    assert fetcher.times("http://a/1") == [0, 31, 132, 163]


@pytest.mark.parametrize(
    "outcome", [throttled(1), Outcome(verdict=Verdict.RELEASE, error="our own disk: full", retry_after_s=5)]
)
async def test_attempts_that_do_not_count_do_not_go_on_forever(
    autojump_clock: MockClock, outcome: Outcome
) -> None:
    fetcher = Scripted({"http://a/1": [outcome] * 10})
    results = await run(fetcher, ["http://a/1"])
    assert len(fetcher.begun) == 3
    assert (results["http://a/1"].ok, results["http://a/1"].error) == (False, outcome.error)
