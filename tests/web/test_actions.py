"""What the page's buttons and searches do, and what they leave alone."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import APIResponse, Route, expect
from pydantic import SecretStr

from downloader.config import ApiSettings, Scope, TokenSettings
from downloader.model import CallbackOutcome, Cooldown, ErrorCode, JobSpec, Kind, Outcome, State, Verdict
from downloader.store import JobStore, JobView, Submission
from downloader.wire import Aggregation, AuditEntry
from servers.browser import Browse, Seen, ServePage, meanwhile
from servers.jobs import end_all, spec_for, submitted, tried_again

pytestmark = pytest.mark.slow

BROKEN = Outcome(verdict=Verdict.FAILED, error="no", error_code=ErrorCode.CONNECT)
REFUSED = CallbackOutcome(verdict=Verdict.FAILED, error="410")
HOSTILE = "<img src=x onerror=alert(1)>"
STORED = Outcome(verdict=Verdict.SUCCEEDED)


NOTE_RECONNECTING = """
() => {
  const state = document.querySelector("#state");
  const note = () => state.textContent === "Reconnecting…" && (state.dataset.reconnecting = "");
  new MutationObserver(note).observe(state, {childList: true, characterData: true, subtree: true});
}
"""


# What the page does with a response it does before it draws.
DRAWN = "() => new Promise((done) => setTimeout(() => requestAnimationFrame(done), 100))"


async def given_up(store: JobStore, *names: str) -> list[JobSpec]:
    """A job of each aggregation whose download failed and whose callback was given up."""
    specs = [spec_for(store, name, aggr_limit=500) for name in names]
    await store.submit([Submission(spec=spec) for spec in specs])
    for _ in range(0, len(names), 100):
        await end_all(store, BROKEN, callback=REFUSED)
    return specs


def stored(store: JobStore, spec: JobSpec) -> JobView:
    view = meanwhile(partial(store.get, spec.id))
    assert view is not None
    return view


def callback_state(store: JobStore, spec: JobSpec) -> str:
    callback = stored(store, spec).callback
    assert callback is not None
    return callback.state


def aggregation(store: JobStore, name: str) -> Aggregation:
    row = meanwhile(partial(store.aggregation, name))
    assert row is not None
    return row


def hold(held: list[Route], route: Route) -> None:
    """Keep a request back; Playwright takes no method of a built-in type for a handler."""
    held.append(route)


async def test_download_again(browse: Browse, page_url: str, store: JobStore) -> None:
    [spec] = await given_up(store, "a")

    def look(seen: Seen) -> None:
        seen.page.goto(f"{seen.url}#job/{spec.id}")
        seen.page.get_by_role("button", name="Download again").click()
        expect(seen.page.locator("#said")).to_contain_text("downloaded again")
        assert stored(store, spec).download.state == "pending"

    await browse(page_url, look)


async def test_a_running_job_can_be_cancelled(browse: Browse, page_url: str, store: JobStore) -> None:
    spec = await submitted(store)
    await store.lease(Kind.DOWNLOAD, "me", 1, 60)

    def look(seen: Seen) -> None:
        seen.page.goto(f"{seen.url}#job/{spec.id}")
        expect(seen.page.locator("#aggregations tbody tr")).to_have_count(1)
        dialog = seen.page.get_by_role("dialog", name=f"Job {spec.id}")
        expect(dialog.locator("#job-state")).to_contain_text("is being downloaded")
        expect(dialog.get_by_role("button", name="Cancel the job")).to_be_visible()

    await browse(page_url, look)


async def test_the_job_of_the_question_is_cancelled(browse: Browse, page_url: str, store: JobStore) -> None:
    specs = [await submitted(store, name) for name in ("a", "b")]

    def look(seen: Seen) -> None:
        page = seen.page
        page.goto(f"{seen.url}#job/{specs[0].id}")
        dialog = page.get_by_role("dialog", name=f"Job {specs[0].id}")
        dialog.get_by_role("button", name="Cancel the job").click()
        expect(page.get_by_role("dialog", name="Cancel this job?")).to_be_visible()
        page.evaluate(f"location.hash = 'job/{specs[1].id}'")
        expect(page.locator("#job-title")).to_have_text(f"Job {specs[1].id}")
        page.locator("#confirm-do").click()
        expect(page.locator("#said")).to_contain_text(f"{specs[0].id} is cancelled")
        states = [stored(store, spec).download.state for spec in specs]
        assert states == [State.CANCELLED, State.PENDING]

    await browse(page_url, look)


async def test_only_failures_of_the_typed_aggregations_are_retried(
    browse: Browse, page_url: str, store: JobStore
) -> None:
    specs = await given_up(store, "tenant-01", "other", "tenant-02", "tenant-02")

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        rows = page.locator("#failures tbody tr")
        expect(rows).to_have_count(6)
        page.locator("#failures-q").fill("Tenant")
        expect(rows).to_have_count(4)
        held: list[Route] = []
        page.route("**/failures?q=tenant-02", partial(hold, held))
        page.locator("#failures-q").fill("tenant-02")
        page.locator("#failures-send").click()
        dialog = page.get_by_role("dialog", name="Send 2 callbacks again?")
        expect(dialog).to_contain_text("Of tenant-02 (2).")
        late = meanwhile(partial(given_up, store, "tenant-02"))
        dialog.get_by_role("button", name="Send 2 callbacks again").click()
        expect(page.locator("#said")).to_contain_text("2 callbacks are sent again.")
        assert [callback_state(store, spec) for spec in [*specs, *late]] == [
            State.FAILED,
            State.FAILED,
            State.PENDING,
            State.PENDING,
            State.FAILED,
        ]

    await browse(page_url, look)


async def test_failed_downloads_are_repeated(browse: Browse, page_url: str, store: JobStore) -> None:
    specs = await given_up(store, "a", "a", "b")

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        page.get_by_role("button", name="Repeat failed downloads").click()
        dialog = page.get_by_role("dialog", name="Repeat 3 downloads?")
        expect(dialog).to_contain_text("Of a (2) and b (1).")
        dialog.get_by_role("button", name="Go back").click()
        expect(dialog).to_be_hidden()
        assert {stored(store, spec).download.state for spec in specs} == {State.FAILED}
        page.locator("#failures-q").fill("B")
        page.get_by_role("button", name="Repeat failed downloads").click()
        page.get_by_role("button", name="Repeat 1 download").click()
        expect(page.locator("#said")).to_contain_text("1 download is repeated.")
        states = [stored(store, spec).download.state for spec in specs]
        assert states == [State.FAILED, State.FAILED, State.PENDING]

    await browse(page_url, look)


async def test_all_failed_callbacks_are_retried(browse: Browse, page_url: str, store: JobStore) -> None:
    await given_up(store, *["a"] * 201)

    def look(seen: Seen) -> None:
        seen.open()
        seen.page.get_by_role("button", name="Send failed callbacks again").click()
        seen.page.get_by_role("button", name="Send 201 callbacks again").click()
        expect(seen.page.locator("#said")).to_contain_text("201 callbacks are sent again.")

    await browse(page_url, look)


async def test_limits_that_are_not_set_stay_so(browse: Browse, page_url: str, store: JobStore) -> None:
    await submitted(store, aggr_limit=4)

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        dialog = page.get_by_role("dialog", name="Limits of a")
        page.get_by_role("button", name="Limits of a").click()
        dialog.get_by_label("Starts per second").fill("0.5")
        dialog.get_by_role("button", name="Set limits").click()
        expect(dialog).to_be_hidden()
        assert dict(aggregation(store, "a").overridden) == {"rate": None}
        page.get_by_role("button", name="Limits of a").click()
        dialog.get_by_label("Starts per second").fill("")
        dialog.get_by_role("button", name="Set limits").click()
        expect(dialog).to_be_hidden()
        row = aggregation(store, "a")
        assert (row.rate, dict(row.overridden)) == (None, {})

    await browse(page_url, look)


async def test_jobs_are_cancelled_after_their_aggregation_is_typed(
    browse: Browse, page_url: str, store: JobStore
) -> None:
    name = "images.example.org/a b"
    specs = [await submitted(store, name), await submitted(store, name), await submitted(store, "other")]

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        page.get_by_role("button", name=f"Cancel the jobs of {name}").click()
        dialog = page.get_by_role("dialog", name=f"Cancel all jobs of {name}?")
        expect(dialog).to_contain_text("2 jobs now: 2 pending")
        do = dialog.get_by_role("button", name="Cancel the jobs")
        expect(do).to_be_disabled()
        dialog.get_by_role("textbox").fill("images.example.org")
        expect(do).to_be_disabled()
        dialog.get_by_role("textbox").press("Enter")
        expect(dialog).to_be_hidden()
        page.get_by_role("button", name=f"Cancel the jobs of {name}").click()
        assert seen.barriers() == []
        expect(do).to_be_disabled()
        dialog.get_by_role("textbox").fill(name)
        do.click()
        expect(page.locator("#said")).to_contain_text(f"2 jobs of {name} are cancelled.")
        states = [stored(store, spec).download.state for spec in specs]
        assert states == [State.CANCELLED, State.CANCELLED, State.PENDING]

    await browse(page_url, look)


async def test_all_aggregations_are_paused_after_a_question(
    browse: Browse, page_url: str, store: JobStore
) -> None:
    await submitted(store)

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        page.locator("#pause-all").click()
        page.get_by_role("dialog").get_by_role("button", name="Pause everything").click()
        expect(page.locator("#said")).to_contain_text("All aggregations are paused.")
        expect(page.locator(".note")).to_contain_text("All aggregations are paused.")
        assert meanwhile(store.all_paused)
        expect(page.locator("#aggregations tbody tr td").first).to_have_text("paused")
        page.get_by_role("button", name="Resume everything").click()
        expect(page.locator("#notes")).to_be_empty()
        assert not meanwhile(store.all_paused)

    await browse(page_url, look)


async def test_a_second_click_sends_nothing(browse: Browse, page_url: str, store: JobStore) -> None:
    await submitted(store)

    def look(seen: Seen) -> None:
        page = seen.page
        held: list[Route] = []
        page.route("**/aggregations/a", partial(hold, held))
        seen.open()
        pause = page.get_by_role("button", name="Pause a")
        pause.dblclick()
        expect(pause).to_have_attribute("aria-disabled", "true")
        pause.press("Enter")
        assert len(held) == 1
        held[0].continue_()
        expect(page.locator("#said")).to_contain_text("a is paused.")
        assert len(held) == 1

    await browse(page_url, look)


async def test_a_late_response_does_not_undo_a_pause(browse: Browse, page_url: str, store: JobStore) -> None:
    await submitted(store)

    def look(seen: Seen) -> None:
        page = seen.page
        held: list[tuple[Route, APIResponse]] = []

        def fetch_and_hold(route: Route) -> None:
            held.append((route, route.fetch()))

        seen.open()
        pause = page.get_by_role("button", name="Pause a")
        expect(pause).to_be_visible()
        page.route("**/aggregations?*", fetch_and_hold, times=1)
        with page.expect_request("**/aggregations?*"):
            meanwhile(partial(submitted, store))
        while not held:
            page.evaluate("() => new Promise(requestAnimationFrame)")
        pause.click()
        expect(page.locator("#said")).to_contain_text("a is paused.")
        [(route, response)] = held
        with page.expect_response("**/aggregations?*") as late:
            route.fulfill(response=response)
        late.value.finished()
        page.evaluate(DRAWN)
        assert page.get_by_role("button", name="Resume a").count() == 1

    await browse(page_url, look)


async def test_an_error_stays_until_it_is_closed(browse: Browse, page_url: str, store: JobStore) -> None:
    await submitted(store)

    def look(seen: Seen) -> None:
        page = seen.page
        page.clock.install()
        seen.open()
        said = page.locator("#said")
        page.get_by_role("button", name="Pause a").click()
        expect(said).to_contain_text("a is paused.")
        page.clock.run_for(9_000)
        expect(said).to_be_hidden()
        problem = {"title": "Refused", "status": 409, "detail": "not now", "code": "conflict"}
        page.route("**/aggregations/a", lambda route: route.fulfill(status=409, json=problem))
        page.get_by_role("button", name="Resume a").click()
        expect(page.locator("#said.bad")).to_be_visible()
        page.clock.run_for(9_000)
        expect(page.locator("#said.bad")).to_be_visible()
        page.locator("#said-close").click()
        expect(said).to_be_hidden()

    await browse(page_url, look)


async def test_a_late_response_to_an_old_search_is_dropped(
    browse: Browse, page_url: str, store: JobStore
) -> None:
    for name in ("old", "new"):
        await submitted(store, name)

    def look(seen: Seen) -> None:
        page = seen.page
        held: list[Route] = []
        page.route("**/aggregations?*q=old*", partial(hold, held))
        seen.open()
        names = page.locator("#aggregations tbody bdi")
        expect(names).to_have_count(2)
        with page.expect_request("**/aggregations?*q=old*"):
            page.locator("#aggregations-q").fill("old")
        page.locator("#aggregations-q").fill("new")
        expect(names).to_have_text(["new"])
        with page.expect_response("**/aggregations?*q=old*") as response:
            held[0].continue_()
        response.value.finished()
        page.evaluate(DRAWN)
        assert names.all_text_contents() == ["new"]

    await browse(page_url, look)


async def test_a_silent_stream_is_not_live(browse: Browse, page_url: str) -> None:
    def look(seen: Seen) -> None:
        page = seen.page
        page.clock.install()
        seen.open()
        seen.live()
        page.evaluate(NOTE_RECONNECTING)
        page.clock.fast_forward(36_000)  # in one step: no event comes meanwhile, however busy the machine is
        expect(page.locator("#state[data-reconnecting]")).to_be_attached()

    await browse(page_url, look)


async def test_counts_come_once_after_a_reconnection(browse: Browse, page_url: str, store: JobStore) -> None:
    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        legend = page.locator("#chart-failures .legend li")
        expect(page.locator("#charts")).to_be_visible()
        meanwhile(partial(store.report, "i", "processor", {}, 60, {"downloads_failed|dns": 9}))
        expect(legend).to_have_text(["name not found9"])
        with page.expect_response("**/events"):
            page.evaluate("dispatchEvent(new Event('online'))")
        meanwhile(partial(store.report, "i", "processor", {}, 60, {"downloads_failed|dns": 10}))
        expect(legend).to_have_text(["name not found10"])

    await browse(page_url, look)


@pytest.mark.parametrize(
    ("url", "href"),
    [("https://files.example/a", "https://files.example/a"), ("javascript:alert(1)", None)],
)
async def test_only_a_web_address_is_a_link_to_the_file(
    browse: Browse, page_url: str, store: JobStore, url: str, href: str | None
) -> None:
    spec = await submitted(store)
    await end_all(store, STORED)

    def elsewhere(route: Route) -> None:
        response = route.fetch()
        job: dict[str, Any] = response.json()
        assert "download_url" in job
        route.fulfill(response=response, json=job | {"download_url": url})

    def look(seen: Seen) -> None:
        page = seen.page
        page.route(f"**/jobs/{spec.id}", elsewhere)
        page.goto(f"{seen.url}#job/{spec.id}")
        expect(page.locator("#job-state")).to_contain_text("is stored")
        link = page.locator("#job-file")
        if href is None:
            expect(link).to_be_hidden()
            expect(link).to_have_attribute("href", "#")
        else:
            expect(link).to_be_visible()
            expect(link).to_have_attribute("href", href)

    await browse(page_url, look)


async def test_a_cooldown_is_shown_with_its_reason(browse: Browse, page_url: str, store: JobStore) -> None:
    await submitted(store)
    await submitted(store)
    throttled = dataclasses.replace(
        BROKEN,
        verdict=Verdict.THROTTLED,
        error="Received status 429",
        error_code=ErrorCode.HTTP_STATUS,
        response_code=429,
        cooldown=Cooldown(seconds=600, asked=True),
    )
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
    await store.settle("me", [tried_again(lease, throttled, 0)])

    def look(seen: Seen) -> None:
        seen.open()
        state = seen.page.locator("#aggregations tbody tr td").first
        expect(state).to_contain_text("cooling until")
        expect(state).to_contain_text("429")
        again = seen.page.get_by_role("button", name="Try a now")
        again.press("Enter")
        expect(seen.page.locator("#said")).to_contain_text("The cooldown of a has ended.")
        expect(state).not_to_contain_text("cooling until")
        expect(again).to_be_hidden()

    await browse(page_url, look)


async def test_who_changed_what_is_shown(browse: Browse, serve_page: ServePage, store: JobStore) -> None:
    tokens = {name: f"the-token-of-{name}" for name in ("anna", "reader")}
    scopes: dict[str, list[Scope]] = {"anna": ["admin"], "reader": ["read"]}
    url = await serve_page(
        ApiSettings(
            tokens=[
                TokenSettings(name=name, token=SecretStr(token), scopes=scopes[name])
                for name, token in tokens.items()
            ]
        )
    )
    at = datetime(2026, 12, 2, tzinfo=UTC)
    changes: list[tuple[str, dict[str, Any]]] = [
        ("pause_all", {"paused": True}),
        ("adjust", {"aggr_id": HOSTILE, "changes": {"limit": 2, "rate": None}}),
        ("retry_jobs", {"count": 3, "query": {"download": "1", "q": "shop"}}),
        *[("adjust", {"aggr_id": "b", "changes": {"paused": False}})] * 4,
    ]
    for second, (action, changed) in enumerate(changes):
        entry = AuditEntry(
            at=at + timedelta(seconds=second), action=action, token="anna", client="::1", changed=changed
        )
        await store.note_change(entry)

    def look(seen: Seen) -> None:
        page = seen.page
        page.goto(seen.url)
        page.get_by_label("A token of this service").fill(tokens["anna"])
        page.get_by_role("button", name="Sign in").click()
        rows = page.locator("#changes tbody tr")
        expect(rows).to_have_count(5)
        page.get_by_role("button", name="Show more").click()
        expect(rows).to_have_count(7)
        expect(rows.nth(0)).to_contain_text("resumedb")
        expect(rows.nth(4)).to_contain_text("repeated failed downloadsq shop · 3 jobs")
        expect(rows.nth(5)).to_contain_text(f"changed limits{HOSTILE} · limit 2 · rate as the jobs ask")
        expect(rows.nth(6)).to_contain_text("anna::1paused everything")
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("A token of this service").fill(tokens["reader"])
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("#instances-panel")).to_be_visible()
        expect(page.locator("#changes-panel")).to_be_hidden()

    await browse(url, look)
