"""Every route but `POST /download` and `GET /events`, on Quart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any, cast

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from downloader.api.auth import Allows, Caller, anything
from downloader.api.deps import ApiDeps
from downloader.api.download import PATH
from downloader.api.events import PATH as EVENTS_PATH
from downloader.api.files import file_response, is_key
from downloader.api.origin import SAFE_METHODS, check_origin
from downloader.api.problems import CONTENT_TYPE, INTERNAL, STORE_UNAVAILABLE, Problem, Refused, unknown_job
from downloader.api.views import counters, job_view
from downloader.model import status_phrase
from downloader.observe import Event, get_logger
from downloader.store import JobStore, JobView, RetryAnswer, StoreError

CALLER = "downloader.caller"
"""Key of the ASGI scope: the `Caller`, or `None` while the API is open."""

_JOB_ID = re.compile(r"[0-9A-Za-z]{14}")
_ROLES = ("processor", "notifier")
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

_log = get_logger()


def create_routes(deps: ApiDeps) -> QuartTrio:
    """The Quart application; it owns no task and no resource."""
    app = QuartTrio("downloader.api", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = int(deps.settings.max_body)
    app.config["BODY_TIMEOUT"] = app.config["RESPONSE_TIMEOUT"] = None  # the server bounds each wait
    app.url_map.merge_slashes = False  # `//etc` is no other spelling of a route
    app.json.sort_keys = False  # type: ignore[attr-defined]  # the provider that Quart sets by default has it
    _add_errors(app)
    _add_health(app, deps)
    _add_jobs(app, deps)
    _add_files(app, deps)
    _add_page(app)
    # Answered before Quart is asked; known to it, so that other methods get 405 and OPTIONS an answer.
    app.add_url_rule(PATH, "download", methods=["POST", "OPTIONS"], provide_automatic_options=True)
    app.add_url_rule(EVENTS_PATH, "events", methods=["GET", "OPTIONS"], provide_automatic_options=True)

    @app.before_request
    async def refuse_other_sites() -> None:
        if request.method not in SAFE_METHODS:
            check_origin({name.lower().encode(): value.encode() for name, value in request.headers.items()})

    @app.after_request
    async def protect(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return app


def _add_errors(app: QuartTrio) -> None:
    @app.errorhandler(Refused)
    async def refused(error: Refused) -> Response:
        return _problem(error.problem)

    @app.errorhandler(StoreError)
    async def no_store(_error: StoreError) -> Response:
        return _problem(STORE_UNAVAILABLE)

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
        phrase = status_phrase(status)
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return _problem(
            Problem(
                status=status,
                code=phrase.lower().replace(" ", "_"),
                detail=f"{HTTPStatus(status).description or phrase}.",
                more_headers=((b"allow", allowed.encode()),) if allowed else (),
            )
        )

    @app.errorhandler(Exception)
    async def internal(_error: Exception) -> Response:
        _log.exception(Event.API_FAILED, path=request.path)
        return _problem(INTERNAL)


def _add_health(app: QuartTrio, deps: ApiDeps) -> None:
    heartbeat = deps.settings.heartbeat_path

    @app.get("/hb")
    async def hb() -> tuple[dict[str, Any], int]:
        if heartbeat and Path(heartbeat).exists():  # noqa: ASYNC240  one stat of a local path, as quick as a hop
            return {"status": "out of service"}, HTTPStatus.SERVICE_UNAVAILABLE
        return {"status": "ok"}, HTTPStatus.OK

    @app.get("/health/live")
    async def live() -> dict[str, Any]:
        return {"status": "ok"}

    @app.get("/health/ready")
    async def ready() -> tuple[dict[str, Any], int]:
        roles = dict(deps.ready())
        try:
            await deps.store.ping()
            store = True
        except StoreError:
            store = False
        good = store and all(roles.values())
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        answer: dict[str, Any] = {"status": "ok" if good else "not ready", "store": store, "roles": roles}
        # A backend that is unhealthy takes no instance out of service: the others go on, and it would not
        # get better elsewhere.
        if backends := deps.healthy():
            answer["backends"] = dict(backends)
        return answer, status

    @app.get("/stats/<role>")
    async def stats(role: str) -> Mapping[str, Any]:
        if role not in _ROLES:
            raise _not_found("There are statistics of processor and notifier only.")
        return counters(await deps.store.reports(role))


def _add_jobs(app: QuartTrio, deps: ApiDeps) -> None:
    @app.get("/jobs/<job_id>")
    async def job(job_id: str) -> dict[str, Any]:
        view = await _visible_job(deps.store, job_id)
        if view is None:
            raise Refused(unknown_job())
        return job_view(view)

    @app.post("/retry/<job_id>")
    async def retry(job_id: str) -> tuple[dict[str, Any], int, dict[str, str]]:
        answer = RetryAnswer.UNKNOWN
        known = _JOB_ID.fullmatch(job_id) is not None
        if known and (_sees_all() or await _visible_job(deps.store, job_id) is not None):
            again = request.args.get("download", "") not in ("", "0", "false")
            answer = await deps.store.retry(job_id, download=again, limit=deps.callback_limit)
        if answer is RetryAnswer.UNKNOWN:
            raise Refused(unknown_job())
        if answer is RetryAnswer.CONFLICT:
            raise Refused(_NOT_TO_BE_RETRIED)
        return {"id": job_id}, HTTPStatus.CREATED, {"Location": f"/jobs/{job_id}"}

    @app.get("/dashboard/aggregations")
    async def aggregations() -> list[dict[str, Any]]:
        sizes = await deps.store.aggregation_sizes()
        allowed = _aggregations()
        return [
            {"name": f"jobs:{size.aggr_id}", "size": size.pending} for size in sizes if allowed(size.aggr_id)
        ]


def _add_files(app: QuartTrio, deps: ApiDeps) -> None:
    @app.get("/files/<path:key>")
    async def files(key: str) -> Response:
        stored = None
        if deps.files is not None and is_key(key) and (_sees_all() or await _is_visible(deps.store, key)):
            stored = await deps.files(key)
        response = await file_response(stored, request) if stored is not None else None
        if response is None:
            raise _not_found("There is no such file.")
        return response


def _aggregations() -> Allows:
    """Which aggregations the request's caller may see."""
    caller = cast("Caller | None", request.scope.get(CALLER))
    return anything if caller is None else caller.aggregations


def _sees_all() -> bool:
    return _aggregations() is anything


async def _visible_job(store: JobStore, job_id: str) -> JobView | None:
    """The job, if there is one with this id that the caller may see."""
    view = await store.get(job_id) if _JOB_ID.fullmatch(job_id) else None
    return view if view is not None and _aggregations()(view.spec.aggr_id) else None


async def _is_visible(store: JobStore, key: str) -> bool:
    """Whether the stored file belongs to a job that the caller may see."""
    view = await _visible_job(store, key.rpartition("/")[2])
    return view is not None and view.spec.storage_key == key


def _add_page(app: QuartTrio) -> None:
    web = resources.files("downloader.web")
    pages = {name: (web / name).read_bytes() for name in _TYPES}

    def page(name: str) -> Response:
        headers = {
            "Content-Type": _TYPES[name],
            "Content-Security-Policy": _PAGE_POLICY,
            "Cache-Control": "no-cache",  # after an upgrade the page and its script must be of one version
            "Referrer-Policy": "no-referrer",
        }
        return Response(pages[name], headers=headers)

    @app.get("/")
    async def index() -> Response:
        return page("index.html")

    @app.get("/web/<name>")
    async def asset(name: str) -> Response:
        if name not in pages:
            raise _not_found("There is no such page.")
        return page(name)


_NOT_TO_BE_RETRIED = Problem(
    status=HTTPStatus.CONFLICT,
    code="not_to_be_retried",
    detail="Only what has failed is tried again: its callback, or with ?download=1 its download.",
)


def _not_found(detail: str) -> Refused:
    return Refused(Problem(status=HTTPStatus.NOT_FOUND, code="not_found", detail=detail))


def _problem(problem: Problem) -> Response:
    headers = {name.decode(): value.decode() for name, value in problem.headers()}
    return Response(problem.body(), problem.status, headers, content_type=CONTENT_TYPE)
