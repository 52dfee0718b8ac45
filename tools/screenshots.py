"""Takes the pictures of the web page in `docs/images`: `nox -s screenshots`.

It runs a small fleet on loopback with an origin and a receiver of callbacks, lets it work for some time, and
has Chromium look at it. `--out`, `--seconds` and `--all` (also as a phone shows it) are for people
who work on the page.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.request import Request, urlopen

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from servers.browser import ARGUMENTS, CHROMIUM

DOCS = Path(__file__).parents[1] / "docs" / "images"

CONFIG = """
[processor]
stats_interval = 1
retry_backoff = 20
concurrency = 64
[notifier]
retry_schedule = [30, 60]
stats_interval = 1
[egress.downloads]
allow = ["127.0.0.0/8"]
[egress.callbacks]
allow = ["127.0.0.0/8"]
[backends.http]
timeout = 2
[backends.storage]
"""

# Aggregation, limit, jobs a second, and what its origin does.
SITES = (
    ("images.example.org", 16, 14, "ok"),
    ("video.example.net", 4, 1, "slow"),
    ("archive.example.com/scans", 8, 6, "ok"),
    ("shop.example.com", 6, 3, "missing"),
    ("news.example.org", 4, 2, "cut"),
    ("api.example.net", 2, 1, "busy"),
    ("museum.example.edu", 3, 1, "broken"),
    ("maps.example.com", 5, 4, "ok"),
)


class Site(BaseHTTPRequestHandler):
    """Origin and receiver of callbacks."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "slow":
            time.sleep(random.uniform(2, 6))
        elif kind == "ok":
            time.sleep(random.uniform(0.02, 0.6))
        status = {"busy": 429, "broken": 500}.get(kind, 200)
        if kind == "missing" and random.random() < 0.3:
            status = 404
        body = random.randbytes(random.choice([4_000, 60_000, 400_000])) if status == 200 else b""
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "600")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind == "cut" and random.random() < 0.4:
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(503 if "down" in self.path else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def site() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@contextmanager
def service(folder: Path) -> Iterator[str]:
    """A running service; yields its page's address."""
    config = folder / "config.toml"
    config.write_text(CONFIG)
    words = [sys.executable, "-m", "downloader", "run", "-c", str(config), "--port", "0"]
    words += ["--data-dir", str(folder / "data")]
    log = (folder / "log").open("w+")
    with subprocess.Popen(words, stderr=log, stdout=log) as process:
        try:
            yield listening(folder / "log")
        finally:
            process.terminate()
            process.wait(40)


def listening(log: Path) -> str:
    for _ in range(1200):
        for line in log.read_text().splitlines():
            for word in line.replace('"', " ").replace("=", " ").split():
                if word.startswith("http://") and "api.listening" in line:
                    return word.rstrip("/,}") + "/"
        time.sleep(0.1)
    raise SystemExit(f"the service did not start:\n{log.read_text()}")


def submit(page: str, port: int, second: int) -> None:
    lines = []
    for name, limit, rate, kind in SITES:
        wave = rate if kind != "ok" else max(1, round(rate * (1 + 0.6 * random.uniform(-1, 1))))
        for number in range(wave * (4 if second == 0 else 1)):
            down = kind == "slow" or random.random() < 0.02
            sink = f"127.0.0.2:{port}/down" if down else f"127.0.0.1:{port}/done"
            lines.append(
                {
                    "aggr_id": name,
                    "aggr_limit": limit,
                    "url": f"http://127.0.0.1:{port}/{kind}/{second}-{number}.jpg",
                    "callback_type": "http",
                    "callback_dst": f"http://{sink}",
                    "max_retries": 1 if kind in ("missing", "cut", "broken") else 2,
                }
            )
    body = "\n".join(map(json.dumps, lines)).encode()
    with urlopen(Request(f"{page}downloads", body)) as answer:
        answer.read()


def work(page: str, port: int, done: threading.Event) -> None:
    """Submit jobs each second, until the last picture is taken."""
    for second in count():
        submit(page, port, second)
        if second == 1:
            patch(page, "maps.example.com", paused=True)
            patch(page, "shop.example.com", rate=3)
        if done.wait(1):
            return


def patch(page: str, aggr_id: str, **changes: object) -> None:
    request = Request(f"{page}aggregations/{aggr_id}", json.dumps(changes).encode(), method="PATCH")
    with urlopen(request) as answer:
        answer.read()


def look(browser: Browser, page: str, out: Path, name: str, *, dark: bool, width: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 1500 if width > 800 else 900},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        device_scale_factor=1 if width > 800 else 2,
    )
    tab = context.new_page()
    tab.goto(page)
    tab.wait_for_selector("#link.live")
    tab.wait_for_selector("#aggregations tbody tr")
    tab.wait_for_timeout(3_000)
    file = out / f"{name}.png"
    tab.screenshot(path=file, full_page=width < 800)
    context.close()
    # A palette is enough for a page of few colours, and makes the file a third as large.
    Image.open(file).quantize(128).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--all", action="store_true")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    random.seed(8)
    with tempfile.TemporaryDirectory() as folder, site() as port, service(Path(folder)) as page:
        done = threading.Event()
        worker = threading.Thread(target=work, args=(page, port, done), daemon=True)
        worker.start()
        time.sleep(chosen.seconds)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            look(browser, page, chosen.out, "page", dark=False, width=1180)
            look(browser, page, chosen.out, "page-dark", dark=True, width=1180)
            if chosen.all:
                look(browser, page, chosen.out, "page-phone", dark=False, width=390)
            browser.close()
        done.set()
        worker.join()


if __name__ == "__main__":
    main()
