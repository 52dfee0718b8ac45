"""`POST /download`, and what it shares with `POST /downloads`: from a request's bytes to the id of a job.

A plain ASGI function, since a route of Quart's costs more CPU (`docs/design/http.md`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from downloader.api.asgi import Gone, Message, Receive, Send, client_of, send_answer
from downloader.api.auth import Caller
from downloader.api.deps import ApiDeps
from downloader.api.fields import parse_job
from downloader.api.globs import anything
from downloader.api.intake import Intake
from downloader.api.json import parse_object
from downloader.api.problems import Problem, Refused, too_large
from downloader.observe import Event, get_logger
from downloader.store import Accepted, StoreUnavailable, Submission

PATH = "/download"

_KEY_HEADER = "Idempotency-Key"

_KEY = re.compile(r"[\x20-\x7e]{1,255}")

_HEADERS = ((b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff"))

_PROXIED = Problem(
    HTTPStatus.CONFLICT,
    "proxy_not_allowed",
    detail="The aggregation goes through a proxy that the token may not use.",
    field="aggr_id",
)

_log = get_logger()


async def serve_download(
    scope: Message,
    receive: Receive,
    send: Send,
    *,
    deps: ApiDeps,
    intake: Intake,
    caller: Caller | None = None,
) -> None:
    """Answer 201 once the store holds the job.

    After a cancel the store may hold the job or not.

    Raises:
        Refused: 400, 403, 409, 413 or 422; the rest of a body over the limit is not read.
        StoreUnavailable, StoreRefused: the store cannot take the job.
        Gone: the client has left.
    """
    with intake.room(client_of(scope)) as keep:
        body = await read_body(receive, deps.settings.max_body, keep)
        header = dict(scope["headers"]).get(b"idempotency-key")
        key = None if header is None else header.decode("latin-1")
        check_key(key, field=_KEY_HEADER, status=HTTPStatus.BAD_REQUEST)
        submission = make_submission(body, parse_object(body), key=key, deps=deps, caller=caller)
        job_id = accepted_id(*await intake.submit(submission), key_field=_KEY_HEADER).encode()
    headers = [*_HEADERS, (b"location", b"/jobs/" + job_id)]
    await send_answer(send, status=HTTPStatus.CREATED, headers=headers, body=b'{"id": "%s"}' % job_id)


async def read_body(receive: Receive, limit: int, keep: Callable[[int], None]) -> bytes:
    """The whole body; calls `keep` (see `Intake.room`) with the number of bytes received.

    Raises:
        Refused: 413, it has more than `limit` bytes.
        StoreUnavailable: from `keep`.
        Gone: the client left before the end of the body.
    """
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        body += message["body"]
        more = message["more_body"]
        if len(body) > limit:
            raise Refused(too_large(limit))
        keep(len(body))
    return body


def check_key(key: object, *, field: str, status: HTTPStatus) -> None:
    """Check an idempotency key; `None` passes.

    Raises:
        Refused: with this status and field.
    """
    if key is not None and not (isinstance(key, str) and _KEY.fullmatch(key)):
        detail = f"{field} must be 1 to 255 printable ASCII characters."
        raise Refused(Problem(status, "idempotency_key", detail=detail, field=field))


def make_submission(
    body: bytes, members: dict[str, Any], *, key: str | None, deps: ApiDeps, caller: Caller | None
) -> Submission:
    """Check one job and give it an id.

    Args:
        body: the job as received.
        members: `parse_object(body)`.
        key: its idempotency key, checked.
        deps: of the API.
        caller: the submitter; `None` while the API is open.

    Raises:
        Refused: 400, 403 or 422.
    """
    try:
        spec = parse_job(
            body,
            members,
            new_id=deps.store.new_id,
            backends=deps.backends,
            buckets=deps.buckets,
            caller=caller,
        )
    except Refused as refused:
        problem = refused.problem
        if caller is not None and problem.code == "forbidden":
            _log.info(Event.API_REFUSED, reason=problem.code, token=caller.name, field=problem.field)
        raise
    permits = None if caller is None or caller.proxies is anything else caller.proxies
    if key is None:
        return Submission(spec=spec, permits=permits)
    if caller is not None:  # keys are each token's own; no key and no name contains a NUL
        key = f"{caller.name}\0{key}"
    return Submission(
        spec=spec,
        idempotency_key=hashlib.sha256(key.encode()).hexdigest(),
        body_digest=hashlib.sha256(body).hexdigest(),
        permits=permits,
    )


def accepted_id(why: Accepted, job_id: str, *, key_field: str) -> str:
    """The id to answer with, from an answer of the store.

    Args:
        why: the store's verdict.
        job_id: the job's id, or that of the first job with the same idempotency key.
        key_field: the field or header with the idempotency key, for the error.

    Raises:
        Refused: 422, the key was used with another body; 409, the aggregation has another proxy.
        StoreUnavailable: the job's shard did not take it.
    """
    if why is Accepted.UNAVAILABLE:
        raise StoreUnavailable("the job's shard of the store does not answer")
    if why is Accepted.PROXIED:
        raise Refused(_PROXIED)
    if why is Accepted.CONFLICT:
        detail = f"The {key_field} was used with another body."
        raise Refused(
            Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency_conflict", detail=detail, field=key_field)
        )
    return job_id
