"""What a robots.txt says to one crawler (RFC 9309). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from protego import Protego

from downloader.net import Url

MAX_WILD_RULES = 1000
"""Most rules with a wildcard. Each costs up to 0.2 ms for a long URL; 500 KiB of them would take seconds."""

LARGE_RULES = 200
"""With more rules a URL is compared with them in a thread."""

RULE_BYTES = 400
"""Memory of a parsed rule, beside its text; measured: 300 for short rules."""

MAX_CRAWL_DELAY_S = 3600.0
"""As long as the longest cooldown."""

_ANY = "*"
_TOKEN = re.compile(r"[A-Za-z_-]+")
"""RFC 9309, 2.2.1: `product-token`."""


def product_token(user_agent: str) -> str:
    """The first product of a `User-Agent` without its version, lower case; empty if it begins with none."""
    found = _TOKEN.match(user_agent.strip())
    return found[0].lower() if found else ""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for one crawler."""

    parsed: Protego | None = None
    """`None`: everything is allowed."""
    count: int = 0
    too_many: bool = False
    """There are more than `MAX_WILD_RULES`; nothing is allowed then."""
    crawl_delay_s: float = 0.0
    size: int = 0
    """About the bytes of memory that they take."""

    @classmethod
    def parse(cls, data: bytes, token: str) -> Self:
        """The rules for the crawler with this product token. Lines that are no rules are ignored.

        Only the lines of its own groups are kept: 500 KiB can name 15,000 crawlers before 20,000 rules, and
        a parser that keeps the rules of each then runs out of memory.
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
    """The rules of the groups that name this token, or of the groups for all; each line once."""
    found: dict[str, dict[str, None]] = {}
    named: set[str] = set()
    naming = False
    for line in text.splitlines():
        name, _, value = line.partition("#")[0].partition(":")
        field, value = name.strip().lower(), value.strip()
        if field == "user-agent":
            named = named if naming else set()
            naming = True
            agent = _ANY if value == _ANY else product_token(value)
            if agent and agent in (_ANY, token):
                named.add(agent)
                found.setdefault(agent, {})
        elif field in ("allow", "disallow", "crawl-delay"):
            naming = False
            for agent in named:
                found[agent][f"{field}: {value}"] = None
    return [*found.get(token, found.get(_ANY, {}))]
