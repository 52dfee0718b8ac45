"""Bodies in memory: how much they take together, and what happens to one that finds no room."""

from __future__ import annotations

import hashlib
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from downloader.fetch import FetchLimits
from downloader.fetch.sink import ALWAYS_BYTES
from downloader.model import Verdict
from downloader.net.connection import LENGTH_READ_BYTES
from downloader.storage import Body, StoredFile
from servers.lab import Lab, open_lab, small
from servers.origin import Origin, body_of, raw, respond
from servers.processes import origin_process

KIB = 1024
MIB = 1024 * 1024


def limits(memory_bytes: int) -> FetchLimits:
    return replace(small(), memory_bytes=memory_bytes)


class Holding:
    """A storage that keeps nothing, and returns from `put` when it is told to."""

    def __init__(self, *, open: bool = True) -> None:  # noqa: A002  # what it is
        self.in_memory: list[bool] = []
        """For each body, in the order in which they came."""
        self._came = trio.Semaphore(0)
        self.opened = trio.Event()
        if open:
            self.opened.set()

    async def put(self, key: str, body: Body) -> None:  # noqa: ARG002  # the protocol's
        self.in_memory.append(body.data is not None)
        self._came.release()
        await self.opened.wait()

    async def delete(self, key: str) -> None:
        """There is none."""

    async def local(self, key: str) -> StoredFile | None:  # noqa: ARG002  # the protocol's
        return None

    def url(self, key: str) -> str:
        return f"https://files.example.org/{key}"

    async def next(self) -> None:
        """Wait until one more body has come."""
        with trio.fail_after(60):
            await self._came.acquire()


@asynccontextmanager
async def holding(
    tmp_path: Path, urls: Sequence[tuple[str, str]], *, memory_bytes: int, together: bool = False
) -> AsyncIterator[tuple[Lab, Holding]]:
    """Downloads, by aggregation and URL, which have got their files and not stored them yet.

    They come one by one, or `together`.
    """
    storage = Holding(open=False)
    async with (
        open_lab(tmp_path, storage=storage, limits=limits(memory_bytes)) as lab,
        trio.open_nursery() as nursery,
    ):
        for aggregation, url in urls:
            nursery.start_soon(_fetch, lab, aggregation, url)
            if not together:
                await storage.next()
        for _ in urls if together else ():
            await storage.next()
        yield lab, storage
        storage.opened.set()


async def _fetch(lab: Lab, aggregation: str, url: str) -> None:
    assert (await lab.fetch(url, aggregation=aggregation)).verdict is Verdict.SUCCEEDED


@pytest.mark.parametrize("memory_bytes", [0, 100 * KIB, 10 * MIB])
@pytest.mark.parametrize("size", [0, 10, 300 * KIB, MIB, MIB + 1, 5 * MIB])
async def test_a_body_is_whole_wherever_it_was(
    tmp_path: Path, origin: Origin, size: int, memory_bytes: int
) -> None:
    async with open_lab(tmp_path, limits=limits(memory_bytes)) as lab:
        outcome = await lab.fetch(origin.url(f"/bytes/{size}"))
        assert outcome.verdict is Verdict.SUCCEEDED
        assert outcome.file.sha256 == hashlib.sha256(body_of(size)).hexdigest()
        assert lab.stored() == body_of(size)


async def test_a_small_body_always_stays_in_memory(tmp_path: Path, origin: Origin) -> None:
    urls = [("a", origin.url(f"/bytes/{size}")) for size in (ALWAYS_BYTES - 1, 4 * ALWAYS_BYTES)]
    async with holding(tmp_path, urls, memory_bytes=0) as (_, storage):
        assert storage.in_memory == [True, False]


async def test_up_to_a_mebibyte_stays_in_memory(tmp_path: Path, origin: Origin) -> None:
    urls = [("a", origin.url(f"/bytes/{size}")) for size in (MIB, MIB + 1)]
    async with holding(tmp_path, urls, memory_bytes=10 * MIB) as (lab, storage):
        assert storage.in_memory == [True, False]
        assert len(lab.spooled()) == 1


async def test_a_written_body_takes_no_memory(tmp_path: Path, origin: Origin) -> None:
    urls = [("a", origin.url(f"/bytes/{size}")) for size in (9 * MIB, MIB)]
    async with holding(tmp_path, urls, memory_bytes=3 * MIB) as (_, storage):
        assert storage.in_memory == [False, True]


async def test_no_aggregation_takes_the_memory_of_others(tmp_path: Path, origin: Origin) -> None:
    url = origin.url(f"/bytes/{600 * KIB}")
    urls = [(group, url) for group in ("a", "a", "a", "b", "b")]
    async with holding(tmp_path, urls, memory_bytes=3 * MIB) as (_, storage):
        assert storage.in_memory == [True, True, False, True, False]


async def test_a_body_of_known_length_waits_for_room(tmp_path: Path, origin: Origin) -> None:
    storage = Holding(open=False)
    patient = replace(limits(2 * MIB), room_s=60.0)
    async with (
        open_lab(tmp_path, storage=storage, limits=patient) as lab,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_fetch, lab, "a", origin.url("/bytes/900000"))
        await storage.next()
        nursery.start_soon(_fetch, lab, "a", origin.url("/bytes/900001"))
        await origin.seen("/bytes/900001")
        nursery.start_soon(_fetch, lab, "b", origin.url("/bytes/200000"))  # is not held up by the one before
        await storage.next()
        storage.opened.set()
    assert storage.in_memory == [True, True, True]


async def test_memory_is_free_again_however_a_download_ends(tmp_path: Path, origin: Origin) -> None:
    cut = origin.on("/cut", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b"x" * 800_000))
    html = origin.on("/html", respond(200, b"<!doctype html>" * 50_000))
    whole = origin.url(f"/bytes/{900_000}")
    large = origin.url(f"/bytes/{5 * MIB}")
    storage = Holding()
    async with open_lab(tmp_path, storage=storage, limits=limits(2 * MIB)) as lab:
        for _ in range(3):
            assert (await lab.fetch(cut)).verdict is Verdict.RETRY
            assert (await lab.fetch(html, mime_type="image/*")).verdict is Verdict.FAILED
            await lab.fetch(large)
            with trio.move_on_after(0.05):
                await lab.fetch(origin.url("/drip/1000/1"))
        storage.in_memory.clear()
        await lab.fetch(whole)
        assert storage.in_memory == [True]


async def test_a_body_without_room_is_received_no_faster_than_it_is_written(
    tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, writing, received = threading.Event(), threading.Event(), 0
    writev = os.writev

    def slow(*args: Any) -> int:
        writing.set()
        assert written.wait(20)
        return writev(*args)

    def count(size: int, _: int | None) -> None:
        nonlocal received
        received = size

    monkeypatch.setattr(os, "writev", slow)
    async with open_lab(tmp_path, limits=limits(0)) as lab:
        fetch = lab.fetcher.attempt
        monkeypatch.setattr(lab.fetcher, "attempt", lambda job, **more: fetch(job, **more, on_progress=count))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fetch, lab, "a", origin.url(f"/bytes/{5 * MIB}"))
            assert await trio.to_thread.run_sync(writing.wait, 20)
            await trio.testing.wait_all_tasks_blocked(0.1)
            before = received
            written.set()
        assert 0 < before <= ALWAYS_BYTES + LENGTH_READ_BYTES
        assert received == 5 * MIB


@pytest.mark.slow
async def test_many_bodies_take_no_more_than_the_memory_for_them(tmp_path: Path) -> None:
    async with origin_process() as base:
        urls = [("a", f"{base}/bytes/900000")] * 40
        async with holding(tmp_path, urls[:1], memory_bytes=0):
            pass  # what is made once
        tracemalloc.start()
        try:
            async with holding(tmp_path / "many", urls, memory_bytes=8 * MIB, together=True):
                taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert MIB < taken < 9 * MIB
