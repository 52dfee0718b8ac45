"""The page where the API wants tokens."""

from __future__ import annotations

from functools import partial

import pytest
from playwright.sync_api import expect
from pydantic import SecretStr

from downloader.config import ApiSettings, TokenSettings
from downloader.store import JobStore, Submission
from servers.browser import Browse, Seen, ServePage, meanwhile
from servers.jobs import spec_for

pytestmark = pytest.mark.slow

TOKENS = [
    TokenSettings(name="watcher", token=SecretStr("watcher" * 5), scopes=["read"]),
    TokenSettings(name="keeper", token=SecretStr("keeper" * 5), scopes=["admin"]),
]


async def test_signing_in_and_out(browse: Browse, serve_page: ServePage, store: JobStore) -> None:
    url = await serve_page(ApiSettings(tokens=TOKENS))
    await store.submit([Submission(spec=spec_for(store, "a"))])

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        token = page.get_by_label("A token of this service")
        expect(token).to_be_focused()
        expect(page.locator("#live")).to_be_hidden()
        page.keyboard.type("no such token")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("No such token is configured.")
        assert seen.barriers() == []
        page.keyboard.type("watcher" * 5)
        page.keyboard.press("Enter")
        expect(token).to_be_hidden()
        expect(page.locator("#who-name")).to_have_text("watcher")
        expect(page.locator("#aggregations tbody tr")).to_have_count(1)
        for name in ("Pause a", "Limits of a", "Cancel the jobs of a", "Pause everything"):
            expect(page.get_by_role("button", name=name)).to_have_count(0)
        assert page.evaluate("document.cookie") == ""
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0

        page.get_by_role("button", name="Sign out").click()
        expect(token).to_be_focused()
        expect(page.locator("#live")).to_be_hidden()
        token.fill("keeper" * 5)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Pause a").click()
        expect(page.locator("#said")).to_contain_text("a is paused.")
        found = meanwhile(partial(store.aggregation, "a"))
        assert found is not None
        assert found.paused

        page.context.clear_cookies()  # as if the session had ended
        page.get_by_role("button", name="Resume a").click()
        expect(token).to_be_focused()
        refused = [text for text in seen.complaints if "401" not in text and "403" not in text]
        assert (refused, seen.strangers) == ([], [])

    await browse(url, look)


async def test_a_tenant_sees_its_own_numbers_and_buttons(
    browse: Browse, serve_page: ServePage, store: JobStore
) -> None:
    tenant = TokenSettings(
        name="tenant", token=SecretStr("tenant" * 5), scopes=["read", "submit"], aggregations=["mine"]
    )
    url = await serve_page(ApiSettings(tokens=[tenant]))
    await store.report("one", "processor", {"instance": "one", "host": "secret.example"}, 60, {"bytes": 9})
    specs = [spec_for(store, name) for name in ("mine", "mine", "other")]
    await store.submit([Submission(spec=spec) for spec in specs])

    def look(seen: Seen) -> None:
        page = seen.page
        seen.open()
        token = page.get_by_label("A token of this service")
        expect(token).to_be_focused()
        token.fill("tenant" * 5)
        page.keyboard.press("Enter")
        expect(page.locator("#pending")).to_have_text("2")
        expect(page.locator("#aggregations tbody tr")).to_have_count(1)
        expect(page.get_by_role("button", name="Cancel the jobs of mine")).to_be_visible()
        expect(page.get_by_role("button", name="Pause mine")).to_have_count(0)
        for heading in ("Instances", "Callbacks", "Callbacks that wait", "The last quarter of an hour"):
            expect(page.get_by_role("heading", name=heading, exact=True)).to_have_count(0)
        assert "secret.example" not in page.content()
        assert seen.barriers() == []
        seen.check()

    await browse(url, look)
