"""`GET /events`, the stream that the web page reads."""

from __future__ import annotations

import math
from contextlib import suppress
from http import HTTPStatus

import trio

from downloader.api.auth import CALLER, SESSION
from downloader.api.deps import Context
from downloader.api.origin import check_origin
from downloader.api.routing import ResponseSpec, route
from downloader.globs import anything
from downloader.server import ENDLESS, Gone, HttpError, Message, Receive, Send, client_of

_TYPE = "text/event-stream; charset=utf-8"

_START = {
    "type": "http.response.start",
    "status": HTTPStatus.OK,
    "headers": [
        (b"content-type", _TYPE.encode()),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),  # else nginx buffers events
        (b"x-content-type-options", b"nosniff"),
    ],
}


@route(
    "GET",
    "/events",
    scope="read",
    plain=True,
    responses={HTTPStatus.OK: ResponseSpec("The events.", media_type=_TYPE)},
    problems=["too_many_listeners"],
)
async def listen(context: Context, scope: Message, receive: Receive, send: Send) -> None:
    """The state of the fleet as events.

    Server-sent events: `snapshot` after each change, `alive` when nothing changes.
    """
    headers = dict(scope["headers"])
    if not context.cors.permits(headers):  # although it only reads: other sites could hold streams open
        check_origin(headers)
    caller, session = scope[CALLER], scope.get(SESSION)
    allows = anything if caller is None else caller.aggregations
    until = trio.current_time() + session.left_s() if session else math.inf
    scope[ENDLESS] = True
    async with context.events.listener(allows, client_of(scope), until) as events:
        await send(_START)
        if scope["method"] != "HEAD":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_wait_for_disconnect, receive, nursery.cancel_scope)
                with suppress(Gone):
                    async for event in events:
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _wait_for_disconnect(receive: Receive, listening: trio.CancelScope) -> None:
    with suppress(HttpError):  # a malformed body ends the stream
        while (await receive())["type"] != "http.disconnect":
            pass
    listening.cancel()
