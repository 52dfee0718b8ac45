"""The API as an OpenAPI 3.1 document, and that document as a page.

Made from the declarations of the routes, the types of requests and responses, the codes of problems and the
limits of the configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from html import escape
from http import HTTPStatus
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from pydantic import TypeAdapter

from downloader import __version__
from downloader.api.problems import CODES, CONTENT_TYPE, STATUSES
from downloader.api.routing import JSON, ResponseSpec, Route, Schema
from downloader.config import ApiSettings
from downloader.wire import NO_CALLBACK, Callback, Problem

Document = dict[str, Any]

_CODE = re.compile(r"`([^`]+)`")

_BOUNDS = {"ge": "minimum", "le": "maximum"}

_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")
"""A variable in a rule of werkzeug."""

_INTRODUCTION = (
    "Downloads files politely: jobs over HTTP, limits per aggregation over a whole fleet, a callback when"
    " done. Errors are problem documents (RFC 9457) with a stable `code`. Unknown fields of a job are ignored"
    " and come back as `warnings`; `null` means that a field is absent."
)
_WEBHOOK_HEADERS = {
    "webhook-id": "The same for each attempt at one callback: the job's id, with an addition for the result"
    " of a download that was run again.",
    "webhook-timestamp": "When it was sent, in Unix seconds.",
    "webhook-signature": "With a secret configured: signatures of id, timestamp and body.",
    "traceparent": "That of the request that brought the job, if it had one (W3C Trace Context).",
}


PATH_PARAMETERS: Mapping[str, tuple[str, Schema]] = {
    "job_id": (
        "The job's id, as in the response to the job's POST.",
        {"type": "string", "pattern": "^[0-9A-Za-z]{14}$"},
    ),
    "aggr_id": ("The aggregation's name; it may have slashes.", {"type": "string"}),
    "role": ("Whose counters.", {"type": "string", "enum": ["processor", "notifier"]}),
    "key": ("The file's path, `file.path` of the job; it has slashes.", {"type": "string"}),
    "group": ("The group's name.", {"type": "string"}),
    "name": ("The file's name.", {"type": "string", "pattern": r"^[\w.-]+$"}),
}
"""Description and schema of the variables in rules."""


class Description:
    """The document and the page, each made on the first access, which takes 0.3 s."""

    def __init__(self, routes: Sequence[Route], settings: ApiSettings, backends: Iterable[str]) -> None:
        self._make = partial(openapi_document, routes, settings, backends)

    @cached_property
    def json(self) -> bytes:
        """The document."""
        return json.dumps(self._make()).encode()

    @cached_property
    def page(self) -> str:
        """The document as HTML."""
        return render(self._make())


def openapi_document(routes: Sequence[Route], settings: ApiSettings, backends: Iterable[str]) -> Document:
    """The document for an API with these settings, and these notifier backends by name."""
    types = {id(kind): kind for route in routes for kind in _types(route)}
    types[id(Problem)] = Problem
    requests = [route.body for route in routes]
    schemas, definitions = TypeAdapter.json_schemas(
        [
            (
                key,
                "validation" if kind in requests else "serialization",
                TypeAdapter(kind),
            )
            for key, kind in types.items()
        ],
        ref_template="#/components/schemas/{model}",
    )
    by_type = {key: schema for (key, _), schema in schemas.items()}
    paths: dict[str, Document] = {}
    for route in routes:
        operation = _operation(route, by_type, tokens=bool(settings.tokens))
        paths.setdefault(_VARIABLE.sub(r"{\1}", route.rule), {})[route.method.lower()] = operation
    components = {name: _tidy(schema) for name, schema in definitions["$defs"].items()}
    _complete_job(components["DownloadRequest"], backends, int(settings.max_body))
    components["Problem"]["properties"]["code"] = {
        "description": "Stable, for programs.",
        "oneOf": [{"const": code, "description": meaning} for code, meaning in CODES.items()],
    }
    document: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "downloader",
            "version": __version__,
            "description": _INTRODUCTION,
            "license": {"name": "GPL-3.0-or-later", "identifier": "GPL-3.0-or-later"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components},
    }
    if settings.tokens:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


def render(document: Document) -> str:
    """Render a document of `openapi_document` as HTML that loads only a style sheet of this service."""
    environment = Environment(
        loader=PackageLoader("downloader.api", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["words"] = _words
    return environment.get_template("reference.html.j2").render(document)


def _words(text: str) -> Markup:
    """Text as HTML, with code between backticks."""
    return Markup(_CODE.sub(r"<code>\1</code>", escape(text)))  # noqa: S704 - it is escaped


def _types(route: Route) -> list[Any]:
    kinds = [route.body, route.callback, *(response.body for response in route.responses.values())]
    return [kind for kind in kinds if kind is not None]


def _operation(route: Route, schemas: Mapping[int, Document], *, tokens: bool) -> Document:
    """An operation object."""
    names = _VARIABLE.findall(route.rule)
    path = re.sub(r"[^a-z]+", "_", _VARIABLE.sub("", route.rule)).strip("_") or "page"
    operation: Document = {
        "operationId": "_".join([route.method.lower(), path, *names]),
        "summary": route.summary,
        "parameters": [_path_parameter(name) for name in names]
        + _query_parameters(route)
        + [{"in": "header", **header} for header in route.headers],
        "responses": {
            **{str(int(status)): _response(spec, schemas) for status, spec in route.responses.items()},
            **{str(status): _problem(meaning) for status, meaning in problem_meanings(route).items()},
            "default": _problem("What any route may answer."),
        },
    }
    if route.description:
        operation["description"] = route.description
    if route.body is not None:
        content = {route.body_type: {"schema": schemas[id(route.body)]}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.callback is not None:
        summary = "The job has ended" if route.callback is Callback else "The group is complete"
        called = _callback(summary, schemas[id(route.callback)])
        operation["callbacks"] = {"finished": {"{$request.body#/callback_dst}": {"post": called}}}
    if tokens:
        operation["security"] = [{"token": [route.scope]}] if route.scope else []
    return operation


def _path_parameter(name: str) -> Document:
    description, schema = PATH_PARAMETERS[name]
    return {"name": name, "in": "path", "required": True, "description": description, "schema": dict(schema)}


def _query_parameters(route: Route) -> list[Document]:
    fields = _tidy(route.query.model_json_schema())["properties"] if route.query is not None else {}
    parameters: list[Document] = []
    for name, schema in fields.items():
        if not schema["default"]:  # absent
            del schema["default"]
        description = schema.pop("description")
        parameters.append({"name": name, "in": "query", "description": description, "schema": schema})
    return parameters


def _response(spec: ResponseSpec, schemas: Mapping[int, Document]) -> Document:
    response: Document = {"description": spec.description}
    if spec.media_type:
        schema = {} if spec.body is None else {"schema": schemas[id(spec.body)]}
        response["content"] = {spec.media_type: schema}
    if spec.headers:
        response["headers"] = {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in spec.headers.items()
        }
    return response


def problem_meanings(route: Route) -> Mapping[int, str]:
    """What the problems of a route mean, by status."""
    meanings: dict[int, str] = {}
    if route.body is not None and route.body_type == JSON:
        meanings[HTTPStatus.BAD_REQUEST] = CODES["not_an_object"]
        meanings[HTTPStatus.UNPROCESSABLE_ENTITY] = "Fields are at fault, all of them in `errors`."
    if route.query is not None:
        meanings[HTTPStatus.UNPROCESSABLE_ENTITY] = CODES["query"]
    for code in route.problems:
        status = STATUSES[code]
        meanings[status] = f"{meanings.get(status, '')} {CODES[code]}".lstrip()
    return {int(status): meaning for status, meaning in meanings.items()}


def _problem(meaning: str) -> Document:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": meaning, "content": {CONTENT_TYPE: {"schema": schema}}}


def _callback(summary: str, payload: Document) -> Document:
    """The request that reports the end of a job or group to an `http` destination."""
    return {
        "summary": summary,
        "description": "Sent to `callback_dst`, or of a failed job to its `callback_error_dst`, if the type"
        " is `http`; the headers are those of Standard Webhooks. Other backends send the same payload.",
        "parameters": [
            {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}
            for name, description in _WEBHOOK_HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {JSON: {"schema": payload}}},
        "responses": {
            "2XX": {"description": "Delivered."},
            str(int(HTTPStatus.GONE)): {"description": "Not wanted: it is not sent again."},
            "default": {"description": "It is sent again on a schedule, not before `Retry-After`."},
        },
    }


def _complete_job(schema: Document, backends: Iterable[str], max_body: int) -> None:
    """Add the backends and the size limit to a job's schema, and `null` to optional fields."""
    for name in ("callback_type", "callback_error_type"):
        schema["properties"][name]["enum"] = ["", NO_CALLBACK, *sorted(backends), None]
    for name, field in schema["properties"].items():
        field["description"] = " ".join(field["description"].split())
        if name not in schema["required"] and "type" in field:
            field["type"] = [field["type"], "null"]
    schema["description"] += f" The body has at most {max_body} bytes."


def _tidy(schema: Any) -> Any:
    """A schema without the titles that pydantic makes, and with JSON Schema's names for bounds.

    Pydantic writes `ge` where a validator runs before the bound is checked.
    """
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        _BOUNDS.get(name, name): {key: _tidy(field) for key, field in value.items()}
        if name == "properties"
        else _tidy(value)
        for name, value in schema.items()
        if name != "title"
    }
