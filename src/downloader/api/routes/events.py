"""`GET /events`, the stream that the web page reads."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import cast

import trio
from quart import Response, request

from downloader.api.auth import SESSION, visible_aggregations
from downloader.api.deps import Context
from downloader.api.origin import check_origin
from downloader.api.routing import ResponseSpec, route
from downloader.server import ENDLESS, Message, client_of

_TYPE = "text/event-stream; charset=utf-8"

_HEADERS = {
    "Content-Type": _TYPE,
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # else nginx buffers events
}


@route(
    "GET",
    "/events",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("The events.", media_type=_TYPE)},
    problems={HTTPStatus.SERVICE_UNAVAILABLE: "too many clients listen"},
)
async def listen(context: Context) -> Response:
    """The state of the fleet as events.

    Server-sent events: `snapshot` after each change, `alive` when nothing changes.
    """
    scope = cast("Message", request.scope)
    headers = dict(scope["headers"])
    if not context.cors.permits(headers):  # although it only reads: other sites could hold streams open
        check_origin(headers)
    response = Response(b"", headers=_HEADERS)
    session = scope.get(SESSION)
    until = trio.current_time() + session.left_s() if session else math.inf
    body = context.events.listener(visible_aggregations(), client_of(scope), until)
    if request.method != "HEAD":
        scope[ENDLESS] = True
        response.response = body
        del response.headers["Content-Length"]
    return response
