"""The OpenAPI document and the page of the document: complete, and true of the API."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import pytest
from pydantic import SecretStr, TypeAdapter

from downloader.api import ApiDeps
from downloader.api.openapi import openapi_document, render
from downloader.api.problems import CODES
from downloader.api.routes import ROUTES
from downloader.api.routing import route
from downloader.config import ApiSettings, TokenSettings
from downloader.model import Outcome, Verdict
from downloader.wire import Callback, DownloadRequest, callback_body
from servers.api import Served, Serving
from servers.jobs import spec_for


def test_a_route_without_a_description_cannot_be_declared() -> None:
    async def handler() -> None:
        pass

    with pytest.raises(TypeError, match="GET /x has no description"):
        route("GET", "/x", scope="read", responses={})(handler)


class Watched:
    """Settings that note the threads of all reads."""

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self.threads: set[threading.Thread] = set()

    def __getattr__(self, name: str) -> Any:
        self.threads.add(threading.current_thread())
        return getattr(self._settings, name)


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
async def test_it_is_made_outside_the_event_loop(serving: Serving, deps: ApiDeps, path: str) -> None:
    settings = Watched(deps.settings)
    api = await serving(settings=settings)
    assert (await api.client.get(path)).status_code == 200
    assert settings.threads - {threading.current_thread()}


def test_every_field_of_a_job_is_described() -> None:
    schema = TypeAdapter(DownloadRequest).json_schema()
    assert [name for name, field in schema["properties"].items() if "description" not in field] == []


async def test_a_callback_is_as_described(deps: ApiDeps) -> None:
    body = callback_body(
        spec_for(deps.store), Outcome(verdict=Verdict.SUCCEEDED), attempts=1, download_url="http://x/"
    )
    assert list(json.loads(body)) == list(Callback.model_fields)


def references(part: Any) -> set[str]:
    """The names of all schemas that are referred to."""
    if isinstance(part, dict):
        here = {part["$ref"].removeprefix("#/components/schemas/")} if "$ref" in part else set()
        return here.union(*map(references, part.values()))
    return set().union(*map(references, part)) if isinstance(part, list) else set()


async def test_the_document_of_an_open_api(deps: ApiDeps) -> None:
    document = openapi_document(ROUTES, deps.settings, deps.backends)
    schemas = document["components"]["schemas"]
    assert document["openapi"].startswith("3.1.")
    assert references(document) <= schemas.keys()
    assert "security" not in document["paths"]["/download"]["post"]
    job = schemas["DownloadRequest"]
    assert job["required"] == ["aggr_id", "aggr_limit", "url"]
    assert job["properties"]["aggr_limit"] | {"description": ""} == {
        "type": "integer",
        "minimum": 1,
        "maximum": 2**31 - 1,
        "description": "",
        "examples": [4],
    }
    assert job["properties"]["callback_type"]["enum"] == ["", "none", "http", "sqs", None]
    codes = {each["const"] for each in schemas["Problem"]["properties"]["code"]["oneOf"]}
    assert codes == set(CODES)
    for path, payload in (("/download", "Callback"), ("/groups/{group}", "GroupCallback")):
        [callback] = document["paths"][path]["post"]["callbacks"]["finished"].values()
        [content] = callback["post"]["requestBody"]["content"].values()
        assert content["schema"] == {"$ref": f"#/components/schemas/{payload}"}
        assert payload in schemas


def with_tokens() -> ApiSettings:
    return ApiSettings(tokens=[TokenSettings(name="t", token=SecretStr("0123456789abcdef"), scopes=["read"])])


async def test_the_document_names_the_scope_of_each_route(serving: Serving) -> None:
    api = await serving(settings=with_tokens())
    assert (await api.client.get("/openapi.json")).status_code == 401
    answer = await api.client.get("/openapi.json", headers={"Authorization": "Bearer 0123456789abcdef"})
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    paths = document["paths"]
    assert paths["/download"]["post"]["security"] == [{"token": ["submit"]}]
    assert paths["/retry/{job_id}"]["post"]["security"] == [{"token": ["retry"]}]
    assert paths["/jobs/{job_id}"]["get"]["security"] == [{"token": ["read"]}]
    assert paths["/hb"]["get"]["security"] == []


class Page(HTMLParser):
    """Collects what the page's test looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag == "a":
            self.links.append(found["href"] or "")
        elif "href" in found or "src" in found:
            self.loads.append(found.get("href") or found.get("src") or "")
        assert not {"style", *(name for name in found if name.startswith("on"))} & found.keys()
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_the_page(api: Served) -> None:
    answer = await api.client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )
    page = Page()
    page.feed(answer.text)
    assert page.open == []
    assert not page.tags & {"script", "style", "iframe", "img", "form"}
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} <= set(page.ids)
    for name in (*page.loads, *(link for link in page.links if not link.startswith("#"))):
        assert (await api.client.get(f"/{name}")).status_code == 200, name
    for one in ROUTES:
        assert re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", one.rule) in answer.text
    for code in CODES:
        assert f"<code>{code}</code>" in answer.text


async def test_words_of_the_page_are_inert(deps: ApiDeps) -> None:
    document = openapi_document(ROUTES, deps.settings, deps.backends)
    document["components"]["schemas"]["Accepted"]["description"] = "<b>a `<i>` b"
    assert "<p>&lt;b&gt;a <code>&lt;i&gt;</code> b</p>" in render(document)
