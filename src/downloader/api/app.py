"""The API as one ASGI application, and `serve`, which runs it on sockets.

For every route the application checks the host, the token, the origin and the size of the body, and turns
errors into problem documents. `POST /download` and `POST /downloads` are plain ASGI functions, all other
routes are Quart's: `docs/design/http.md` has the measurements.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from socket import socket

import trio
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from downloader.api.auth import (
    CALLER,
    PUBLIC_PATHS,
    Caller,
    Callers,
    check_scope,
    identify,
    needs_token,
    read_tokens,
)
from downloader.api.deps import ApiDeps
from downloader.api.hosts import host_check
from downloader.api.intake import BULK_PATH, SINGLE_PATH, Intake
from downloader.api.openapi import add_openapi
from downloader.api.origin import SAFE_METHODS, Cors, check_origin, check_page
from downloader.api.problems import (
    CONTENT_TYPE,
    INTERNAL,
    STORE_UNAVAILABLE,
    Problem,
    Refused,
    not_found,
    too_large,
    unavailable,
)
from downloader.api.reference import add_reference
from downloader.api.routes.aggregations import add_aggregations
from downloader.api.routes.downloads import TRACE, serve_download, serve_downloads, traceparent
from downloader.api.routes.events import PATH as EVENTS_PATH
from downloader.api.routes.events import Events, Pace, add_events
from downloader.api.routes.files import add_files
from downloader.api.routes.health import add_health
from downloader.api.routes.jobs import add_jobs, add_listed
from downloader.api.routes.metrics import add_metrics
from downloader.api.routes.page import add_page
from downloader.api.routes.session import SESSION, add_session, find_session
from downloader.model import status_phrase
from downloader.observe import Event, SpanKind, Traces, get_logger
from downloader.server import (
    RESERVED,
    AsgiApp,
    HttpError,
    Limits,
    Message,
    Receive,
    Send,
    send_response,
    serve_http,
)
from downloader.store import StoreError

_log = get_logger()


class Api:
    """The ASGI application; creating it opens nothing and starts nothing.

    Submissions need `intake.run`, and `GET /events` needs `events.run`; `serve` runs both.
    """

    def __init__(self, deps: ApiDeps, pace: Pace | None = None) -> None:
        self.intake = Intake(deps.store, deps.counters)
        self.events = Events(deps.store, pace)
        self._deps = deps
        self._callers = read_tokens(deps.settings.tokens)
        self._routes = create_routes(deps, self.events, self._callers)
        self._check_host = host_check(deps.settings.allowed_hosts, loopback=deps.loopback)
        self._cors = Cors(deps.settings.cors_origins)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; the scope's type must be `http`.

        All checks run before any of the body is read.
        """
        method, headers = scope["method"], dict(scope["headers"])
        send = self._cors.around(send, method, headers)
        try:
            self._check_host(scope["headers"], scope["server"])
            if preflight := self._cors.preflight(method, headers):
                await send_response(send, status=HTTPStatus.NO_CONTENT, headers=preflight, body=b"")
                return
            caller = self._admit(scope, headers)
            serve_jobs = _INTAKE.get(scope["path"]) if method == "POST" else None
            if serve_jobs is not None:
                serve = partial(serve_jobs, deps=self._deps, intake=self.intake, caller=caller)
                if self._deps.traces:
                    serve = partial(_traced, self._deps.traces, serve)
                await serve(scope, receive, send)
                self._deps.counters.add("requests", 1, scope["path"], "2xx")
            else:
                scope[CALLER] = caller
                await self._routes(scope, receive, send)  # type: ignore[arg-type]  # ASGI dictionaries are Any here
        except (Refused, HttpError, StoreError) as error:
            problem = as_problem(error)
            route = scope["path"] if scope["path"] in _INTAKE else UNKNOWN
            self._deps.counters.add("requests", 1, route, status_class(problem.status))
            if route != UNKNOWN and method == "POST":
                self._deps.counters.add("jobs_refused", 1, route, problem.code)
            await send_response(send, status=problem.status, headers=problem.headers(), body=problem.body())

    def _admit(self, scope: Message, headers: Mapping[bytes, bytes]) -> Caller | None:
        """Check what does not depend on the route; returns the caller, `None` while the API is open.

        Raises:
            Refused: a check failed.
        """
        path, method = scope["path"], scope["method"]
        caller = None
        if path not in PUBLIC_PATHS:
            if scope.get(RESERVED):
                raise Refused(_CROWDED)
            if self._callers and needs_token(method, path):
                caller = self._identify(scope)
            if SESSION in scope and method not in SAFE_METHODS:
                check_page(headers)
            # `/events` is checked although it only reads: a page of another site could hold streams open.
            elif method not in SAFE_METHODS or (path == EVENTS_PATH and not self._cors.permits(headers)):
                check_origin(headers)
        if path.startswith("//"):  # URL parsers would read the next part as a host
            raise not_found("There is no such route.")
        limit = self._deps.settings.max_body
        if path != BULK_PATH and int(headers.get(b"content-length", 0)) > limit:
            raise Refused(too_large(limit))
        return caller

    def _identify(self, scope: Message) -> Caller:
        """The owner of the request's token or session; logs a refusal, with the token's name only.

        Raises:
            Refused: 401 or 403.
        """
        caller: Caller | None = None
        try:
            if session := find_session(self._callers, scope):
                scope[SESSION], caller = session, session.caller
            else:
                caller = identify(self._callers, scope["headers"])
            check_scope(caller, scope["method"], scope["path"])
        except Refused as refused:
            name = caller.name if caller else None
            client = scope["client"][0] if scope["client"] else None
            _log.info(Event.API_REFUSED, reason=refused.problem.code, token=name, client=client)
            raise
        return caller


async def _traced(traces: Traces, serve: AsgiApp, scope: Message, receive: Receive, send: Send) -> None:
    """Answer in a span; its context is in `scope[TRACE]`, for the jobs that the request brings."""
    path = scope["path"]
    attributes = {
        "http.request.method": scope["method"],
        "http.route": path,
        "url.path": path,
        "url.scheme": scope["scheme"],
    }

    async def send_noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            span.set({"http.response.status_code": int(message["status"])})
        await send(message)

    parent = traceparent(dict(scope["headers"]))
    name = f"{scope['method']} {path}"
    refused: Refused | HttpError | StoreError | None = None
    with traces.span(name, kind=SpanKind.SERVER, parent=parent, attributes=attributes) as span:
        scope[TRACE] = span.traceparent
        try:
            await serve(scope, receive, send_noting)
        except (Refused, HttpError, StoreError) as error:
            refused, problem = error, as_problem(error)
            span.set({"http.response.status_code": problem.status})
            if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                span.fail(str(int(problem.status)), problem.code)
    if refused is not None:
        raise refused


def create_routes(deps: ApiDeps, events: Events, callers: Callers = ()) -> QuartTrio:
    """The Quart application; it has no tasks and no resources."""
    app = QuartTrio("downloader.api", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = limit = int(deps.settings.max_body)
    app.config["BODY_TIMEOUT"] = app.config["RESPONSE_TIMEOUT"] = None  # the server bounds each wait
    app.url_map.merge_slashes = False  # `/files//x` is not `/files/x`
    app.json.sort_keys = False  # type: ignore[attr-defined]  # the provider that Quart sets by default has it
    add_health(app, deps)
    add_jobs(app, deps)
    add_aggregations(app, deps)
    add_listed(app, deps)
    add_files(app, deps)
    add_metrics(app, deps)
    add_page(app)
    add_openapi(app, deps)
    add_reference(app, deps)
    add_events(app, events)
    add_session(app, callers)
    # `Api` answers POST itself; Quart answers OPTIONS, and other methods with 405.
    for path in _INTAKE:
        app.add_url_rule(path, path, methods=["POST", "OPTIONS"], provide_automatic_options=True)

    @app.errorhandler(Exception)
    async def answer_error(error: Exception) -> Response:
        problem = too_large(limit) if isinstance(error, RequestEntityTooLarge) else as_problem(error)
        if problem is INTERNAL:
            _log.exception(Event.API_FAILED, path=request.path)
        headers = {name.decode(): value.decode() for name, value in problem.headers()}
        return Response(problem.body(), problem.status, headers, content_type=CONTENT_TYPE)

    @app.after_request
    async def protect(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        if SESSION in request.scope:  # else a shared cache may keep what a cookie gave access to
            response.headers.setdefault("Cache-Control", "private, no-cache")
        rule = request.url_rule
        route = UNKNOWN if rule is None else rule.rule
        deps.counters.add("requests", 1, route, status_class(response.status_code))
        return response

    return app


def status_class(status: int) -> str:
    """`2xx` for 201."""
    return f"{status // 100}xx"


def as_problem(error: Exception) -> Problem:
    """The problem document for an exception of a route."""
    if isinstance(error, Refused):
        return error.problem
    if isinstance(error, HttpError):
        return Problem(error.status, error.code, detail=error.detail)
    if isinstance(error, StoreError):
        return STORE_UNAVAILABLE
    if not isinstance(error, HTTPException):
        return INTERNAL
    status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    phrase = status_phrase(status)
    allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
    return Problem(
        status,
        phrase.lower().replace(" ", "_"),
        detail=f"{HTTPStatus(status).description or phrase}.",
        more_headers=((b"allow", allowed.encode()),) if allowed else (),
    )


UNKNOWN = "other"
"""Stands for the route of a request that was refused before its route was known, or has none."""

_INTAKE = {SINGLE_PATH: serve_download, BULK_PATH: serve_downloads}

_CROWDED = unavailable("too_many_connections", "Too many clients are connected; try again.")


async def serve(
    app: Api,
    *,
    sockets: Sequence[socket],
    stop: Callable[[], Awaitable[object]],
    grace_s: float = 5.0,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the API's background tasks and serve it; arguments as for `serve_http`.

    When `stop()` returns, streams of events end at once.
    """

    async def stopping() -> None:
        await stop()
        app.events.stop()

    async with trio.open_nursery() as background:
        await background.start(app.intake.run)
        background.start_soon(app.events.run)
        await serve_http(
            app,
            sockets=sockets,
            stop=stopping,
            grace_s=grace_s,
            limits=limits,
            tls=tls,
            task_status=task_status,
        )
        background.cancel_scope.cancel()
