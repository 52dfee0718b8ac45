"""A store of its own for scenarios without the whole service: the Valkey that `downloader run` embeds.

`python -m bench.store FOLDER` prints its URL; it ends with its input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from downloader.store import asyncio_loop, embedded_valkey


async def run(folder: Path) -> None:
    async with asyncio_loop(), embedded_valkey(folder) as url:
        print(url, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(run, Path(sys.argv[1]))
