"""The charts on the page: what the fleet has counted lately, drawn and in words."""

from __future__ import annotations

from functools import partial

import pytest
from playwright.sync_api import expect

from downloader.store import JobStore
from servers.browser import Browse, Seen, meanwhile

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
        expect(page.locator("#chart-latency .legend li").nth(1)).to_have_text("download50 ms, 95% 95 ms")
        expect(page.locator("#chart-jobs").get_by_role("img")).to_have_attribute(
            "aria-label", "succeeded 0/s, failed 0/s, called back 0/s"
        )
        for chart in ("jobs", "bytes", "latency", "failures"):
            assert page.locator(f"#chart-{chart} canvas").evaluate(INKED)
        page.emulate_media(color_scheme="dark")
        expect(legend).to_have_count(5)
        seen.check()

    await browse(page_url, look)
