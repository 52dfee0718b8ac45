"""A store whose server has a clock that a test sets; everything else is real."""

from __future__ import annotations

from dataclasses import dataclass, replace

from downloader.store import StoreClient
from downloader.store.scripts import Script


def with_clock(script: Script) -> Script:
    """The script with a clock that a test sets."""
    ours = "local clock = tonumber(redis.call('GET', base .. 'clock'))\n"
    ours += "local time = {math.floor(clock / 1000), clock % 1000 * 1000}"
    assert script.text.count("local time = redis.call('TIME')") == 1
    text = script.text.replace("local time = redis.call('TIME')", ours)
    return replace(script, text=text, sha="0" * 40)  # unknown to the server, which is sent the text then


@dataclass
class StoreClock:
    """The clock of one store."""

    client: StoreClient
    now_ms: int = 1_000_000

    async def start(self) -> None:
        """Let all scripts read this clock from now on."""
        self.client._scripts = {name: with_clock(each) for name, each in self.client._scripts.items()}
        await self.set()

    async def set(self) -> None:
        await self.client.command("SET", f"{self.client.keys.base(0)}clock", self.now_ms)

    async def move(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        await self.set()
