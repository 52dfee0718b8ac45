"""The web page and the files that it loads."""

from __future__ import annotations

from importlib import resources
from pathlib import PurePath

from quart import Response
from quart_trio import QuartTrio

from downloader.api.problems import not_found

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""By the ending of the name; files with other endings are not served."""


def add_page(app: QuartTrio) -> None:
    """`GET /` and `/web/<name>`."""
    web = resources.files("downloader.web")
    pages = {
        each.name: each.read_bytes()
        for folder in (web, web / "vendor")
        if folder.is_dir()
        for each in folder.iterdir()
        if PurePath(each.name).suffix in _TYPES
    }

    def page(name: str) -> Response:
        headers = {
            "Content-Type": _TYPES[PurePath(name).suffix],
            "Content-Security-Policy": _POLICY,
            "Cache-Control": "no-cache",  # page and script must be of one version after an upgrade
            "Referrer-Policy": "no-referrer",
        }
        return Response(pages[name], headers=headers)

    @app.get("/")
    async def index() -> Response:
        return page("index.html")

    @app.get("/web/<name>")
    async def asset(name: str) -> Response:
        if name not in pages:
            raise not_found("There is no such page.")
        return page(name)
