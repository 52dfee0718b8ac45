"""The web page: the page and what it loads, the OpenAPI document, and sessions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from importlib import resources
from pathlib import PurePath
from typing import Annotated, Any, cast

import trio
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from quart import Response, request

from downloader.api.auth import (
    COOKIE,
    SECURE_COOKIE,
    SESSION_S,
    Caller,
    Callers,
    cookies,
    find_session,
    find_token,
    identify,
    sign,
    unauthorized,
)
from downloader.api.deps import Context
from downloader.api.json import parse_object
from downloader.api.origin import check_page
from downloader.api.parse import refusal
from downloader.api.problems import Refused, refused
from downloader.api.routing import HTML, JSON, ResponseSpec, route
from downloader.observe import Event, get_logger
from downloader.server import Headers, Message
from downloader.wire import Session, moment

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
    """The headers of a page that may load only the kinds of resources in `loads`, from this service."""
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
    problems=["not_found"],
)
async def asset(_context: Context, name: str) -> Response:
    """Files of the web pages."""
    if name not in _files():
        raise refused("not_found")
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


_SESSION = "/session"

_NO_STORE = {"Cache-Control": "no-store"}

_log = get_logger()


class SessionRequest(BaseModel):
    """The body of `POST /session`."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    token: Annotated[str, Field(min_length=1, description="A configured token.")]


@route(
    "GET",
    _SESSION,
    scope=None,
    responses={HTTPStatus.OK: ResponseSpec("Who it is, if anybody.", Session)},
)
async def show_session(context: Context) -> tuple[Session, dict[str, str]]:
    """Who is signed in.

    By the cookie of `POST /session`, or by the token of this request.
    """
    scope = cast("Message", request.scope)
    callers = context.callers
    session = find_session(callers, scope)
    caller = session.caller if session else None
    if callers and caller is None:
        try:
            caller = identify(callers, scope["headers"])
        except Refused:
            caller = None
    return _session(callers, caller, session.ends if session else None), _NO_STORE


@route(
    "POST",
    _SESSION,
    scope=None,
    body=SessionRequest,
    responses={
        HTTPStatus.CREATED: ResponseSpec("Signed in.", Session, headers={"Set-Cookie": "The session."})
    },
    problems=["unauthorized", "not_found"],
)
async def sign_in(context: Context) -> tuple[Session, dict[str, str]]:
    """Sign in.

    For the web page: the cookie of the response stands for the token for twelve hours. With it, requests
    other than `GET` and `HEAD` need the header `X-Downloader-Page: 1`.
    """
    if not context.callers:
        raise refused("not_found", "No tokens are configured.")
    try:
        credentials = SessionRequest.model_validate(parse_object(await request.data))
    except ValidationError as error:
        raise refusal(error) from None
    owner = find_token(context.callers, credentials.token.encode())
    if owner is None:
        scope = cast("Message", request.scope)
        client = scope["client"][0] if scope["client"] else None
        _log.info(Event.API_REFUSED, reason="unauthorized", token=None, client=client)
        raise unauthorized()
    digest, caller = owner
    ends = int(time.time()) + SESSION_S
    name = SECURE_COOKIE if _is_secure() else COOKIE
    headers = {"Set-Cookie": _cookie(name, sign(digest, ends), SESSION_S), **_NO_STORE}
    return _session(context.callers, caller, ends), headers


@route(
    "DELETE",
    _SESSION,
    scope=None,
    headers=[
        {"name": "X-Downloader-Page", "description": "`1`.", "required": True, "schema": {"const": "1"}}
    ],
    responses={HTTPStatus.NO_CONTENT: ResponseSpec("The cookie is deleted.", media_type="")},
    problems=["page_header", "cross_site"],
)
async def sign_out(_context: Context) -> Response:
    """Sign out."""
    headers: Headers = cast("Message", request.scope)["headers"]
    check_page(dict(headers))
    response = Response(b"", HTTPStatus.NO_CONTENT, _NO_STORE)
    for name in cookies(headers).keys() & {SECURE_COOKIE, COOKIE}:
        response.headers.add("Set-Cookie", _cookie(name, "", 0))
    return response


def _session(callers: Callers, caller: Caller | None, ends: int | None) -> Session:
    return Session(
        tokens=bool(callers),
        name=caller.name if caller else None,
        scopes=sorted(caller.scopes) if caller else [],
        expires_at=moment(ends * 1000 if ends else None),
    )


def _is_secure() -> bool:
    """Whether the browser uses TLS: to the process, or by the page's origin to a proxy in front."""
    return request.scheme == "https" or request.headers.get("Origin", "").startswith("https://")


def _cookie(name: str, value: str, seconds: int) -> str:
    secure = "; Secure" if name == SECURE_COOKIE else ""
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
