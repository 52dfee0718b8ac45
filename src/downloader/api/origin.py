"""Requests that another site made a browser send.

Those that would change something are refused. A form may be posted to any host without asking, with a content
type that `curl -d` sends too, so the content type cannot tell. Browsers say where a request comes from in
`Sec-Fetch-Site`, older ones in `Origin`; programs send neither. Only pages of `api.cors_origins` may read
what `GET` answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus

from downloader.api.asgi import Headers, Message, Send
from downloader.api.problems import Problem, Refused
from downloader.observe import Event, get_logger

_log = get_logger()

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_READING = (b"GET", b"HEAD")

_PREFLIGHT_S = 600
"""For which a browser may remember that a page is allowed."""


def check_origin(headers: Mapping[bytes, bytes]) -> None:
    """Check a request that would change something.

    `Sec-Fetch-Site` decides where it is given: `same-origin` and `none` (typed or bookmarked) pass.
    Without it, an `Origin` must name the host of `Host`; `Origin: null` does not.

    Args:
        headers: names in lower case.

    Raises:
        Refused: 403, code `cross_site`.
    """
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        refused = site.lower() not in (b"same-origin", b"none")
    else:
        origin = headers.get(b"origin")
        refused = origin is not None and (
            origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower() or origin == b""
        )
    if refused:
        _log.info(Event.API_REFUSED, reason="cross_site")
        raise Refused(
            Problem(
                status=HTTPStatus.FORBIDDEN,
                code="cross_site",
                detail="A browser sent this for another site; such requests are refused.",
            )
        )


class Cors:
    """Whose pages may read what `GET` answers, by the Fetch standard's CORS protocol, without credentials."""

    def __init__(self, origins: Iterable[str]) -> None:
        """`origins`: as in `api.cors_origins`; `*` stands for all."""
        self._origins = frozenset(origin.encode() for origin in origins)

    def permits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the page that sent a request may read the answer to a `GET`."""
        origin = headers.get(b"origin")
        return origin is not None and (b"*" in self._origins or origin in self._origins)

    def preflight(self, method: str, headers: Mapping[bytes, bytes]) -> Headers | None:
        """The answer to a browser that asks whether a page may send a `GET` with a token; else `None`."""
        asked = headers.get(b"access-control-request-method")
        if method != "OPTIONS" or asked not in _READING or not self.permits(headers):
            return None
        return [
            *self._headers(headers),
            (b"access-control-allow-methods", b"GET, HEAD"),
            (b"access-control-allow-headers", b"authorization, range, if-none-match, if-range"),
            (b"access-control-max-age", b"%d" % _PREFLIGHT_S),
        ]

    def around(self, send: Send, method: str, headers: Mapping[bytes, bytes]) -> Send:
        """`send`, with what lets an allowed page read the answer."""
        if not self._origins or method not in ("GET", "HEAD"):
            return send
        more = self._headers(headers) if self.permits(headers) else [_VARY]

        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], *more]}
            await send(message)

        return send_with

    def _headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        return [
            (b"access-control-allow-origin", headers[b"origin"]),
            (b"access-control-expose-headers", b"link, retry-after, accept-ranges, content-range, etag"),
            _VARY,
        ]


_VARY = (b"vary", b"origin")
