"""A store whose server has a clock that a test sets; everything else is real."""

from __future__ import annotations

from dataclasses import dataclass, replace

from downloader.store import Library, load_library
from servers.raw_store import RawStore

TIME = "local time = redis.call('TIME')"


def clocked_library(*, cluster: bool = False) -> Library:
    """The library with a clock that a test sets; one for a Cluster believes that each message is heard."""
    ours = "local clock = tonumber(redis.call('GET', keys[1] .. 'clock') or '0')\n"
    ours += "local time = {math.floor(clock / 1000), clock % 1000 * 1000}"
    library = load_library(cluster=cluster)
    assert library.body.count(TIME) == 1
    return replace(library, body=library.body.replace(TIME, ours))


@dataclass
class StoreClock:
    """The clock of a store that was opened with `clocked_library`."""

    raw: RawStore
    now_ms: int = 1_000_000

    def __post_init__(self) -> None:
        self._set()

    def move(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        self._set()

    def _set(self) -> None:
        self.raw.command("SET", f"{self.raw.keys.base(0)}clock", self.now_ms)
