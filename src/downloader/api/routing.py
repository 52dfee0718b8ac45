"""Routes as values: a function with the declaration that routing, authorization and OpenAPI document use."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema
from quart import request

from downloader.api.problems import Refused, refused
from downloader.config import Scope

JSON = "application/json"
NDJSON = "application/x-ndjson"
HTML = "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"

Schema = Mapping[str, Any]


class Query(BaseModel):
    """Base of the parameters of a query, by name. An empty parameter counts as absent."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)


class Paged(Query):
    """Parameters of a list with pages."""

    cursor: str = ""
    """The cursor of an earlier answer; empty: from the start."""


Flag = Annotated[bool, WithJsonSchema({"type": "string", "enum": ["1", "0"]})]
"""A parameter that is `1` or absent."""


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


Handler = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Declaration:
    """The decorator of a handler, `route`: one method of one path.

    The handler's docstring describes the route to users: the first line is the summary. The handler is called
    with the `Context` and the path's variables by name, and returns a model or a response that Quart accepts.
    A `plain` handler is called with the `Context` and ASGI's scope, receive and send.
    """

    method: str
    rule: str
    """The path, with werkzeug's variables."""
    _: KW_ONLY
    scope: Scope | None
    """The scope that a token needs; `None`: no token is needed."""
    responses: Mapping[int, ResponseSpec]
    """By status; the first applies if the handler returns no status."""
    problems: Sequence[str] = ()
    """The codes of problems, without those that every route has, and those of a body in JSON."""
    query: type[Query] | None = None
    """The parameters, which the handler gets as `query`; `None`: there are none."""
    headers: Sequence[Schema] = ()
    """Headers that the route reads, as parameter objects of OpenAPI."""
    body: Any = None
    """The type of the request's body, for pydantic; `None`: there is none."""
    body_type: str = JSON
    callback: Any = None
    """The type of the payload that a later callback has, `Callback` or `GroupCallback`; `None`: there is no
    callback."""
    plain: bool = False
    """The handler is an ASGI function that sends the response."""
    when_crowded: bool = False
    """The route is also served on the connections of the reserve, while too many are open."""
    every_method: bool = False
    """Other methods get the same response."""

    def __call__(self, handler: Handler) -> Route:
        """The route with this handler.

        Raises:
            TypeError: the handler has no docstring.
        """
        summary, _, description = (inspect.getdoc(handler) or "").partition("\n\n")
        if not summary:
            raise TypeError(f"{self.method} {self.rule} has no description: write a docstring")
        return Route(
            **vars(self),
            handler=handler,
            summary=summary.removesuffix("."),
            description=" ".join(description.split()),
        )


route = Declaration


@dataclass(frozen=True, kw_only=True)
class Route(Declaration):
    """A declaration and the handler."""

    handler: Handler
    summary: str
    description: str
    """Empty if the summary says everything."""


def next_page(path: str, cursor: str) -> dict[str, str]:
    """The `Link` header to the next page (RFC 8288); no header if the cursor is empty."""
    query = urlencode({**request.args.to_dict(), "cursor": cursor})
    return {"Link": f'<{path}?{query}>; rel="next"'} if cursor else {}


def read_query(model: type[Query]) -> Query:
    """The parameters of Quart's request.

    Raises:
        Refused: 422, with the parameter at fault.
    """
    try:
        return model.model_validate({name: text for name, text in request.args.items() if text})
    except ValidationError as error:
        [details, *_] = error.errors(include_url=False, include_input=False)
        detail = details["msg"].removeprefix("Value error, ").replace("Input should", "must")
        raise bad_query(str(details["loc"][0]), f"{detail}.") from None


def bad_query(field: str, detail: str) -> Refused:
    """422: a parameter of the query is malformed."""
    return refused("query", f"{field} {detail}", field=field)
