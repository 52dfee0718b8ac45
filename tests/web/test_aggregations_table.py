"""The aggregations on the page: found, sorted, and changed by an operator."""

from __future__ import annotations

from functools import partial

import pytest
from playwright.sync_api import expect

from downloader.store import JobStore, Submission
from downloader.wire import Aggregation
from servers.browser import Browse, Seen, meanwhile
from servers.jobs import spec_for
from servers.raw_store import RawStore

pytestmark = pytest.mark.slow

TO = "\N{EN DASH}"
HOSTILE = "<img src=x onerror=alert(1)>"


async def submit(store: JobStore, *names: str, limit: int = 4) -> None:
    await store.submit([Submission(spec=spec_for(store, name, aggr_limit=limit)) for name in names])


def stored(store: JobStore, name: str) -> Aggregation:
    found = meanwhile(partial(store.aggregation, name))
    assert found is not None
    return found


async def test_an_operator_pauses_resumes_and_limits(browse: Browse, page_url: str, store: JobStore) -> None:
    await submit(store, "a/b", HOSTILE)
    await store.report("one", "processor", {"instance": "one"}, 60)

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        row = page.locator("#aggregations tbody tr").filter(has_text="a/b")
        expect(row).to_contain_text("ready")

        # By keyboard: the focus stays on the button while the row changes.
        row.get_by_role("button", name="Pause a/b").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#said")).to_contain_text("a/b is paused.")
        expect(row.locator("td").first).to_contain_text("paused")
        assert stored(store, "a/b").paused
        assert page.evaluate("document.activeElement.textContent") == "Resume"
        page.keyboard.press("Enter")
        expect(row.locator("td").first).to_contain_text("ready")
        assert not stored(store, "a/b").paused

        row.get_by_role("button", name="Limits of a/b").press("Enter")
        dialog = page.get_by_role("dialog", name="Limits of a/b")
        expect(dialog).to_contain_text("what the jobs ask for, 4.")
        dialog.get_by_label("Downloads at once").fill("2")
        dialog.get_by_label("Starts per second").fill("0.5")
        dialog.get_by_label("Seconds between").fill("-1")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_contain_text("Seconds between two starts, at the least")
        assert stored(store, "a/b").limit == 4
        dialog.get_by_label("Seconds between").fill("")
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(row).to_contain_text("0 of 2")
        expect(row).to_contain_text("0.5/s at the most")
        found = stored(store, "a/b")
        assert (found.limit, found.rate, found.delay) == (2, 0.5, None)
        assert page.evaluate("document.activeElement.textContent") == "Limits"

        row.get_by_role("button", name="Limits").press("Enter")
        dialog.get_by_label("Downloads at once").fill("")
        dialog.get_by_role("button", name="Set limits").click()
        expect(row).to_contain_text("0 of 4")

        other = page.locator("#aggregations tbody tr").filter(has_text=HOSTILE)
        other.get_by_role("button", name="Pause").click()
        expect(page.locator("#said")).to_contain_text(f"{HOSTILE} is paused.")
        assert [text for text in seen.complaints if "422" not in text] == []  # Chromium's own words

    await browse(page_url, look)


async def test_an_error_is_shown_in_the_api_s_words(
    raw: RawStore, browse: Browse, page_url: str, store: JobStore
) -> None:
    await submit(store, "gone")
    await store.adjust("gone", {"paused": True})

    def look(seen: Seen) -> None:
        seen.open()
        resume = seen.page.get_by_role("button", name="Resume gone")
        resume.hover()
        meanwhile(partial(drop, store, "gone"))
        resume.click()
        expect(seen.page.locator("#said.bad")).to_contain_text("There is no aggregation of this name")
        assert [text for text in seen.complaints if "404" not in text] == []

    async def drop(store: JobStore, name: str) -> None:
        raw.command("ZREM", raw.key("queues", "download"), name)

    await browse(page_url, look)


async def test_thousands_are_searched_sorted_and_cut_into_pages(
    browse: Browse, page_url: str, store: JobStore
) -> None:
    await submit(store, *(f"host-{number:04}" for number in range(9_998)), "busy", "busy", "Images")

    def look(seen: Seen) -> None:
        page = seen.page
        names = page.locator("#aggregations tbody bdi")
        count = page.locator("#aggregations-count")
        seen.open()
        expect(count).to_have_text(f"1{TO}25 of 10,000")
        expect(names).to_have_count(25)
        expect(names.first).to_have_text("busy")
        assert page.locator("*").count() < 1000, "the document is as small as with 25 aggregations"
        page.get_by_role("button", name="Next").click()
        expect(count).to_have_text(f"26{TO}50 of 10,000")
        page.get_by_role("searchbox", name="Search aggregations").fill("host-99")
        for number in (26, 51, 76):
            expect(count).to_contain_text("of 98")
            page.get_by_role("button", name="Next").click()
            expect(count).to_contain_text(f"{number}{TO}")
        expect(names).to_have_count(23)
        page.get_by_role("button", name="Next").press("Enter")  # there is none
        page.get_by_role("searchbox", name="Search aggregations").fill("")
        page.get_by_role("button", name="Aggregation", exact=True).click()
        expect(count).to_have_text(f"1{TO}25 of 10,000")
        expect(names.nth(2)).to_have_text("host-0001")
        page.get_by_role("button", name="Aggregation", exact=True).press("Enter")
        expect(names.first).to_have_text("Images")
        expect(page.get_by_role("columnheader", name="Aggregation")).to_have_attribute(
            "aria-sort", "descending"
        )
        page.get_by_role("searchbox", name="Search aggregations").fill("IMA")
        expect(names).to_have_text(["Images"])
        page.get_by_role("searchbox", name="Search aggregations").fill("nothing of the kind")
        expect(page.locator("#aggregations-none")).to_be_visible()
        expect(page.locator("#aggregations")).to_be_hidden()
        seen.check()

    await browse(page_url, look)
