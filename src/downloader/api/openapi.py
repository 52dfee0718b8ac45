"""`GET /openapi.json`: the API as an OpenAPI 3.1 document.

Made of what the API works with: the model that checks jobs, the types of answers, the codes of problems, the
scopes of tokens and the limits of the configuration. `operations` has the words for each route.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

import trio
from pydantic import TypeAdapter
from quart import Response
from quart_trio import QuartTrio

from downloader import __version__
from downloader.api.answers import CallbackPayload, ProblemAnswer
from downloader.api.auth import needs_token, scope_of
from downloader.api.codes import CODES
from downloader.api.deps import ApiDeps
from downloader.api.fields import NO_CALLBACK, DownloadRequest
from downloader.api.operations import JSON, OPERATIONS, PATH_PARAMETERS, Answer, Operation
from downloader.api.problems import CONTENT_TYPE

Document = dict[str, Any]

_BOUNDS = {"ge": "minimum", "le": "maximum"}

_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")
"""A variable of a rule of werkzeug's."""

_INTRODUCTION = (
    "Downloads files politely: jobs over HTTP, limits per aggregation over a whole fleet, a callback when"
    " done. Errors are problem documents (RFC 9457) with a stable `code`. Unknown fields of a job are ignored"
    " and come back as `warnings`; `null` means that a field is absent."
)
_WEBHOOK_HEADERS = {
    "webhook-id": "The same for each attempt at one callback.",
    "webhook-timestamp": "When it was sent, in Unix seconds.",
    "webhook-signature": "With a secret configured: signatures of id, timestamp and body.",
    "traceparent": "That of the request that brought the job, if it had one (W3C Trace Context).",
}


def add_openapi(app: QuartTrio, deps: ApiDeps) -> None:
    """`GET /openapi.json`."""

    @cache
    def body() -> bytes:
        return json.dumps(openapi_document(deps)).encode()

    @app.get("/openapi.json")
    async def openapi() -> Response:
        # It takes 0.3 s the first time.
        text = await trio.to_thread.run_sync(body)
        return Response(text, content_type=JSON, headers={"Cache-Control": "no-cache"})


def openapi_document(deps: ApiDeps) -> Document:
    """The document for an API with these settings."""
    types = {id(kind): kind for operation in OPERATIONS.values() for kind in _types(operation)}
    types |= {id(kind): kind for kind in (ProblemAnswer, CallbackPayload)}
    schemas, definitions = TypeAdapter.json_schemas(
        [
            (key, "validation" if kind is DownloadRequest else "serialization", TypeAdapter(kind))
            for key, kind in types.items()
        ],
        ref_template="#/components/schemas/{model}",
    )
    by_type = {key: schema for (key, _), schema in schemas.items()}
    paths: dict[str, Document] = {}
    for (method, rule), operation in OPERATIONS.items():
        described = _operation(method, rule, operation, by_type, tokens=bool(deps.settings.tokens))
        paths.setdefault(_VARIABLE.sub(r"{\1}", rule), {})[method.lower()] = described
    components = {name: _tidy(schema) for name, schema in definitions["$defs"].items()}
    _complete_job(components["DownloadRequest"], deps)
    components["ProblemAnswer"]["properties"]["code"] = {
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
    if deps.settings.tokens:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


def _types(operation: Operation) -> list[Any]:
    found = [operation.body, *(answer.body for answer in operation.answers.values())]
    return [kind for kind in found if kind is not None]


def _operation(
    method: str, rule: str, operation: Operation, schemas: Mapping[int, Document], *, tokens: bool
) -> Document:
    """An operation object."""
    names = _VARIABLE.findall(rule)
    path = re.sub(r"[^a-z]+", "_", _VARIABLE.sub("", rule)).strip("_") or "page"
    found: Document = {
        "operationId": "_".join([method.lower(), path, *names]),
        "summary": operation.summary,
        "parameters": [_path_parameter(name) for name in names]
        + [
            {
                "name": each.name,
                "in": each.place,
                "required": each.required,
                "description": each.description,
                "schema": dict(each.schema),
            }
            for each in operation.parameters
        ],
        "responses": {
            **{str(int(status)): _answer(answer, schemas) for status, answer in operation.answers.items()},
            **{str(int(status)): _problem(f"{when}.") for status, when in operation.problems.items()},
            "default": _problem("what any route may answer."),
        },
    }
    if operation.description:
        found["description"] = operation.description
    if operation.body is not None:
        content = {operation.body_type: {"schema": schemas[id(operation.body)]}}
        found["requestBody"] = {"required": True, "content": content}
    if operation.calls_back:
        payload = schemas[id(CallbackPayload)]
        found["callbacks"] = {"finished": {"{$request.body#/callback_dst}": {"post": _callback(payload)}}}
    if tokens:
        found["security"] = [{"token": [scope_of(method, rule)]}] if needs_token(method, rule) else []
    return found


def _path_parameter(name: str) -> Document:
    description, schema = PATH_PARAMETERS[name]
    return {"name": name, "in": "path", "required": True, "description": description, "schema": dict(schema)}


def _answer(answer: Answer, schemas: Mapping[int, Document]) -> Document:
    found: Document = {"description": answer.description}
    if answer.media_type:
        schema = {} if answer.body is None else {"schema": schemas[id(answer.body)]}
        found["content"] = {answer.media_type: schema}
    if answer.headers:
        found["headers"] = {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in answer.headers.items()
        }
    return found


def _problem(when: str) -> Document:
    schema = {"$ref": "#/components/schemas/ProblemAnswer"}
    return {"description": when[0].upper() + when[1:], "content": {CONTENT_TYPE: {"schema": schema}}}


def _callback(payload: Document) -> Document:
    """The request that reports a job's end to an `http` destination."""
    return {
        "summary": "The job has ended",
        "description": "Sent to `callback_dst`, or after a failure to `callback_error_dst`, if the type is"
        " `http`; the headers are those of Standard Webhooks. Other backends send the same payload.",
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


def _complete_job(schema: Document, deps: ApiDeps) -> None:
    """Add to a job's schema what the configuration decides, and that `null` stands for no value."""
    for name in ("callback_type", "callback_error_type"):
        schema["properties"][name]["enum"] = ["", NO_CALLBACK, *sorted(deps.backends), None]
    for name, field in schema["properties"].items():
        field["description"] = " ".join(field["description"].split())
        if name not in schema["required"] and "type" in field:
            field["type"] = [field["type"], "null"]
    schema["description"] += f" The body has at most {int(deps.settings.max_body)} bytes."


def _tidy(schema: Any) -> Any:
    """Without the titles that pydantic makes of names, and with JSON Schema's words for bounds.

    Pydantic writes `ge` where a validator runs before the bound is checked.
    """
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        _BOUNDS.get(name, name): {key: _tidy(each) for key, each in value.items()}
        if name == "properties"
        else _tidy(value)
        for name, value in schema.items()
        if name != "title"
    }
