"""Jobs on the page: what failed, one job's story, and what an operator does about it."""

from __future__ import annotations

import re
from functools import partial

import pytest
import trio
from playwright.sync_api import expect

from downloader.model import CallbackOutcome, ErrorCode, Kind, Outcome, Verdict
from downloader.store import JobStore, JobView, Submission
from servers.browser import Browse, Seen, meanwhile
from servers.jobs import closed, end_all, spec_for

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)>"
BROKEN = Outcome(verdict=Verdict.FAILED, error=f"no route {HOSTILE}", error_code=ErrorCode.CONNECT)
REFUSED = CallbackOutcome(verdict=Verdict.FAILED, error="Received Status code 410 Gone")
DELIVERED = CallbackOutcome(verdict=Verdict.SUCCEEDED)


def stored(store: JobStore, job_id: str) -> JobView:
    found = meanwhile(partial(store.get, job_id))
    assert found is not None
    return found


async def test_failures_are_shown_and_retried(browse: Browse, page_url: str, store: JobStore) -> None:
    spec = spec_for(store, "a", created_ms=1_790_000_000_000)
    job = spec.id
    await store.submit([Submission(spec=spec)])
    await end_all(store, BROKEN, callback=REFUSED)

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        row = page.locator("#failures tbody tr").filter(has_text="410 Gone")
        expect(row).to_have_count(1)
        expect(page.locator("#failures-count")).to_have_text("1 download, 1 callback")
        expect(page.locator("#failures-to")).to_contain_text("1 to http")

        row.get_by_role("link").press("Enter")
        dialog = page.get_by_role("dialog", name=f"Job {job}")
        story = dialog.locator("#job-story li")
        expect(story).to_contain_text(
            [
                "Submitted",
                "Download started",
                "Failed for good",
                "Callback started",
                "Callback given up",
                "deleted",
            ]
        )
        expect(story.nth(2)).to_contain_text(f"no route {HOSTILE}")
        assert seen.barriers() == []
        dialog.get_by_role("button", name="Send the callback again").press("Enter")
        expect(page.locator("#said")).to_contain_text("callback sent again")
        found = stored(store, job).callback
        assert found is not None
        assert found.state == "pending"
        expect(dialog.get_by_role("button", name="Send the callback again")).to_be_hidden()
        assert page.evaluate("document.activeElement.id") == "job-title"
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(page).not_to_have_url(re.compile("#job"))

        meanwhile(partial(close_callback, store))
        expect(row).to_have_count(1)
        page.get_by_role("button", name="Send failed callbacks again").press("Enter")
        page.get_by_role("button", name="Go back").press("Enter")
        found = stored(store, job).callback
        assert found is not None
        assert found.state == "failed"
        page.get_by_role("button", name="Send failed callbacks again").press("Enter")
        page.get_by_role("button", name="Send 1 callback again").click()
        expect(page.locator("#said")).to_contain_text("1 callback is sent again.")
        found = stored(store, job).callback
        assert found is not None
        assert found.state == "pending"
        assert page.locator("#live img, dialog img").count() == 0
        seen.check()

    await browse(page_url, look)


async def close_callback(store: JobStore) -> None:
    with trio.fail_after(20):
        [lease] = (await store.lease(Kind.CALLBACK, "me", 1, 60)).leases
        await store.settle("me", [closed(lease, REFUSED, 60, 4)])


async def test_a_job_is_found_by_its_id_and_cancelled(browse: Browse, page_url: str, store: JobStore) -> None:
    spec = spec_for(store, "a", created_ms=1_790_000_000_000)
    await store.submit([Submission(spec=spec)])

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        page.get_by_role("searchbox", name="Job id").fill(spec.id)
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name=f"Job {spec.id}")
        expect(dialog.locator("#job-state")).to_contain_text("It waits")
        expect(dialog.locator("#job-story li").last).to_contain_text("Download is due")
        dialog.get_by_role("button", name="Cancel the job").press("Enter")
        expect(page.get_by_role("dialog", name="Cancel this job?")).to_be_visible()
        page.keyboard.press("Escape")
        assert stored(store, spec.id).download.state == "pending"
        dialog.get_by_role("button", name="Cancel the job").press("Enter")
        page.locator("#confirm-do").press("Enter")
        expect(dialog.locator("#job-state")).to_contain_text("It is cancelled")
        assert stored(store, spec.id).download.state == "cancelled"
        page.keyboard.press("Escape")

        for unknown in ("00000000000000", "%"):
            page.goto(f"{seen.url}#job/{unknown}")
            dialog = page.get_by_role("dialog", name=f"Job {unknown}")
            expect(dialog.get_by_role("alert")).to_have_text("There is no job with this id.")
        assert [text for text in seen.complaints if "404" not in text] == []

    await browse(page_url, look)
