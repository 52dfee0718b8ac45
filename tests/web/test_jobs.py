"""Jobs on the page: what failed, one job's story, and what an operator does about it."""

from __future__ import annotations

import re
from functools import partial

import pytest
import trio
from playwright.sync_api import expect

from downloader.model import CallbackOutcome, ErrorCode, Kind, Outcome, Verdict
from downloader.phases import Phases
from downloader.store import JobStore, JobView, Submission
from servers.browser import Browse, Seen, meanwhile
from servers.jobs import closed, end_all, spec_for

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)>"
BROKEN = Outcome(
    verdict=Verdict.FAILED,
    error=f"no route {HOSTILE}",
    error_code=ErrorCode.CONNECT,
    phases=Phases({"first_byte": 1.5}, "192.0.2.1"),
)
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
        expect(story.nth(1)).to_contain_text("by me")
        expect(story.nth(2)).to_contain_text(f"no route {HOSTILE}")
        expect(dialog.locator("#job-way")).to_have_text("at 192.0.2.1 · over a kept connection")
        expect(dialog.locator("#job-phases li")).to_have_text(["waited for the response1.5 s"])
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


ASK_TWICE = """
async () => {
  const { confirm } = await import(new URL("web/dialogs.js", document.baseURI));
  const dialog = document.getElementById("confirm");
  const closed = () => new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  const reported = closed();
  const first = confirm("First?", "", "Do");
  dialog.close();
  const second = confirm("Second?", "", "Do");
  await reported;
  document.getElementById("confirm-do").click();
  return [await first, await second, dialog.open];
}
"""


async def test_the_close_of_one_question_is_no_answer_to_the_next(browse: Browse, page_url: str) -> None:
    def look(seen: Seen) -> None:
        seen.open()
        assert seen.page.evaluate(ASK_TWICE) == [False, True, False]

    await browse(page_url, look)


LATE_CLOSE = """
window.addEventListener("close", (event) => {
  if (!event.isTrusted) return;
  event.stopImmediatePropagation();
  setTimeout(() => event.target.dispatchEvent(new Event("close")), 3_000);
}, true)
"""


async def test_a_question_can_be_asked_again_before_its_close_is_reported(
    browse: Browse, page_url: str, store: JobStore
) -> None:
    await store.submit([Submission(spec=spec_for(store, "a"))])
    await end_all(store, BROKEN, callback=REFUSED)

    def look(seen: Seen) -> None:
        page = seen.page
        page.add_init_script(LATE_CLOSE)
        seen.open()
        ask = page.get_by_role("button", name="Send failed callbacks again")
        question = page.get_by_role("dialog", name="Send 1 callback again?")
        for key in ("Enter", "Escape"):
            ask.press("Enter")
            expect(question).to_be_visible()
            question.get_by_role("button", name="Go back").press(key)
            expect(question).to_be_hidden()
            assert ask.get_attribute("aria-disabled") is None
        seen.check()

    await browse(page_url, look)


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
        expect(dialog.locator("#job-why")).to_have_text("· waiting, no processor runs")
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
        expect(page).not_to_have_url(re.compile("#job"))

        for unknown in ("00000000000000", "%"):
            page.goto(f"{seen.url}#job/{unknown}")
            dialog = page.get_by_role("dialog", name=f"Job {unknown}")
            expect(dialog.get_by_role("alert")).to_have_text("There is no job with this id.")
        assert [text for text in seen.complaints if "404" not in text] == []

    await browse(page_url, look)


async def test_jobs_of_a_state_are_selected_and_cancelled(
    browse: Browse, page_url: str, store: JobStore
) -> None:
    specs = [spec_for(store, "a") for _ in range(30)]
    await store.submit([Submission(spec=spec) for spec in specs])
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
    await store.report(
        "worker-1", "processor", {"instance": "worker-1", "running": {lease.id: 3 * 2**20}}, 60
    )

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        rows = page.locator("#jobs tbody tr")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("3 MiB so far · worker-1")
        expect(page.locator("#jobs-unfinished")).to_have_js_property(
            "hidden", value=True
        )  # there is no group
        page.get_by_label("State of the jobs").select_option("pending")
        expect(page.locator("#jobs-none")).to_contain_text("type its whole name")
        page.get_by_label("Aggregation of the jobs").fill("a")
        expect(rows).to_have_count(25)
        assert seen.barriers() == []
        page.locator("#jobs-after").click()
        expect(rows).to_have_count(4)
        page.get_by_label("Select all jobs of this page").check()
        rows.first.get_by_role("checkbox").uncheck()
        chosen = [box.get_attribute("aria-label") or "" for box in rows.get_by_role("checkbox").all()[1:]]
        page.get_by_role("button", name="Cancel the selected").click()
        page.get_by_role("dialog", name="Cancel 3 jobs?").get_by_role("button", name="Cancel the").click()
        expect(page.locator("#said")).to_contain_text("3 jobs are cancelled.")
        ids = {label.removeprefix("Select job ") for label in chosen}
        states = {spec.id: stored(store, spec.id).download.state for spec in specs}
        assert {job_id for job_id, state in states.items() if state == "cancelled"} == ids
        seen.check()

    await browse(page_url, look)


async def test_selected_failures_are_tried_again(browse: Browse, page_url: str, store: JobStore) -> None:
    specs = [spec_for(store, name) for name in ("a", "b")]
    await store.submit([Submission(spec=spec) for spec in specs])
    await end_all(store, BROKEN, callback=REFUSED)

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        page.get_by_label("State of the jobs").select_option("callback")
        row = page.locator("#jobs tbody tr").filter(has_text="410 Gone")
        expect(row).to_have_count(2)
        page.get_by_label(f"Select job {specs[0].id}").check()
        page.get_by_role("button", name="Send the selected callbacks again").click()
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#said")).to_contain_text("1 job is tried again.")
        callbacks = [stored(store, spec.id).callback for spec in specs]
        assert [task and task.state for task in callbacks] == ["pending", "failed"]
        page.get_by_label("State of the jobs").select_option("failed")
        with page.expect_response(re.compile("q=B")):  # the search ends what was selected before
            page.get_by_label("Aggregation of the jobs").fill("B")
        expect(page.locator("#jobs tbody tr")).to_have_count(1)
        page.get_by_label(f"Select job {specs[1].id}").check()
        page.get_by_role("button", name="Download the selected again").click()
        with page.expect_response(re.compile("/retry")):  # what is said stays the same
            page.get_by_role("button", name="Try again").click()
        expect(page.locator("#said")).to_contain_text("1 job is tried again.")
        assert stored(store, specs[1].id).download.state == "pending"
        seen.check()

    await browse(page_url, look)
