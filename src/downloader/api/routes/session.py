"""Sessions of the web page: routes that begin, show and end one."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Annotated, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from quart import Response, request

from downloader.api.auth import (
    COOKIE,
    SECURE_COOKIE,
    SESSION_S,
    UNAUTHORIZED,
    Caller,
    Callers,
    cookies,
    find_session,
    find_token,
    identify,
    sign,
)
from downloader.api.deps import Context
from downloader.api.json import parse_object
from downloader.api.origin import check_page
from downloader.api.parse import refusal
from downloader.api.problems import Refused, not_found
from downloader.api.routing import Parameter, ResponseSpec, route
from downloader.observe import Event, get_logger
from downloader.server import Headers, Message
from downloader.wire import Session, moment

_PATH = "/session"

_NO_STORE = {"Cache-Control": "no-store"}

_log = get_logger()


class SessionRequest(BaseModel):
    """The body of `POST /session`."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    token: Annotated[str, Field(min_length=1, description="A configured token.")]


@route(
    "GET",
    _PATH,
    scope=None,
    responses={HTTPStatus.OK: ResponseSpec("Who it is, if anybody.", Session)},
)
async def show(context: Context) -> tuple[Session, dict[str, str]]:
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
    _PATH,
    scope=None,
    body=SessionRequest,
    responses={
        HTTPStatus.CREATED: ResponseSpec("Signed in.", Session, headers={"Set-Cookie": "The session."})
    },
    problems={
        HTTPStatus.BAD_REQUEST: "the body is not a JSON object",
        HTTPStatus.UNAUTHORIZED: "the token is wrong",
        HTTPStatus.NOT_FOUND: "no tokens are configured",
        HTTPStatus.UNPROCESSABLE_ENTITY: "the token is missing or no text",
    },
)
async def begin(context: Context) -> tuple[Session, dict[str, str]]:
    """Sign in.

    For the web page: the cookie of the response stands for the token for twelve hours. With it, requests
    other than `GET` and `HEAD` need the header `X-Downloader-Page: 1`.
    """
    if not context.callers:
        raise not_found("No tokens are configured.")
    try:
        credentials = SessionRequest.model_validate(parse_object(await request.data))
    except ValidationError as error:
        raise refusal(error) from None
    owner = find_token(context.callers, credentials.token.encode())
    if owner is None:
        scope = cast("Message", request.scope)
        client = scope["client"][0] if scope["client"] else None
        _log.info(Event.API_REFUSED, reason=UNAUTHORIZED.code, token=None, client=client)
        raise Refused(UNAUTHORIZED)
    digest, caller = owner
    ends = int(time.time()) + SESSION_S
    name = SECURE_COOKIE if _is_secure() else COOKIE
    headers = {"Set-Cookie": _cookie(name, sign(digest, ends), SESSION_S), **_NO_STORE}
    return _session(context.callers, caller, ends), headers


@route(
    "DELETE",
    _PATH,
    scope=None,
    parameters=[
        Parameter(
            name="X-Downloader-Page",
            description="`1`.",
            place="header",
            required=True,
            schema={"const": "1"},
        )
    ],
    responses={HTTPStatus.NO_CONTENT: ResponseSpec("The cookie is deleted.", media_type="")},
    problems={HTTPStatus.FORBIDDEN: "the header is missing, or a browser sent it for another site"},
)
async def end(_context: Context) -> Response:
    """Sign out."""
    headers: Headers = cast("Message", request.scope)["headers"]
    check_page(dict(headers))
    response = Response(b"", HTTPStatus.NO_CONTENT, _NO_STORE)
    for name in {name for name, _ in cookies(headers)} & {SECURE_COOKIE, COOKIE}:
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
