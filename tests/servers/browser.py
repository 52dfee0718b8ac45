"""A real Chromium that shows a page, and the browser's complaints.

Playwright's plain interface runs in a thread of its own; what the test wants to happen meanwhile it does in
Trio's, through `trio.from_thread.run`.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import trio
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Playwright, Request, expect, sync_playwright

from downloader.config import ApiSettings

T = TypeVar("T")

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"

ARGUMENTS = [
    "--no-sandbox",  # root, as containers and CI are, can have none
    # It talks to us and to nobody else, its maker included.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
]

SEE_MS = 10_000.0
"""To wait for something to show; the machine is shared."""

expect.set_options(timeout=SEE_MS)

_NOTE_VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", (e) => violations.push(e.violatedDirective + e.blockedURI));
"""


@dataclass
class Seen:
    """A page, and all errors on the page."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, exceptions, dialogs."""
    strangers: list[str] = field(default_factory=list)
    """What was requested from elsewhere."""

    def watch(self) -> None:
        self.page.add_init_script(_NOTE_VIOLATIONS)
        self.page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        self.page.on("pageerror", lambda error: self.complaints.append(error.stack or str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.on("request", self._note_request)

    def _note_request(self, request: Request) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc:
            self.strangers.append(request.url)

    def open(self) -> None:
        self.page.goto(self.url)

    def live(self) -> None:
        """Wait for the first snapshot; the stream may begin with the history."""
        self.page.wait_for_selector("#link.live")
        self.page.wait_for_selector("#live", state="visible")

    def barriers(self) -> list[str]:
        """Barriers for people found by axe-core (WCAG 2.2 A and AA, and axe-core's best practices)."""
        found = Axe().run(self.page).response["violations"]
        return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]

    def check(self) -> None:
        """Nothing has gone wrong."""
        assert self.complaints == []
        assert self.strangers == []
        assert self.page.evaluate("window.violations ?? []") == []


@contextmanager
def _plain_asyncio() -> Iterator[None]:
    """Have asyncio's own loops in this thread: trio-asyncio makes one of its own for whoever asks."""
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(None)


ServePage = Callable[[ApiSettings], Awaitable[str]]
"""Serves the API with these settings; returns the page's address."""

Look = Callable[[Seen], None]

Browse = Callable[..., Awaitable[None]]
"""`await browse(url, look, **context)` has `look` look at the page, in the browser's thread; `context` is the
browser's (`color_scheme`)."""

_thread = threading.local()


@contextmanager
def open_chromium() -> Iterator[Browse]:
    """One Chromium in one thread, because Playwright's plain interface is bound to a thread."""
    with ThreadPoolExecutor(1) as executor:
        playwright, browser = executor.submit(_launch).result()

        def run(url: str, look: Look, context: dict[str, Any], token: trio.lowlevel.TrioToken) -> None:
            _thread.token = token
            with browser.new_context(**context) as opened:
                page = opened.new_page()
                page.set_default_timeout(SEE_MS)
                seen = Seen(page, url)
                seen.watch()
                look(seen)
                page.unroute_all(behavior="ignoreErrors")  # a request may still be in a handler

        async def browse(url: str, look: Look, **context: Any) -> None:
            token = trio.lowlevel.current_trio_token()
            within = copy_context()  # the test's: trio-asyncio finds its loop there

            def wait() -> None:
                executor.submit(lambda: within.run(run, url, look, context, token)).result()

            await trio.to_thread.run_sync(wait)

        try:
            yield browse
        finally:
            executor.submit(browser.close).result()
            executor.submit(playwright.stop).result()


def _launch() -> tuple[Playwright, Browser]:
    with _plain_asyncio():
        playwright = sync_playwright().start()
        return playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)


def meanwhile(call: Callable[[], Awaitable[T]]) -> T:
    """From within `look`: what happens in the service."""
    return trio.from_thread.run(call, trio_token=_thread.token)


def meanwhile_sync(call: Callable[[], T]) -> T:
    """As `meanwhile`."""
    return trio.from_thread.run_sync(call, trio_token=_thread.token)
