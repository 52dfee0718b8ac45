"""The API does what the OpenAPI document says: schemathesis sends valid and invalid requests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import negative_data_rejection, positive_data_acceptance
from schemathesis.core.result import Ok

from downloader.api import ApiDeps
from downloader.api.openapi import openapi_document
from downloader.api.routes import ROUTES
from downloader.config import ApiSettings, TokenSettings
from downloader.model import CallbackOutcome, FileFacts, Kind, Outcome, Verdict
from downloader.storage import StoredFile
from downloader.store import CallbackPlan, JobStore, Submission
from servers.api import JOB, Serving
from servers.jobs import closed, downloaded, spec_for, submitted

Operation = APIOperation[Any, Any, Any, Any]
AnyCase = Case[Any]

NOT_TRIED = {
    "GET /events": "a stream without an end",
    "POST /downloads": "schemathesis writes no NDJSON; test_bulk.py sends it",
}
ANY_QUERY = {"GET /aggregations", "GET /failures", "GET /groups", "GET /jobs", "POST /retry"}
"""Nearly every query is one: unknown parameters are ignored."""

EXAMPLES = {"POST /download": 30, "GET /jobs": 30}
OTHER_EXAMPLES = 8
FEW_FIELDS = 3

SECRET = "0123456789abcdef"
DESTINATIONS = [JOB["callback_dst"], "storage:*"]
TOKEN = TokenSettings(name="t", token=SecretStr(SECRET), scopes=["admin"], destinations=DESTINATIONS)
SETTINGS = ApiSettings(tokens=[TOKEN])
PLACES: list[dict[str, Any]] = [
    {},
    {"storage_url": "gs://pictures/new", "s3_bucket": None, "s3_region": None},
    {"storage_url": "az://pictures", "s3_bucket": None, "s3_region": None},
    {"storage_url": "s3://pictures/new", "s3_bucket": None, "s3_region": "eu-west-2"},
    {"group": "g", "callback_dst": "https://elsewhere.example/"},
]
"""Fields beyond those of `JOB`: buckets of the client's own, a group, a destination that is refused."""
VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")


async def ended_jobs(store: JobStore) -> list[str]:
    """Jobs that wait, have failed, and have succeeded with a callback that failed."""
    specs = [spec_for(store, "a/b", aggr_limit=9) for _ in range(5)]
    await store.submit([Submission(spec=spec) for spec in specs])
    leases = (await store.lease(Kind.DOWNLOAD, "me", 2, 60)).leases
    plan = CallbackPlan(queue="http c", limit=9)
    failed = Outcome(verdict=Verdict.FAILED, error="Received Status code 404 Not Found", response_code=404)
    stored = Outcome(verdict=Verdict.SUCCEEDED, response_code=200, file=FileFacts(size=3, sha256="0" * 64))
    await store.settle(
        "me", [downloaded(leases[0], failed, None, 600), downloaded(leases[1], stored, plan, 600)]
    )
    [callback] = (await store.lease(Kind.CALLBACK, "me", 1, 60)).leases
    refused = CallbackOutcome(verdict=Verdict.FAILED, error="answered 410")
    await store.settle("me", [closed(callback, refused, 600, 9)])
    return [spec.id for spec in specs]


def attempt(
    operation: Operation,
    mode: GenerationMode,
    *,
    base_url: str,
    session: requests.Session,
    known: Mapping[str, Sequence[str]],
    seen: Counter[int],
) -> None:
    """Send requests that the document allows (positive) or forbids (negative), and check each answer."""
    positive = mode is GenerationMode.POSITIVE
    has_rules = "422" in operation.definition.raw["responses"]  # such as those between fields
    skipped = [positive_data_acceptance] if has_rules else []
    if operation.label in ANY_QUERY:
        skipped.append(negative_data_rejection)

    @settings(
        max_examples=EXAMPLES.get(operation.label, OTHER_EXAMPLES),
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        case: AnyCase = data.draw(operation.as_strategy(generation_mode=mode))
        if positive:
            make_likely(case, data, known)
        answer = case.call(base_url=base_url, session=session)
        seen[answer.status_code] += 1
        case.validate_response(answer, excluded_checks=skipped)

    check()


def make_likely(case: AnyCase, data: st.DataObject, known: Mapping[str, Sequence[str]]) -> None:
    """Ask for what there is, and send a job that is accepted, in most cases.

    Of the generated fields such a job has a few: with all of them, one is nearly always refused by a rule
    that the document cannot express.
    """
    for name in case.path_parameters or {}:
        if name in known:
            case.path_parameters[name] = data.draw(st.sampled_from(known[name]))
    if isinstance(case.body, dict) and data.draw(st.integers(0, 3)):
        more = data.draw(st.sampled_from(PLACES)) if case.operation.label == "POST /download" else {}
        few = st.lists(st.sampled_from(sorted(case.body.items()) or [("extra", "")]), max_size=FEW_FIELDS)
        # The token begins a session.
        case.body = dict(data.draw(few)) | JOB | more | {"token": SECRET}


_operations: dict[str, Operation] = {}


def operation_of(deps: ApiDeps, label: str) -> Operation:
    """One of the document's operations; the document is made once, as that takes longer than most tests."""
    if not _operations:
        schema = schemathesis.openapi.from_dict(openapi_document(ROUTES, SETTINGS, deps.backends))
        _operations.update(
            (found.ok().label, found.ok()) for found in schema.get_all_operations() if isinstance(found, Ok)
        )
    return _operations[label]


LABELS = sorted(route.method + " " + VARIABLE.sub(r"{\1}", route.rule) for route in ROUTES)


@pytest.mark.slow
@pytest.mark.timeout(180)  # the first one pays for making the document, and imports
@pytest.mark.parametrize("label", [label for label in LABELS if label not in NOT_TRIED])
async def test_the_api_does_what_its_document_says(
    serving: Serving, deps: ApiDeps, tmp_path: Path, label: str
) -> None:
    async def files(key: str) -> StoredFile | None:
        return StoredFile(path=path, size=3) if key == "a/b" else None

    path = tmp_path / "file"
    path.write_bytes(b"abc")
    api = await serving(settings=SETTINGS, files=files)
    known = {
        "job_id": await ended_jobs(api.store),
        "key": ["a/b", "none"],
        "aggr_id": ["a/b", "none"],
        "name": ["docs.css"],
        "group": ["g", "none"],
    }
    await submitted(api.store, group="g")
    seen: Counter[int] = Counter()

    def try_all() -> None:
        operation = operation_of(deps, label)
        base_url = f"http://127.0.0.1:{api.port}"
        with requests.Session() as session:
            session.trust_env = False
            session.headers["Authorization"] = f"Bearer {SECRET}"
            for mode in GenerationMode:
                if has_input(operation) or mode is GenerationMode.POSITIVE:
                    attempt(operation, mode, base_url=base_url, session=session, known=known, seen=seen)

    await trio.to_thread.run_sync(try_all)
    assert any(status < 300 or status == 409 for status in seen), "it met nothing that exists"


def has_input(operation: Operation) -> bool:
    raw = operation.definition.raw
    return bool(raw["parameters"] or "requestBody" in raw)
