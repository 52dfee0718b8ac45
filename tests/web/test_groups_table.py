"""Groups of jobs on the page: their progress, and the way to their jobs."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from downloader.model import CallbackOutcome, ErrorCode, Kind, Outcome, Verdict
from downloader.store import CallbackPlan, JobStore
from servers.browser import Browse, Seen
from servers.jobs import closed, downloaded, leased, spec_for, submitted

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)>"
BROKEN = Outcome(verdict=Verdict.FAILED, error="no", error_code=ErrorCode.CONNECT)
REFUSED = CallbackOutcome(verdict=Verdict.FAILED, error="410")


async def fill(store: JobStore) -> str:
    """An open, a sealed and a complete group, whose callback failed; returns the id of that callback."""
    job = {"callback_type": "", "callback_dst": ""}
    callback = spec_for(store, "night-16", url="")
    await store.set_group_callback(callback, CallbackPlan(queue="http group", limit=4))
    await submitted(store, group="night-16", **job)
    await store.settle("me", [downloaded(await leased(store), BROKEN, None, 60)])
    await store.seal_group("night-16")
    await store.settle("me", [closed(await leased(store, kind=Kind.CALLBACK), REFUSED, 60, 4)])
    for _ in range(4):
        await submitted(store, group="night-17", **job)
    await store.settle("me", [downloaded(await leased(store), BROKEN, None, 60)])
    await store.seal_group("night-17")
    await submitted(store, group=HOSTILE, **job)
    return callback.id


async def test_groups_are_shown_and_lead_to_their_jobs(
    browse: Browse, page_url: str, store: JobStore
) -> None:
    callback_id = await fill(store)

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        rows = page.locator("#groups tbody tr")
        expect(rows).to_have_count(3)
        expect(rows).to_contain_text(["night-17", HOSTILE, "night-16"])
        expect(rows.nth(0).locator("td")).to_contain_text(["sealed", "1 of 4", "1"])
        expect(rows.nth(1).locator("td")).to_contain_text(["open", "0 of 1", "0"])
        expect(rows.nth(2).locator("td")).to_contain_text(["complete", "1 of 1", "1"])
        failed = rows.nth(2).get_by_role("link", name="callback failed")
        expect(failed).to_have_attribute("href", f"#job/{callback_id}")
        jobs = page.locator("#jobs tbody tr")
        rows.nth(0).get_by_role("link", name="night-17").press("Enter")
        expect(jobs).to_have_count(3)
        rows.nth(2).get_by_role("link", name="night-16").press("Enter")
        expect(jobs).to_have_count(1)
        expect(jobs).to_contain_text("failed")
        page.get_by_label("State of the jobs").select_option("pending")
        expect(jobs).to_have_count(0)
        page.get_by_label("Group of the jobs").fill(HOSTILE)
        expect(jobs).to_have_count(1)
        expect(page.locator("#jobs-unfinished")).to_have_js_property("hidden", value=False)
        page.get_by_label("State of the jobs").select_option("unfinished")
        page.get_by_label("Group of the jobs").fill("")
        expect(page.locator("#jobs-none")).to_contain_text("by group: type its whole name")
        page.emulate_media(color_scheme="dark")
        assert seen.barriers() == []
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 360, "height": 740})
        assert seen.barriers() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("#groups img").count() == 0
        seen.check()

    await browse(page_url, look)
