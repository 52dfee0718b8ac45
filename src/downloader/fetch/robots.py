"""Check of a URL against the robots.txt of the origin (RFC 9309), if `processor.robots` is set."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import trio
from protego import Protego

from downloader.errors import StoreError
from downloader.fetch.errors import FetchError, Treatment, explain, own_fault
from downloader.fetch.headers import Field, HeaderMap
from downloader.fetch.response import REDIRECTS, failure, first_fields, redirect, success
from downloader.model import ErrorCode
from downloader.net import (
    BadResponse,
    EgressRefused,
    NetError,
    Origin,
    Route,
    Transport,
    Url,
)

MAX_BYTES = 500 * 1024
"""Most bytes of a robots.txt that are read: the smallest limit that RFC 9309, 2.5 permits. The remaining
bytes are ignored."""

FETCH_S = 30.0
"""Time limit of fetching a robots.txt, redirects included."""

MIN_AGE_S, MAX_AGE_S = 60.0, 24 * 3600.0
"""Bounds of the time for which a robots.txt is cached: `max-age` of `Cache-Control`, else the longest."""

FAILURE_AGE_S = 30.0
"""How long a failure to get a robots.txt is cached."""

MAX_ORIGINS = 2000
MAX_CACHE_BYTES = 32 * 1024 * 1024
"""Bounds of the cache: number of origins, and memory of all rules. The oldest entries are removed first."""

MAX_REDIRECTS = 5
"""RFC 9309, 2.3.1.2. After more redirects the file counts as missing."""

_MAX_AGE = re.compile(r"max-age=([0-9]{1,9})")
_TOO_MANY_REQUESTS = 429

MAX_WILD_RULES = 1000
"""Most rules with a wildcard. Each takes up to 0.2 ms for a long URL; 500 KiB of rules would take seconds."""

LARGE_RULES = 200
"""Number of rules above which a URL is checked in a thread."""

RULE_BYTES = 400
"""Memory of a parsed rule without the text; measured: 300 for short rules."""

MAX_CRAWL_DELAY_S = 3600.0
"""Longest crawl delay obeyed: as long as the longest cooldown."""

_ANY = "*"
_TOKEN = re.compile(r"[A-Za-z_-]+")
"""RFC 9309, 2.2.1: `product-token`."""


def product_token(user_agent: str) -> str:
    """The name of the first product in a `User-Agent`, in lower case; empty without a product."""
    match = _TOKEN.match(user_agent.strip())
    return match[0].lower() if match else ""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for one crawler."""

    parsed: Protego | None = None
    """`None`: everything is allowed."""
    count: int = 0
    too_many: bool = False
    """More than `MAX_WILD_RULES` rules have a wildcard: nothing is allowed."""
    crawl_delay_s: float = 0.0
    size: int = 0
    """Approximate bytes of memory."""

    @classmethod
    def parse(cls, data: bytes, token: str) -> Self:
        """The rules for the crawler with the given product token. Lines without a rule are ignored.

        The parser gets only the lines for that crawler. 500 KiB can name 15,000 crawlers before 20,000 rules,
        and a parser that keeps the rules of each crawler would run out of memory.
        """
        lines = _lines_for(data.decode("utf-8-sig", "replace"), token)
        if not lines:
            return cls()
        if sum("*" in line or "$" in line for line in lines) > MAX_WILD_RULES:
            return cls(too_many=True)
        text = "\n".join([f"User-agent: {_ANY}", *lines])
        parsed = Protego.parse(text)
        delay = min(parsed.crawl_delay(_ANY) or 0.0, MAX_CRAWL_DELAY_S)
        return cls(parsed, len(lines), crawl_delay_s=delay, size=len(text) + RULE_BYTES * len(lines))

    def allow(self, url: Url) -> bool:
        """Whether a URL of the origin may be fetched. Takes up to 0.2 s of CPU for `MAX_WILD_RULES`."""
        if self.too_many:
            return False
        return self.parsed is None or self.parsed.can_fetch(f"http://x{url.target.decode()}", _ANY)


def _lines_for(text: str, token: str) -> list[str]:
    """The rules of the groups that name the token, else of the groups for all crawlers."""
    lines: dict[str, dict[str, None]] = {}
    agents: set[str] = set()
    naming = False
    for line in text.splitlines():
        name, _, value = line.partition("#")[0].partition(":")
        field, value = name.strip().lower(), value.strip()
        if field == "user-agent":
            agents = agents if naming else set()
            naming = True
            agent = _ANY if value == _ANY else product_token(value)
            if agent and agent in (_ANY, token):
                agents.add(agent)
                lines.setdefault(agent, {})
        elif field in ("allow", "disallow", "crawl-delay"):
            naming = False
            for agent in agents:
                lines[agent][f"{field}: {value}"] = None
    return [*lines.get(token, lines.get(_ANY, {}))]


OnCrawlDelay = Callable[[str, float, float], Awaitable[None]]
"""`(host, seconds, age)`: the delay between requests to the host, in seconds, and how long the delay holds.
"""

_Key = tuple[Origin, str]
"""Origin and proxy."""


@dataclass(slots=True, kw_only=True)
class _Entry:
    """The cached rules of an origin, or the failure to fetch the robots.txt."""

    rules: Rules = field(default_factory=Rules)
    error: FetchError | None = None
    """Why the robots.txt could not be fetched."""
    until: float
    delay_reported: bool = False
    """Whether `on_crawl_delay` has been called."""


@dataclass(kw_only=True, eq=False)
class Robots:
    """Cache of the robots.txt of origins; for each origin one attempt at a time fetches the file."""

    transport: Transport
    headers: HeaderMap
    """The configured request headers; the rules for the product in `User-Agent` apply."""
    on_crawl_delay: OnCrawlDelay | None
    """`None`: crawl delays are ignored."""
    within_s: float = FETCH_S
    entries: dict[_Key, _Entry] = field(default_factory=dict)
    _cache_bytes: int = 0
    _pending: dict[_Key, trio.Event] = field(default_factory=dict)
    _parsing: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    """One file at a time is parsed: parsing takes up to 50 MB of memory."""

    async def check(self, url: Url, *, aggregation: str, proxy: Url | None, is_own_host: bool = True) -> None:
        """Return if the URL may be fetched, else raise.

        If the attempt that fetches the robots.txt is cancelled, the next waiting attempt fetches the file.

        Args:
            url: the URL of a job, or the target of a redirect.
            aggregation: the job's.
            proxy: the aggregation's own.
            is_own_host: whether the URL has the origin of the job's URL. Only then, and without a proxy, the
                crawl delay is reported. The delay applies to all jobs of the host, and one client must not
                set it by a proxy or a redirect.

        Raises:
            FetchError: the URL is not allowed; the origin did not respond; or a crawl delay was reported, and
                the job has to be handed back, to start when the delay permits.
        """
        key = (url.origin, "" if proxy is None else proxy.text)
        waited = False
        while (entry := self._current(key)) is None:
            waited = True
            if (pending := self._pending.get(key)) is not None:
                await pending.wait()
                continue
            self._pending[key] = trio.Event()
            try:
                self._keep(key, await self._fetch(url, aggregation, proxy))
            finally:
                self._pending.pop(key).set()
        if entry.error is not None:
            error = entry.error
            raise FetchError(str(error), error.code, error.treatment, retry_after_s=error.retry_after_s)
        rules = entry.rules
        if rules.count > LARGE_RULES:
            allowed = await trio.to_thread.run_sync(rules.allow, url)
        else:
            allowed = rules.allow(url)
        if not allowed:
            why = " (it has too many rules)" if rules.too_many else ""
            raise FetchError(f"refused by the robots.txt of {url.origin.host}{why}", ErrorCode.ROBOTS)
        if rules.crawl_delay_s and self.on_crawl_delay is not None and is_own_host and proxy is None:
            await self._report_delay(self.on_crawl_delay, url, entry, waited=waited)

    async def _report_delay(self, report: OnCrawlDelay, url: Url, entry: _Entry, *, waited: bool) -> None:
        """Report the delay of a host once. Raise for all jobs that waited for the robots.txt.

        Those jobs were leased before the delay was known.
        """
        if entry.delay_reported and not waited:
            return
        if not entry.delay_reported:
            age_s = max(entry.until - trio.current_time(), MIN_AGE_S)
            try:
                await report(url.origin.host.removesuffix("."), entry.rules.crawl_delay_s, age_s)
            except StoreError as exc:
                raise own_fault("our own store does not answer") from exc
            entry.delay_reported = True
        raise FetchError(
            "its robots.txt asks for a delay", ErrorCode.ROBOTS, Treatment.RELEASE, retry_after_s=0.0
        )

    def _current(self, key: _Key) -> _Entry | None:
        entry = self.entries.get(key)
        return entry if entry is not None and trio.current_time() < entry.until else None

    def _keep(self, key: _Key, entry: _Entry) -> None:
        self._forget(key)
        self.entries[key] = entry
        self._cache_bytes += entry.rules.size
        while len(self.entries) > MAX_ORIGINS or (
            self._cache_bytes > MAX_CACHE_BYTES and len(self.entries) > 1
        ):
            self._forget(next(iter(self.entries)))

    def _forget(self, key: _Key) -> None:
        if (entry := self.entries.pop(key, None)) is not None:
            self._cache_bytes -= entry.rules.size

    async def _fetch(self, url: Url, aggregation: str, proxy: Url | None) -> _Entry:
        try:
            with trio.fail_after(self.within_s):
                data, fields = await self._read(url.join(b"/robots.txt"), aggregation, proxy)
        except trio.TooSlowError:
            error = _no_answer(f"not received within {self.within_s:g} s")
        except BadResponse:
            return await self._read_rules(b"", ())
        except NetError as exc:
            error = explain(exc)  # a request for the file would fail in the same way
        except FetchError as exc:
            error = exc
        else:
            return await self._read_rules(data, fields)
        return _Entry(error=error, until=trio.current_time() + FAILURE_AGE_S)

    async def _read_rules(self, data: bytes, fields: Sequence[Field]) -> _Entry:
        token = product_token(self.headers.get(b"user-agent", (b"", b""))[1].decode("latin-1"))
        rules = await trio.to_thread.run_sync(Rules.parse, data, token, limiter=self._parsing)
        return _Entry(rules=rules, until=trio.current_time() + _age_s(fields))

    async def _read(self, url: Url, aggregation: str, proxy: Url | None) -> tuple[bytes, Sequence[Field]]:
        """The first bytes of the file, empty if the file is missing, and the fields of the response.

        Raises:
            BadResponse: the response is malformed, so there are no rules.
            NetError: the origin cannot be reached.
            FetchError: the origin responds with 5xx or 429.
        """
        for hop in range(MAX_REDIRECTS + 1):
            route = Route(url=url, aggregation=aggregation, proxy=proxy)
            try:
                response = await self.transport.send("GET", route, [*self.headers.values()])
            except EgressRefused:
                if hop == 0:
                    raise
                return b"", ()  # the egress policy forbids the redirect's target
            fields, body, status = response.fields, response.body, response.status
            try:
                if status in range(200, 300):
                    read = success(status, url, body, fields, self.headers).read
                    data = bytearray()
                    while len(data) < MAX_BYTES and (piece := await read()) is not None:
                        data += piece
                    return bytes(data[:MAX_BYTES]), fields
            finally:
                await body.aclose()
            if status in REDIRECTS:
                try:
                    url = redirect(url, fields)
                except FetchError:
                    return b"", ()
            elif status >= 500 or status == _TOO_MANY_REQUESTS:  # noqa: PLR2004
                error = failure(status, fields, {})
                raise _no_answer(str(error), error.retry_after_s)
            else:
                return b"", fields
        return b"", ()


def _no_answer(why: str, retry_after_s: float | None = None) -> FetchError:
    text = f"no answer for robots.txt: {why}"
    return FetchError(text, ErrorCode.ROBOTS, Treatment.COOL_DOWN, retry_after_s=retry_after_s)


def _age_s(fields: Sequence[Field]) -> float:
    match = _MAX_AGE.search(first_fields(fields).get(b"cache-control", b"").decode("latin-1").lower())
    return min(max(float(match[1]), MIN_AGE_S), MAX_AGE_S) if match else MAX_AGE_S
