"""`GET /docs`: the OpenAPI document as a page, which loads nothing but a style sheet of this service."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from typing import Any

import trio
from quart import Response
from quart_trio import QuartTrio

from downloader.api.deps import ApiDeps
from downloader.api.openapi import Document, openapi_document

_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
}
_CODE = re.compile(r"`([^`]+)`")
_BOUNDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "maxProperties": "at most {} members",
    "pattern": "pattern `{}`",
    "format": "{}",
}


def add_reference(app: QuartTrio, deps: ApiDeps) -> None:
    """`GET /docs`."""

    @cache
    def body() -> str:
        return render(openapi_document(deps))

    @app.get("/docs")
    async def reference() -> Response:
        return Response(await trio.to_thread.run_sync(body), headers=_HEADERS)


def render(document: Document) -> str:
    """The whole page, for documents of `openapi_document`."""
    return "".join(_page(document))


def _page(document: Document) -> Iterator[str]:
    info, schemas = document["info"], document["components"]["schemas"]
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    title = f"{escape(info['title'])} {escape(info['version'])}: HTTP API"
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
        '<link rel="icon" href="web/icon.svg"><link rel="stylesheet" href="web/docs.css"></head><body>'
        f"<header><h1>{title}</h1><p>{_words(info['description'])}</p>"
        '<p><a href="openapi.json">OpenAPI document</a></p></header><nav aria-label="Contents"><ul>'
    )
    for method, path, operation in operations:
        yield f'<li><a href="#{operation["operationId"]}"><b>{method.upper()}</b> {escape(path)}</a></li>'
    yield '<li><a href="#schemas">Objects</a></li><li><a href="#codes">Problem codes</a></li></ul></nav>'
    yield "<main>"
    for method, path, operation in operations:
        yield f'<section id="{operation["operationId"]}">'
        yield from _operation(f"{method.upper()} {path}", operation, level=2)
        for callback in operation.get("callbacks", {}).values():
            for request in callback.values():
                yield from _operation("Callback", request["post"], level=3)
        yield "</section>"
    yield '<section id="schemas"><h2>Objects</h2>'
    for name, schema in schemas.items():
        yield f'<h3 id="{name}">{name}</h3><p>{_words(schema.get("description", ""))}</p>'
        required = schema.get("required", ())
        rows = [
            (f"<code>{escape(field)}</code>", _type(each), _always(field in required) + _field(each))
            for field, each in schema["properties"].items()
        ]
        yield from _table(("Field", "Type", ""), rows)
    codes = schemas["ProblemAnswer"]["properties"]["code"]["oneOf"]
    yield '</section><section id="codes"><h2>Problem codes</h2>'
    yield from _table(
        ("Code", "Means"), [(f"<code>{each['const']}</code>", _words(each["description"])) for each in codes]
    )
    yield "</section></main></body></html>"


def _operation(title: str, operation: Document, *, level: int) -> Iterator[str]:
    yield f"<h{level}><code>{escape(title)}</code> {_words(operation['summary'])}</h{level}>"
    yield f"<p>{_words(operation.get('description', ''))}</p>"
    for requirement in operation.get("security", ()):
        yield f"<p>Needs a token with the scope <code>{', '.join(requirement['token'])}</code>.</p>"
    if parameters := operation.get("parameters"):
        rows = [
            (
                f"<code>{escape(each['name'])}</code>",
                f"{each['in']}: {_type(each['schema'])}",
                _always(each.get("required", False)) + _field(each["schema"] | each),
            )
            for each in parameters
        ]
        yield from _table(("Parameter", "In", ""), rows)
    if body := operation.get("requestBody"):
        for kind, content in body["content"].items():
            yield f"<p>Body, <code>{escape(kind)}</code>: {_type(content['schema'])}</p>"
    rows = [
        (
            f"<code>{escape(status)}</code>",
            "<br>".join(
                f"<code>{escape(kind)}</code> {_type(content.get('schema', {}))}"
                for kind, content in response.get("content", {}).items()
            ),
            _words(response["description"])
            + "".join(
                f"<br><code>{escape(name)}</code>: {_words(header['description'])}"
                for name, header in response.get("headers", {}).items()
            ),
        )
        for status, response in operation["responses"].items()
    ]
    yield from _table(("Status", "Body", ""), rows)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """A table; cells are HTML."""
    yield '<div class="table"><table><thead><tr>'
    yield from (f"<th>{head}</th>" if head else "<td></td>" for head in heads)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    yield "</tbody></table></div>"


def _type(schema: Mapping[str, Any]) -> str:
    """The type in words, with links to the objects."""
    if name := schema.get("$ref"):
        name = name.rpartition("/")[2]
        return f'<a href="#{name}">{name}</a>'
    if options := schema.get("anyOf"):
        return " or ".join(map(_type, options))
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    values = schema.get("additionalProperties")
    if isinstance(values, Mapping):
        return f"object of {_type(values)}"
    kind = schema.get("type", "any")
    return escape(" or ".join(kind) if isinstance(kind, list) else kind)


def _always(required: bool) -> str:  # noqa: FBT001 - a word for a flag
    return "<b>required</b> " if required else ""


def _field(schema: Mapping[str, Any]) -> str:
    """A field's description, values, bounds and example."""
    parts = []
    for option in (schema, *schema.get("anyOf", ())):
        parts += [_words(words.format(option[name])) for name, words in _BOUNDS.items() if name in option]
    if values := [value for value in schema.get("enum", ()) if value]:
        parts.append("one of " + ", ".join(f"<code>{escape(str(value))}</code>" for value in values))
    if "default" in schema and schema["default"] not in (None, ""):
        parts.append(f"default <code>{escape(str(schema['default']).lower())}</code>")
    if examples := schema.get("examples"):
        parts.append("for example " + ", ".join(f"<code>{escape(str(each))}</code>" for each in examples))
    described = _words(schema.get("description", ""))
    return "<br>".join(part for part in (described, "; ".join(parts)) if part)


def _words(text: str) -> str:
    """Text as HTML, with code between backticks."""
    return _CODE.sub(r"<code>\1</code>", escape(text))
