"""The web page, the OpenAPI document and the files that the pages load."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from importlib import resources
from pathlib import PurePath
from typing import Any

import trio
from quart import Response

from downloader.api.deps import Context
from downloader.api.problems import not_found
from downloader.api.routing import HTML, JSON, ResponseSpec, route

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": HTML,
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""Media types by file extension; files with other extensions are not served."""

_NO_CACHE = {"Cache-Control": "no-cache"}
"""Page and script must be of one version after an upgrade."""


def _headers(media_type: str, sources: str) -> dict[str, str]:
    """The headers of a page that may load these kinds of resources, from this service only."""
    loads = "; ".join(f"{source}-src 'self'" for source in sources.split())
    policy = f"default-src 'none'; {loads}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return {
        "Content-Type": media_type,
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        **_NO_CACHE,
    }


@cache
def _files() -> Mapping[str, bytes]:
    """The files of the pages, by name."""
    web = resources.files("downloader.web")
    return {
        file.name: file.read_bytes()
        for folder in (web, web / "vendor")
        if folder.is_dir()
        for file in folder.iterdir()
        if PurePath(file.name).suffix in _TYPES
    }


def _file(name: str) -> Response:
    media_type = _TYPES[PurePath(name).suffix]
    return Response(_files()[name], headers=_headers(media_type, "script style connect img"))


@route("GET", "/", scope=None, responses={HTTPStatus.OK: ResponseSpec("The page.", media_type=HTML)})
async def index(_context: Context) -> Response:
    """The web page."""
    return _file("index.html")


@route(
    "GET",
    "/web/<name>",
    scope=None,
    responses={HTTPStatus.OK: ResponseSpec("The file.", media_type="*/*")},
    problems={HTTPStatus.NOT_FOUND: "there is no such file"},
)
async def asset(_context: Context, name: str) -> Response:
    """Files of the web pages."""
    if name not in _files():
        raise not_found("There is no such page.")
    return _file(name)


@route(
    "GET",
    "/openapi.json",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("OpenAPI 3.1.", dict[str, Any])},
)
async def openapi(context: Context) -> Response:
    """The OpenAPI document."""
    # In a thread: it takes 0.3 s the first time.
    text = await trio.to_thread.run_sync(lambda: context.description.json)
    return Response(text, content_type=JSON, headers=_NO_CACHE)


@route("GET", "/docs", scope="read", responses={HTTPStatus.OK: ResponseSpec("The page.", media_type=HTML)})
async def reference(context: Context) -> Response:
    """The OpenAPI document as a page."""
    page = await trio.to_thread.run_sync(lambda: context.description.page)
    return Response(page, headers=_headers(HTML, "style img"))
