"""The bodies of requests and answers: jobs in batches, JSON documents, queries."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError

from downloader.client.errors import ApiProblem
from downloader.client.models import JobFields, Submitted
from downloader.client.wire import json_object, json_of, not_a_downloader

BATCH_JOBS = 500
BATCH_BYTES = 1024**2
"""Jobs and bytes in one request of `submit_many`, which is sent again as a whole. Its answers fit into the
buffers of a connection, so that the service is not held up while the request is still being sent."""

M = TypeVar("M", bound=BaseModel)


async def batches(
    jobs: Iterable[JobFields] | AsyncIterable[JobFields],
) -> AsyncGenerator[Sequence[tuple[JobFields, bytes]]]:
    """The jobs, and their lines of NDJSON, in batches of bounded size."""
    batch: list[tuple[JobFields, bytes]] = []
    size = 0
    async with aclosing(_each(jobs)) as each:
        async for job in each:
            line = encode({**job, "idempotency_key": job.get("idempotency_key") or new_key()}) + b"\n"
            if batch and (len(batch) == BATCH_JOBS or size + len(line) > BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append((job, line))
            size += len(line)
    if batch:
        yield batch


async def _each(jobs: Iterable[JobFields] | AsyncIterable[JobFields]) -> AsyncGenerator[JobFields]:
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
    else:
        for job in jobs:
            yield job


def submitted(job: JobFields, line: str, response: httpx2.Response) -> Submitted:
    """The answer to one line of `POST /downloads`."""
    answer = json_object(line, response.url)
    try:
        warnings = [warning["detail"] for warning in answer.get("warnings", ())]
        if "id" in answer:
            return Submitted(job=job, id=answer["id"], warnings=warnings)
        return Submitted(job=job, problem=ApiProblem.from_document(answer), warnings=warnings)
    except (TypeError, KeyError):
        raise not_a_downloader(response.url) from None


def not_taken(answer: Submitted) -> bool:
    """Whether the store did not take the job, so that it may be sent again."""
    return answer.problem is not None and answer.problem.code == "store_unavailable"


def parsed(model: type[M], document: Any, response: httpx2.Response) -> M:
    """A document as this model; raises `ClientError` if it is none."""
    try:
        return model.model_validate(document)
    except ValidationError:
        raise not_a_downloader(response.url) from None


def query(**given: str | datetime | None) -> Mapping[str, str]:
    """The parameters that are given; a time without a zone is local time."""
    return {
        name: value.astimezone().isoformat()
        if isinstance(value, datetime)
        else value.encode(errors="replace").decode()  # without half of a surrogate pair
        for name, value in given.items()
        if value is not None
    }


def member(response: httpx2.Response, name: str) -> Any:
    """One member of the JSON object in an answer; raises `ClientError` if it is missing."""
    document = json_of(response)
    if name not in document:
        raise not_a_downloader(response.url)
    return document[name]


def encode(fields: Mapping[str, Any]) -> bytes:
    """Compact JSON."""
    return json.dumps(fields, separators=(",", ":")).encode()


def segment(text: str) -> str:
    """Percent-encode a text as one segment of a path."""
    return quote(text, safe="", errors="surrogatepass")  # the service then knows nothing of this name


def new_key() -> str:
    """A random idempotency key."""
    return secrets.token_hex(16)
