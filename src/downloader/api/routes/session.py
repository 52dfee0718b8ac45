"""Sessions of the web page: a cookie that stands for a token, and the routes that set, show and delete it.

The cookie has the time at which the session ends, signed (HMAC-SHA256) with the token's digest. So nothing is
stored, every instance with the token accepts the session, and it ends with the token. It is not the token:
browsers send cookies to every port of a host, and to other services there.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from operator import itemgetter
from typing import Annotated, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from quart import Response, request
from quart_trio import QuartTrio

from downloader.api.answers import SessionAnswer
from downloader.api.auth import SESSION_PATH, UNAUTHORIZED, Caller, Callers, find_token, identify
from downloader.api.json import parse_object
from downloader.api.origin import check_page
from downloader.api.parse import refusal
from downloader.api.problems import Refused, not_found
from downloader.api.views import rfc3339
from downloader.observe import Event, get_logger
from downloader.server import Headers, Message

SESSION = "downloader.session"
"""Key in the ASGI scope: the `Session` by which the request was accepted; absent without one."""

SESSION_S = 12 * 3600
"""A long working day; then the page asks for the token again."""

COOKIE = "downloader-session"
SECURE_COOKIE = f"__Host-{COOKIE}"
"""Browsers accept a cookie of this name only over TLS and from this very host (RFC 6265bis, 4.1.3)."""

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session that has not ended."""

    caller: Caller
    ends: int
    """Unix time in seconds."""

    def left_s(self) -> float:
        """Seconds until it ends."""
        return self.ends - time.time()


class SessionRequest(BaseModel):
    """The body of `POST /session`."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    token: Annotated[str, Field(min_length=1, description="A configured token.")]


def sign(digest: bytes, ends: int) -> str:
    """The cookie's value, for the token with this digest."""
    return f"{ends}.{hmac.digest(digest, b'session %d' % ends, 'sha256').hex()}"


def find_session(callers: Callers, scope: Message) -> Session | None:
    """The session of a request without `Authorization`; `None` if there is none or it has ended.

    Over TLS only `SECURE_COOKIE` counts: other hosts of the same domain can set the other one. Without
    TLS both do, because a proxy in front may have it, and `SECURE_COOKIE` comes first.
    """
    headers: Headers = scope["headers"]
    if any(name == b"authorization" for name, _ in headers):
        return None
    names = (SECURE_COOKIE,) if scope["scheme"] == "https" else (SECURE_COOKIE, COOKIE)
    given = [(names.index(name), value) for name, value in _cookies(headers) if name in names]
    found = None
    for _, value in sorted(given, key=itemgetter(0))[:_COOKIES]:
        ends = value.partition(".")[0]
        if not (ends.isascii() and ends.isdigit() and len(ends) <= _DIGITS) or int(ends) <= time.time():
            continue
        for digest, caller in callers:  # no break: the time must not depend on which one matches
            if hmac.compare_digest(sign(digest, int(ends)).encode(), value.encode()):
                found = found or Session(caller=caller, ends=int(ends))
    return found


def add_session(app: QuartTrio, callers: Callers) -> None:
    """`GET`, `POST` and `DELETE /session`."""

    @app.get(SESSION_PATH)
    async def show() -> tuple[SessionAnswer, int, dict[str, str]]:
        scope = cast("Message", request.scope)
        session = find_session(callers, scope)
        caller = session.caller if session else None
        if callers and caller is None:
            try:
                caller = identify(callers, scope["headers"])
            except Refused:
                caller = None
        return _answer(callers, caller, session.ends if session else None), HTTPStatus.OK, _NO_STORE

    @app.post(SESSION_PATH)
    async def begin() -> tuple[SessionAnswer, int, dict[str, str]]:
        if not callers:
            raise not_found("No tokens are configured.")
        try:
            asked = SessionRequest.model_validate(parse_object(await request.data))
        except ValidationError as error:
            raise refusal(error) from None
        found = find_token(callers, asked.token.encode())
        if found is None:
            scope = cast("Message", request.scope)
            client = scope["client"][0] if scope["client"] else None
            _log.info(Event.API_REFUSED, reason=UNAUTHORIZED.code, token=None, client=client)
            raise Refused(UNAUTHORIZED)
        digest, caller = found
        ends = int(time.time()) + SESSION_S
        name = SECURE_COOKIE if _is_secure() else COOKIE
        headers = {"Set-Cookie": _cookie(name, sign(digest, ends), SESSION_S), **_NO_STORE}
        return _answer(callers, caller, ends), HTTPStatus.CREATED, headers

    @app.delete(SESSION_PATH)
    async def end() -> Response:
        headers: Headers = cast("Message", request.scope)["headers"]
        check_page(dict(headers))
        response = Response(b"", HTTPStatus.NO_CONTENT, _NO_STORE)
        for name in {name for name, _ in _cookies(headers)} & {SECURE_COOKIE, COOKIE}:
            response.headers.add("Set-Cookie", _cookie(name, "", 0))
        return response


def _answer(callers: Callers, caller: Caller | None, ends: int | None) -> SessionAnswer:
    return {
        "tokens": bool(callers),
        "name": caller.name if caller else None,
        "scopes": sorted(caller.scopes) if caller else [],
        "expires_at": rfc3339(ends * 1000 if ends else None),
    }


def _is_secure() -> bool:
    """Whether the browser uses TLS: to this process, or by the page's origin to a proxy in front of it."""
    return request.scheme == "https" or request.headers.get("Origin", "").startswith("https://")


def _cookie(name: str, value: str, seconds: int) -> str:
    secure = "; Secure" if name == SECURE_COOKIE else ""
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


def _cookies(headers: Headers) -> Iterator[tuple[str, str]]:
    """Name and value of each cookie; HTTP/2 may spread them over several headers."""
    for name, value in headers:
        if name == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                cookie, _, text = pair.strip().partition("=")
                yield cookie, text


_NO_STORE = {"Cache-Control": "no-store"}

_DIGITS = 12
"""Bytes of a Unix time, until the year 33658."""

_COOKIES = 4
"""Most cookies of a request that are looked at. Each is compared with each token, and a head has room for
hundreds."""
