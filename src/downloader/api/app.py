"""The HTTP API: `create_app` makes it, `serve` puts it on sockets.

`POST /download` (`_download`) and `GET /events` (`_events`) are answered at the ASGI level, everything else
by Quart (`_routes`), all on a small HTTP/1.1 server of our own (`_server` says why). With tokens configured
they are reached only by whoever has one (`_auth`).
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence

import trio

from downloader.api.answer import problem_answer, send_answer
from downloader.api.auth import PUBLIC_PATHS, Caller, check_scope, identify, read_tokens
from downloader.api.deps import ApiDeps
from downloader.api.download import PATH, serve_download
from downloader.api.events import METHODS as EVENTS_METHODS
from downloader.api.events import PATH as EVENTS_PATH
from downloader.api.events import Events, Pace
from downloader.api.intake import Intake
from downloader.api.problems import Refused
from downloader.api.routes import CALLER, create_routes
from downloader.api.server import serve_http
from downloader.api.shared import Limits, Message, Receive, Send
from downloader.observe import Event, get_logger

_log = get_logger()


class Api:
    """The ASGI application.

    `POST /download` is answered only while its `intake` runs, and `GET /events` has something to tell only
    while its `events` do; `serve` sees to both.
    """

    def __init__(self, deps: ApiDeps, pace: Pace | None = None) -> None:
        self.intake = Intake(deps.store)
        self.events = Events(deps.store, pace)
        self._deps = deps
        self._routes = create_routes(deps)
        self._callers = read_tokens(deps.settings.tokens)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; only scopes of type `http` are known.

        Whoever is refused is so before anything of the body is read.
        """
        caller = None
        if self._callers and scope["path"] not in PUBLIC_PATHS:
            try:
                caller = self._admit(scope)
            except Refused as refused:
                await send_answer(problem_answer(refused.problem), send)
                return
        if scope["path"] == PATH and scope["method"] == "POST":
            await serve_download(scope, receive, send, deps=self._deps, intake=self.intake, caller=caller)
        elif scope["path"] == EVENTS_PATH and scope["method"] in EVENTS_METHODS:
            await self.events.serve(scope, receive, send, caller=caller)
        else:
            scope[CALLER] = caller
            await self._routes(scope, receive, send)  # type: ignore[arg-type]  # ASGI dictionaries are Any here

    def _admit(self, scope: Message) -> Caller:
        """Who calls, if it may; what is logged of a token is its name.

        Raises:
            Refused: 401 or 403.
        """
        caller: Caller | None = None
        try:
            caller = identify(self._callers, scope["headers"])
            check_scope(caller, scope["method"], scope["path"])
        except Refused as refused:
            name = caller.name if caller else None
            client = scope["client"][0] if scope["client"] else None
            _log.info(Event.API_REFUSED, reason=refused.problem.code, token=name, client=client)
            raise
        return caller


def create_app(deps: ApiDeps, *, pace: Pace | None = None) -> Api:
    """The API as an ASGI application; opens nothing and starts nothing."""
    return Api(deps, pace)


async def serve(
    app: Api,
    *,
    sockets: Sequence[socket.socket],
    stop: Callable[[], Awaitable[object]],
    grace_s: float = 5.0,
    limits: Limits | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API until `stop()` returns, then at most `grace_s` seconds more.

    Args:
        app: from `create_app`.
        sockets: bound stream sockets (TCP or unix), so that a port in use is the caller's to report;
            owned and closed by this call.
        stop: waited for (a `trio.Event`'s `wait`); then no new connection or request is taken and those
            in flight are answered; streams of events end at once.
        grace_s: seconds for them, after which they are cut.
        limits: what one client may cost.
        task_status: started when the sockets listen.
    """

    async def stopping() -> None:
        await stop()
        app.events.stop()

    async with trio.open_nursery() as background:
        await background.start(app.intake.run)
        background.start_soon(app.events.run)
        await serve_http(
            app, sockets=sockets, stop=stopping, grace_s=grace_s, limits=limits, task_status=task_status
        )
        background.cancel_scope.cancel()
