"""Requests that another site made a browser send: refused where they would change something.

A form may be posted to any host without asking, with a content type that `curl -d` sends too, so the
content type cannot tell. Browsers say where a request comes from in `Sec-Fetch-Site`, older ones in
`Origin`; programs send neither. No CORS header is ever answered, so another site cannot read either.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from downloader.api.problems import Problem, Refused
from downloader.observe import Event, get_logger

_log = get_logger()

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


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
