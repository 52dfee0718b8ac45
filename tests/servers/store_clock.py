"""A store whose server has a clock that a test sets; everything else is real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from downloader.store import Script, load_scripts
from servers.raw_store import RawStore


def clocked_scripts(*, cluster: bool = False) -> Mapping[str, Script]:
    """All scripts, with a clock that a test sets; those for a Cluster believe that each message is heard."""
    return {name: _with_clock(script) for name, script in load_scripts(cluster=cluster).items()}


def _with_clock(script: Script) -> Script:
    ours = "local clock = tonumber(redis.call('GET', base .. 'clock'))\n"
    ours += "local time = {math.floor(clock / 1000), clock % 1000 * 1000}"
    assert script.text.count("local time = redis.call('TIME')") == 1
    text = script.text.replace("local time = redis.call('TIME')", ours)
    return replace(script, text=text, sha="0" * 40)  # unknown to the server, which is sent the text then


@dataclass
class StoreClock:
    """The clock of a store that was opened with `clocked_scripts`."""

    raw: RawStore
    now_ms: int = 1_000_000

    def __post_init__(self) -> None:
        self._set()

    def move(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        self._set()

    def _set(self) -> None:
        self.raw.command("SET", f"{self.raw.keys.base(0)}clock", self.now_ms)
