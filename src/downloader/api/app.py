"""The API as one ASGI application, and `serve`, which runs the application on sockets.

For every route the application checks the host, the token, the origin and the size of the body, and turns
errors into problem documents. Some routes are plain ASGI functions, the others are Quart's views:
`docs/design/http.md` has the measurements.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPMethod, HTTPStatus
from typing import Any

import trio
from pydantic import BaseModel
from pydantic_core import to_json
from quart import Response, request
from quart.typing import ResponseReturnValue
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.routing import PathConverter

from downloader.api.auth import CALLER, SESSION, Caller, check_scope, find_session, identify, read_tokens
from downloader.api.deps import ApiDeps, Context
from downloader.api.events import Events, Pace
from downloader.api.intake import BULK_PATH, Intake
from downloader.api.openapi import Description
from downloader.api.origin import SAFE_METHODS, Cors, check_origin, check_page, host_check
from downloader.api.problems import (
    CONTENT_TYPE,
    Problem,
    Refused,
    problem,
    refused,
    too_large,
)
from downloader.api.routes import ROUTES
from downloader.api.routing import JSON, Query, Route, bad_query, read_query
from downloader.api.search import Aggregations
from downloader.api.submission import TRACE, traceparent
from downloader.config import Scope
from downloader.model import status_phrase
from downloader.observe import Event, SpanKind, Traces, get_logger
from downloader.server import (
    RESERVED,
    AsgiApp,
    HttpError,
    Message,
    Receive,
    Send,
    send_response,
    serve_http,
)
from downloader.store import StoreError, StoreRefused
from downloader.wire import Callback

_log = get_logger()


class Api:
    """The ASGI application; the constructor opens and starts nothing.

    Submissions need `context.intake.run`, and `GET /events` needs `context.events.run`; `serve` runs both.
    """

    def __init__(self, deps: ApiDeps, pace: Pace | None = None) -> None:
        settings, store = deps.settings, deps.store
        self.context = Context(
            deps=deps,
            store=store,
            callers=read_tokens(settings.tokens),
            cors=Cors(settings.cors_origins),
            intake=Intake(store, deps.counters),
            events=Events(store, pace),
            search=Aggregations(store),
            description=Description(ROUTES, settings, deps.backends),
        )
        self._check_host = host_check(settings.allowed_hosts, loopback=deps.loopback)
        self._quart = create_quart(self.context)
        self._urls = self._quart.url_map.bind("")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request; the scope's type must be `http`.

        All checks run before any of the body is read.
        """
        deps, cors = self.context.deps, self.context.cors
        method, headers = scope["method"], dict(scope["headers"])
        send = cors.around(send, method, headers)
        route = self._find(method, scope["path"])
        try:
            self._check_host(scope["headers"], scope["server"])
            if preflight := cors.preflight(method, headers):
                await send_response(send, status=HTTPStatus.NO_CONTENT, headers=preflight, body=b"")
                return
            scope[CALLER] = self._admit(scope, headers, route)
            if route is not None and route.plain:
                serve: AsgiApp = partial(route.handler, self.context)
                if deps.traces and route.callback is Callback:
                    serve = partial(_traced, deps.traces, serve)
                await serve(scope, receive, send)
                deps.counters.add("requests", 1, route.rule, "2xx")
            else:
                await self._quart(scope, receive, send)  # type: ignore[arg-type]  # ASGI dictionaries are Any here
        except (Refused, HttpError, StoreError) as error:
            answer = as_problem(error)
            rule = route.rule if route and route.plain else UNKNOWN
            deps.counters.add("requests", 1, rule, status_class(answer.status))
            if route and route.callback is Callback:
                deps.counters.add("jobs_refused", 1, rule, answer.code)
            await send_response(send, status=answer.status, headers=answer.headers(), body=answer.body())

    def _find(self, method: str, path: str) -> Route | None:
        """The route of a request; `None` if Quart responds: no route matches, or the method is `OPTIONS`."""
        if route := _PLAIN.get((method, path)):  # werkzeug takes 20 us
            return route
        if path.startswith("//"):  # werkzeug would drop one of the slashes
            return None
        try:
            endpoint, _ = self._urls.match(path, method)
        except HTTPException:
            return None
        route = _BY_ENDPOINT.get(endpoint)
        return route if method != "OPTIONS" or (route and route.every_method) else None

    def _admit(self, scope: Message, headers: Mapping[bytes, bytes], route: Route | None) -> Caller | None:
        """Run the checks of every route; returns the caller, `None` while the API is open.

        Raises:
            Refused: a check failed.
        """
        path, method = scope["path"], scope["method"]
        if scope.get(RESERVED) and not (route and route.when_crowded):
            raise refused("too_many_connections")
        needed = route.scope if route else _scope_elsewhere(method)
        caller = self._identify(scope, needed) if self.context.callers and needed else None
        if method not in SAFE_METHODS:
            (check_page if SESSION in scope else check_origin)(headers)
        if path.startswith("//"):  # URL parsers would read the next part as a host
            raise refused("not_found")
        limit = self.context.deps.settings.max_body
        if path != BULK_PATH and int(headers.get(b"content-length", 0)) > limit:
            raise Refused(too_large(limit))
        return caller

    def _identify(self, scope: Message, needed: Scope) -> Caller:
        """The owner of the request's token or session; logs a refusal, with the token's name only.

        Raises:
            Refused: 401 or 403.
        """
        caller: Caller | None = None
        try:
            if session := find_session(self.context.callers, scope):
                scope[SESSION], caller = session, session.caller
            else:
                caller = identify(self.context.callers, scope["headers"])
            check_scope(caller, needed)
        except Refused as error:
            name = caller.name if caller else None
            client = scope["client"][0] if scope["client"] else None
            _log.info(Event.API_REFUSED, reason=error.problem.code, token=name, client=client)
            raise
        return caller


async def _traced(traces: Traces, serve: AsgiApp, scope: Message, receive: Receive, send: Send) -> None:
    """Serve a request in a span; `scope[TRACE]` has the context of the span, for the jobs of the request."""
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
    failure: Refused | HttpError | StoreError | None = None
    with traces.span(name, kind=SpanKind.SERVER, parent=parent, attributes=attributes) as span:
        scope[TRACE] = span.traceparent
        try:
            await serve(scope, receive, send_noting)
        except (Refused, HttpError, StoreError) as error:
            failure, answer = error, as_problem(error)
            span.set({"http.response.status_code": answer.status})
            if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                span.fail(str(int(answer.status)), answer.code)
    if failure is not None:
        raise failure


def create_quart(context: Context) -> QuartTrio:
    """The Quart application, without tasks and resources."""
    deps = context.deps
    app = QuartTrio("downloader.api", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = limit = int(deps.settings.max_body)
    app.config["BODY_TIMEOUT"] = app.config["RESPONSE_TIMEOUT"] = None  # the server bounds each wait
    app.url_map.merge_slashes = False  # `/files//x` is not `/files/x`
    app.url_map.converters["aggregation"] = AggregationName
    app.json.sort_keys = False  # type: ignore[attr-defined]  # the provider that Quart sets by default has it
    for endpoint, route in _BY_ENDPOINT.items():
        # For plain routes Quart handles only OPTIONS, and responds 405 to other methods.
        view = None if route.plain else partial(_view, context, route)
        methods = [*HTTPMethod] if route.every_method else [route.method, "OPTIONS"]
        options = not route.every_method
        app.add_url_rule(route.rule, endpoint, view, methods=methods, provide_automatic_options=options)

    @app.errorhandler(Exception)
    async def answer_error(error: Exception) -> Response:
        answer = too_large(limit) if isinstance(error, RequestEntityTooLarge) else as_problem(error)
        if answer.code == "internal":
            _log.exception(Event.API_FAILED, path=request.path)
        elif isinstance(error, StoreRefused):  # the same again for a repetition, so somebody has to act
            _log.error(Event.API_FAILED, path=request.path, reason=str(error))
        headers = {name.decode(): value.decode() for name, value in answer.headers()}
        return Response(answer.body(), answer.status, headers, content_type=CONTENT_TYPE)

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


async def _view(context: Context, route: Route, **variables: str) -> ResponseReturnValue:
    """The handler's result, in a form that Quart takes, by default with the route's first status."""
    parameters: dict[str, Query] = {}
    if route.query is not None:
        unknown = request.args.keys() - route.query.model_fields.keys()
        if route.method == "POST" and unknown:  # a misspelled filter would change more than was meant
            raise bad_query(min(unknown), "is not a parameter of this route.")
        parameters["query"] = read_query(route.query)
    result = await route.handler(context, **variables, **parameters)
    if isinstance(result, Response):
        return result
    body, *rest = result if isinstance(result, tuple) else (result,)
    if not (rest and isinstance(rest[0], int)):
        rest.insert(0, next(iter(route.responses)))
    if isinstance(body, BaseModel | list):
        body = Response(to_json(body), content_type=JSON)
    return (body, *rest)


class AggregationName(PathConverter):
    """The rest of a path: the name of an aggregation may have slashes, also at the start."""

    regex = ".*"
    part_isolating = False


def status_class(status: int) -> str:
    """The class of a status: `2xx` for 201."""
    return f"{status // 100}xx"


def as_problem(error: Exception) -> Problem:
    """The problem document for an exception of a route."""
    if isinstance(error, Refused):
        return error.problem
    if isinstance(error, HttpError):
        return Problem(error.status, error.code, error.detail)
    if isinstance(error, StoreError):
        return problem("store_unavailable")
    if not isinstance(error, HTTPException):
        return problem("internal")
    status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    phrase = status_phrase(status)
    allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
    return Problem(
        status,
        phrase.lower().replace(" ", "_"),
        f"{HTTPStatus(status).description or phrase}.",
        more_headers=((b"allow", allowed.encode()),) if allowed else (),
    )


UNKNOWN = "other"
"""Label of requests without a route, or refused before the route was known."""

_BY_ENDPOINT = {f"{route.method} {route.rule}": route for route in ROUTES}

_PLAIN = {(route.method, route.rule): route for route in ROUTES if route.plain}


def _scope_elsewhere(method: str) -> Scope:
    """The scope for a request that matches no route."""
    return "read" if method in SAFE_METHODS else "admin"


async def serve(
    app: Api,
    *,
    stop: Callable[[], Awaitable[object]],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """Run the API's background tasks and serve the API; arguments as for `serve_http`.

    When `stop()` returns, streams of events end at once.
    """

    async def stopping() -> None:
        await stop()
        app.context.events.stop()

    async with trio.open_nursery() as background:
        await background.start(app.context.intake.run)
        background.start_soon(app.context.events.run)
        await serve_http(app, stop=stopping, task_status=task_status, **options)
        background.cancel_scope.cancel()
