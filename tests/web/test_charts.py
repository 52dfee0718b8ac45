"""The charts on the page: what the fleet has counted lately, drawn and in words."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from playwright.sync_api import expect

from downloader.config import ApiSettings
from downloader.store import POINT_MS, JobStore, Submission
from downloader.wire import BacklogPoint
from servers.browser import Browse, Seen, ServePage, meanwhile
from servers.jobs import spec_for

pytestmark = pytest.mark.slow

INKED = """
(canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((byte) => byte)
"""

CODES = {"dns": 9, "http_status": 8, "timeout": 7, "tls": 6, "connect": 5, "truncated": 4}


async def test_counters_are_drawn_and_listed(browse: Browse, page_url: str, store: JobStore) -> None:

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        expect(page.locator("#charts")).to_be_visible()
        expect(page.locator("#failures-none")).to_be_visible()
        counts = {f"downloads_failed|{code}": count for code, count in CODES.items()}
        counts |= {"downloads_succeeded": 500, "bytes": 2**30, "download_seconds_bucket|0.1": 500}
        meanwhile(partial(store.report, "i", "processor", {}, 60, counts))

        legend = page.locator("#chart-failures .legend li")
        expect(legend).to_have_text(
            ["name not found9", "refused by status8", "timed out7", "TLS failed6", "other reasons9"]
        )
        expect(page.locator("#failures-none")).to_be_hidden()
        expect(page.locator("#chart-latency .legend li").nth(1)).to_have_text("download95 ms, median 50 ms")
        expect(page.locator("#chart-jobs").get_by_role("img")).to_have_attribute(
            "aria-label", "succeeded 0/s, failed 0/s, called back 0/s"
        )
        for chart in ("jobs", "bytes", "latency", "failures"):
            assert page.locator(f"#chart-{chart} canvas").evaluate(INKED)
        page.emulate_media(color_scheme="dark")
        expect(legend).to_have_count(5)
        seen.check()

    await browse(page_url, look)


async def test_the_backlog_of_a_day_is_drawn(browse: Browse, serve_page: ServePage, store: JobStore) -> None:
    await store.submit([Submission(spec=spec_for(store, "a")) for _ in range(3)])
    await store.report("i", "processor", {}, 60, {"downloads_succeeded": 600_000})
    for number in (2, 1):
        at = datetime.now(UTC) - number * timedelta(milliseconds=POINT_MS)
        await store.note_backlog(BacklogPoint(at=at, downloads=50, callbacks=7, succeeded=0, failed=0))

    def look(seen: Seen) -> None:
        seen.open()
        backlog = seen.page.locator("#chart-backlog").get_by_role("img")
        expect(backlog).to_have_attribute("aria-label", "downloads 3, callbacks 0")
        ended = seen.page.locator("#chart-ended").get_by_role("img")
        expect(ended).to_have_attribute("aria-label", re.compile(r"succeeded [12](\.\d+)?K/s, failed 0/s"))
        for chart in ("backlog", "ended"):
            assert seen.page.locator(f"#chart-{chart} canvas").evaluate(INKED)
        seen.check()

    await browse(await serve_page(ApiSettings()), look)


async def test_a_day_that_has_just_begun_has_a_point(
    browse: Browse, serve_page: ServePage, store: JobStore
) -> None:
    await store.submit([Submission(spec=spec_for(store, "a")) for _ in range(3)])

    def look(seen: Seen) -> None:
        seen.open()
        backlog = seen.page.locator("#chart-backlog").get_by_role("img")
        expect(backlog).to_have_attribute("aria-label", "downloads 3, callbacks 0")
        ended = seen.page.locator("#chart-ended").get_by_role("img")
        expect(ended).to_have_attribute("aria-label", "succeeded \N{EN DASH}, failed \N{EN DASH}")
        for chart in ("backlog", "ended"):
            assert seen.page.locator(f"#chart-{chart} canvas").evaluate(INKED)
        seen.check()

    await browse(await serve_page(ApiSettings()), look)
