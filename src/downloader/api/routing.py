"""Routes as values: a function with the declaration that routing, authorization and OpenAPI document use."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from quart import request

from downloader.api.problems import Problem, Refused
from downloader.config import Scope

JSON = "application/json"
NDJSON = "application/x-ndjson"
HTML = "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"

Schema = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of the query, or a header of the request."""

    name: str
    description: str
    place: str = "query"
    required: bool = False
    schema: Schema = field(default_factory=lambda: _TEXT)


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """A response other than a problem document."""

    description: str
    body: Any = None
    """A type that pydantic knows; `None`: there is no JSON."""
    media_type: str = JSON
    """Empty: there is no body."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The meaning of each header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path."""

    method: str
    rule: str
    """The path, with werkzeug's variables."""
    handler: Callable[..., Awaitable[Any]]
    summary: str
    description: str
    """Empty if the summary says everything."""
    scope: Scope | None
    """The scope that a token needs; `None`: no token is needed."""
    responses: Mapping[int, ResponseSpec]
    """By status; the first applies if the handler returns no status."""
    problems: Mapping[int, str]
    """By status, when the response is a problem document; without the problems that every route has."""
    parameters: Sequence[Parameter]
    """Parameters, besides the parameters in the path."""
    body: Any
    """The type of the request's body, for pydantic; `None`: there is none."""
    body_type: str
    calls_back: bool
    """The job of this request is reported by a callback."""
    plain: bool
    """The handler is an ASGI function that sends the response."""
    when_crowded: bool
    """The route is also served on the connections reserved for the time when too many are open."""
    every_method: bool
    """Other methods get the same response."""


def route(
    method: str,
    rule: str,
    *,
    scope: Scope | None,
    responses: Mapping[int, ResponseSpec],
    problems: Mapping[int, str] | None = None,
    parameters: Sequence[Parameter] = (),
    body: Any = None,
    body_type: str = JSON,
    calls_back: bool = False,
    plain: bool = False,
    when_crowded: bool = False,
    every_method: bool = False,
) -> Callable[[Callable[..., Awaitable[Any]]], Route]:
    """Make a `Route` of a function; the arguments are the fields of `Route`.

    The function's docstring describes the route to users: the first line is the summary. The function is
    called with the `Context` and the variables of the path by name; one that is `plain` with the `Context`
    and ASGI's scope, receive and send. It returns what Quart takes as a response, or a model.

    Raises:
        TypeError: the function has no docstring.
    """

    def declare(handler: Callable[..., Awaitable[Any]]) -> Route:
        summary, _, description = (inspect.getdoc(handler) or "").partition("\n\n")
        if not summary:
            raise TypeError(f"{method} {rule} has no description: write a docstring")
        return Route(
            method=method,
            rule=rule,
            handler=handler,
            summary=summary.removesuffix("."),
            description=" ".join(description.split()),
            scope=scope,
            responses=responses,
            problems=problems or {},
            parameters=parameters,
            body=body,
            body_type=body_type,
            calls_back=calls_back,
            plain=plain,
            when_crowded=when_crowded,
            every_method=every_method,
        )

    return declare


CURSOR = Parameter(name="cursor", description="The cursor of an earlier answer; empty: from the start.")

BAD_QUERY = "a parameter is malformed"


def next_page(path: str, cursor: str) -> dict[str, str]:
    """The `Link` header to the next page (RFC 8288); no header if the cursor is empty."""
    query = urlencode({**request.args.to_dict(), "cursor": cursor})
    return {"Link": f'<{path}?{query}>; rel="next"'} if cursor else {}


def bad_query(field: str, detail: str) -> Refused:
    """422: a parameter of the query is malformed."""
    return Refused(
        Problem(status=HTTPStatus.UNPROCESSABLE_ENTITY, code="query", detail=f"{field} {detail}", field=field)
    )
