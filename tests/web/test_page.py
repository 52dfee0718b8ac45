"""The web page in a real Chromium, in front of a real service."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from playwright.sync_api import expect

from downloader.model import CallbackOutcome, ErrorCode, Kind, Outcome, Verdict
from downloader.store import JobStore, Submission
from servers.browser import Browse, Seen, meanwhile, meanwhile_sync
from servers.fleet import Tables, job_for, open_fleet
from servers.jobs import end_all, spec_for
from servers.origin import Origin, gate, respond
from servers.ports import spare_port
from servers.raw_store import RawStore
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = pytest.mark.slow

BROKEN = Outcome(verdict=Verdict.FAILED, error="no", error_code=ErrorCode.CONNECT)
REFUSED = CallbackOutcome(verdict=Verdict.FAILED, error="410")
HOSTILE = "<img src=x onerror=alert(1)>"
PATIENT: Tables = {"processor": {"grace": 60.0}, "notifier": {"grace": 60.0}}
"""A stop that waits for the page takes longer than a test allows."""

PHONE = {"viewport": {"width": 360, "height": 740}}
LONG = "archive.example.com/a/name/that/goes/on/and/on/" + "x" * 80


async def submit(store: JobStore, name: str, *, jobs: int = 1, limit: int = 4) -> None:
    await store.submit(
        [Submission(spec=spec_for(store, name, aggr_limit=limit)) for _ in range(jobs)],
    )


async def report(store: JobStore, role: str, instance: str, **facts: Any) -> None:
    known = {
        "instance": instance,
        "role": role,
        "host": "worker-with-a-long-name.eu-west-2.compute.internal",
        "version": "1.2.3",
        "started_ms": 1_790_000_000_000,
        "counters": {"in_flight": 3, "bytes": 5 * 2**30, "downloads_succeeded": 1_234_567},
    }
    await store.report(instance, role, known | facts, 60)


async def fill(raw: RawStore, store: JobStore) -> None:
    """Some of everything that the page can show."""
    await submit(store, "full", jobs=3, limit=1)
    await submit(store, LONG, jobs=1200, limit=40)
    await submit(store, HOSTILE)
    await store.lease(Kind.DOWNLOAD, "me", 5, 60)
    key = raw.key("queue_record", "download", "full")
    raw.command("HSET", key, "paused", 1)
    await report(store, "processor", "worker-1-a")
    sick = {"kafka": {"healthy": False, "last_error": f"no broker {HOSTILE}"}}
    await report(store, "notifier", "worker-2-b", backends=sick, counters={"callbacks_failed": 3})


async def test_a_running_job_appears_and_disappears(
    browse: Browse, folder: Path, server: Valkey, origin: Origin, sink: Sink
) -> None:
    hold = trio.Event()
    url = origin.on("/held", gate(hold, respond(200, b"held")))

    async with open_fleet(folder, server, PATIENT) as fleet:
        await fleet.start("run")

        def look(seen: Seen) -> None:
            page = seen.page
            seen.open()
            seen.live()
            expect(page.locator("#first")).to_contain_text("No jobs yet")
            expect(page.locator("#first code")).to_contain_text(f"{seen.url}download")
            expect(page.locator("#instances .tag")).to_have_text(["api", "notifier", "processor"])
            page.evaluate("window.here = true")
            page.locator("#docs").focus()

            meanwhile(partial(fleet.post, **job_for(url, sink.url(), group="pictures", limit=1)))
            row = page.locator("#aggregations tbody tr")
            expect(row).to_have_count(1)
            expect(row.locator("bdi")).to_have_text("pictures")
            expect(row.locator("td")).to_contain_text(["running", "1 of 1", "0", "Pause"])
            expect(page.locator("#downloads-now")).to_have_text("1")
            expect(page.locator("#first")).to_be_hidden()
            first = row.element_handle()

            meanwhile(partial(fleet.post, **job_for(url, sink.url(), group="pictures", limit=1)))
            expect(row.locator("td")).to_contain_text(["at its limit", "1 of 1", "1", "Pause"])
            # Patched, not made anew, and whoever is somewhere on the page stays there.
            assert page.evaluate("row => row.isConnected", first)
            assert page.evaluate("document.activeElement.id") == "docs"

            meanwhile_sync(hold.set)
            expect(row).to_have_count(0)
            expect(page.locator("#quiet")).to_contain_text("All quiet")
            expect(page.locator("#downloads-counters dd").first).to_have_text("2")
            assert page.evaluate("window.here")
            seen.check()

        await browse(f"{fleet.client.base_url}/", look)
        await fleet.running[0].stop()


@pytest.mark.row("H14")
async def test_hostile_names_are_text(browse: Browse, page_url: str, store: JobStore) -> None:
    names = [HOSTILE, "abc\u202egpj.exe", "__proto__", "a\u200bb", "constructor", "  x  y"]
    for name in names:
        await submit(store, name)
    sick = {HOSTILE: {"healthy": False, "last_error": f"no\u202e {HOSTILE}"}}
    await report(store, "notifier", HOSTILE, host=HOSTILE, version=HOSTILE, backends=sick)

    def look(seen: Seen) -> None:
        seen.open()
        seen.live()
        expect(seen.page.locator("#aggregations tbody tr")).to_have_count(len(names))
        shown = seen.page.locator("#aggregations tbody bdi").all_text_contents()
        assert sorted(shown) == sorted(
            name.replace("\u202e", "U+202E").replace("\u200b", "U+200B") for name in names
        )
        assert seen.page.locator("#live img, #notes img").count() == 0
        assert f"noU+202E {HOSTILE}" in seen.page.locator("#notes").inner_text()
        assert HOSTILE in seen.page.locator("#instances tbody").inner_text()
        seen.check()

    await browse(page_url, look)


async def test_a_restarted_service_is_found_again(browse: Browse, folder: Path, server: Valkey) -> None:
    port = str(spare_port())
    async with open_fleet(folder, server, PATIENT) as fleet:
        first = await fleet.start("run", "--port", port)

        def look(seen: Seen) -> None:
            page = seen.page
            seen.open()
            seen.live()
            expect(page.locator("#state")).to_have_text("Live")
            # The open page does not hold the stop up.
            meanwhile(first.stop)
            expect(page.locator("#state")).to_have_text("Reconnecting…")
            expect(page.locator("#heard")).to_contain_text("numbers from")
            meanwhile(partial(fleet.start, "run", "--port", port))
            expect(page.locator("#state")).to_have_text("Live", timeout=20_000)
            expect(page.locator("#instances .tag")).to_have_text(["api", "notifier", "processor"])
            refused = [text for text in seen.complaints if "ERR_CONNECTION_REFUSED" not in text]
            assert refused == []
            assert seen.strangers == []

        await browse(f"http://127.0.0.1:{port}/", look)


async def test_an_unreachable_store_is_shown(browse: Browse, folder: Path, server: Valkey) -> None:
    async with open_fleet(folder, server) as fleet:
        await fleet.start("api")

        def look(seen: Seen) -> None:
            seen.open()
            seen.live()
            expect(seen.page.locator("#nobody")).to_contain_text("No workers")
            server.kill()
            expect(seen.page.locator("#notes")).to_contain_text("The store does not answer since ")
            server.start()
            expect(seen.page.locator("#notes")).not_to_contain_text("The store", timeout=20_000)
            # Chromium reports requests for rows that the API has refused meanwhile.
            assert [text for text in seen.complaints if "503" not in text] == []
            assert seen.strangers == []

        await browse(f"{fleet.client.base_url}/", look)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_colours_and_contrast(
    raw: RawStore, browse: Browse, page_url: str, store: JobStore, scheme: str
) -> None:
    """WCAG 2.2, 1.4.3: every text that shows has a contrast of 4.5 to what is behind it."""
    await fill(raw, store)

    def look(seen: Seen) -> None:
        seen.open()
        seen.live()
        expect(seen.page.locator("#notes .note")).to_have_count(1)
        expect(seen.page.locator("#aggregations tbody tr")).to_have_count(3)
        assert seen.barriers() == []
        found = seen.page.evaluate(CONTRASTS)
        seen.page.evaluate("document.querySelector('#link').className = 'link lost'")
        found += seen.page.evaluate(CONTRASTS)
        assert len(found) > 100
        assert [text for text, contrast in found if contrast < 4.5] == []
        ground = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(channels(ground)) > 384) == (scheme == "light")
        seen.check()

    await browse(page_url, look, color_scheme=scheme, reduced_motion="reduce")


def channels(colour: str) -> list[float]:
    """Of `rgb(1, 2, 3)`."""
    return [float(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]


CONTRASTS = """
() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    throw new Error("no ground");
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility()) continue;
    const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(ground(element))];
    found.push([node.data.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return found;
}
"""


async def test_a_phone_shows_it_without_scrolling_sideways(
    raw: RawStore, browse: Browse, page_url: str, store: JobStore
) -> None:

    def look(seen: Seen) -> None:
        width = "document.documentElement.scrollWidth"
        seen.open()
        seen.live()
        assert seen.page.evaluate(width) == 360  # with nothing to show
        meanwhile(partial(fill, raw, store))
        expect(seen.page.locator("#aggregations tbody tr")).to_have_count(3)
        expect(seen.page.locator("#instances tbody tr")).to_have_count(2)
        assert seen.page.evaluate(width) == 360
        for cell in seen.page.locator("#aggregations td:last-child, #instances td:last-child").all():
            box = cell.bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= 360
        seen.check()

    await browse(page_url, look, **PHONE)


async def test_without_a_script_it_says_where_the_numbers_are(browse: Browse, page_url: str) -> None:
    def look(seen: Seen) -> None:
        seen.open()
        expect(seen.page.locator("noscript p")).to_contain_text("With JavaScript")
        expect(seen.page.locator("#live")).to_be_hidden()
        expect(seen.page.get_by_role("link", name="HTTP API")).to_be_visible()
        assert seen.strangers == []

    await browse(page_url, look, java_script_enabled=False)


CONTROLS = """
() => [...document.querySelectorAll("a[href], button, input, select, summary")]
  .filter((element) => element.checkVisibility() && !element.closest("dialog"))
  .map((element) => element.outerHTML)
"""


async def test_the_keyboard_reaches_everything(
    raw: RawStore, browse: Browse, page_url: str, store: JobStore
) -> None:
    await fill(raw, store)
    await submit(store, "failed")
    await end_all(store, BROKEN, callback=REFUSED)

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        seen.live()
        expect(page.locator("#failures tbody tr").first).to_be_visible()
        expect(page.locator("#aggregations tbody tr").first).to_be_visible()
        controls = set(page.evaluate(CONTROLS))
        assert len(controls) > 10
        for _ in range(2 * len(controls)):
            page.keyboard.press("Tab")
            focused = page.evaluate("document.activeElement.outerHTML")
            if focused in controls:
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            controls.discard(focused)
        assert controls == set()
        seen.check()

    await browse(page_url, look)


async def test_a_hidden_tab_closes_its_event_stream(browse: Browse, page_url: str, store: JobStore) -> None:

    def look(seen: Seen) -> None:
        page = seen.page
        page.clock.install()
        seen.open()
        seen.live()
        hide = "(hidden) => {{ Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}});"
        hide += " document.dispatchEvent(new Event('visibilitychange')); }}"
        with page.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
            page.evaluate(hide.format("true"))
            page.clock.run_for(6_000)
        page.clock.run_for(3_000)  # what the last events had the page ask for
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        meanwhile(partial(submit, store, "unseen"))
        page.clock.run_for(30_000)
        assert asked == []
        page.evaluate(hide.format("false"))
        expect(page.locator("#aggregations tbody tr")).to_have_count(1)
        seen.check()

    await browse(page_url, look)


async def test_a_full_disk_is_seen(browse: Browse, page_url: str, store: JobStore) -> None:
    full = {"troubles": {"disk": "the spool's disk is 96% full"}}
    await submit(store, "a")
    await report(store, "processor", "one", **full)

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        note = page.locator(".note.bad")
        expect(note).to_contain_text("The disk is full on 1 instance: no download starts there.")
        expect(note).to_contain_text("compute.internal: the spool's disk is 96% full")
        state = page.locator("#aggregations tbody tr td").first
        expect(state).to_have_text("waitingthe disk of each processor is full")
        assert seen.barriers() == []
        meanwhile(partial(report, store, "processor", "two", late_s=2.5))
        expect(page.locator(".note:not(.bad)")).to_contain_text("1 instance cannot keep up.")
        expect(note).to_have_count(1)
        expect(state).to_have_text("readystarts with the next free slot")

    await browse(page_url, look)


async def test_an_aggregation_at_its_rate_says_so(browse: Browse, page_url: str, store: JobStore) -> None:
    await report(store, "processor", "one")
    await submit(store, "a", jobs=3, limit=9)
    await store.adjust("a", {"rate": 0.5})
    await store.lease(Kind.DOWNLOAD, "me", 1, 60)

    def look(seen: Seen) -> None:
        seen.open()
        state = seen.page.locator("#aggregations tbody tr td").first
        expect(state).to_have_text("at its rate, 0.5/s")

    await browse(page_url, look)


async def test_the_backlog_is_at_the_head(
    browse: Browse, page_url: str, raw: RawStore, store: JobStore
) -> None:
    await submit(store, "a", jobs=300)
    first = raw.command("ZRANGE", raw.key("pending", "download", "a"), 0, 0)[0]
    await report(store, "processor", "one")

    def look(seen: Seen) -> None:
        seen.open()
        line = seen.page.locator(".backlog")
        expect(line).to_have_text("300 pending")
        raw.command("ZADD", raw.key("pending", "download", "a"), 1_790_000_000_000, first)
        expect(line).to_contain_text("the oldest has been due for")
        # A snapshot that changes after two samples of the history shows their rate.
        done = 2_000_000
        while "left at" not in line.inner_text():
            done += 100_000
            meanwhile(partial(store.report, "one", "processor", {}, 60, {"downloads_succeeded": done}))
            seen.page.evaluate("() => new Promise(requestAnimationFrame)")
        expect(line).to_contain_text("under a minute left at")
        meanwhile(partial(store.adjust, "a", {"paused": True}))
        expect(line).to_contain_text("300 pending · 300 of them paused or cooling")
        expect(line).not_to_contain_text("left at")

    await browse(page_url, look)


async def test_the_title_counts_what_failed_and_the_foot_names_the_version(
    browse: Browse, page_url: str, store: JobStore
) -> None:
    await submit(store, "a")
    await end_all(store, BROKEN, callback=REFUSED)
    await report(store, "processor", "one")

    def look(seen: Seen) -> None:
        seen.open()
        expect(seen.page).to_have_title("(1 failed) downloader")
        expect(seen.page.locator("#version")).to_have_text(" · version 1.2.3")

    await browse(page_url, look)
