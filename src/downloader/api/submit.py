"""`POST /download`, at the level of ASGI beside Quart's routes: the one that has to be fast."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from downloader.api.asgi import Gone, Message, Receive, Send, client_of, send_answer
from downloader.api.auth import Caller
from downloader.api.deps import ApiDeps
from downloader.api.fields import parse_job
from downloader.api.globs import anything
from downloader.api.intake import Intake
from downloader.api.problems import Problem, Refused, too_large
from downloader.observe import Event, get_logger
from downloader.store import Accepted, StoreUnavailable, Submission

PATH = "/download"

_KEY = re.compile(rb"[\x20-\x7e]{1,255}")
"""An `Idempotency-Key`: printable ASCII."""

_log = get_logger()


def read_submission(
    body: bytes, headers: Mapping[bytes, bytes], *, deps: ApiDeps, caller: Caller | None = None
) -> Submission:
    """Check a request and make it a job; pure but for the job's new id and time.

    Args:
        body: as received.
        headers: names in lower case.
        deps: of the API.
        caller: whose token came with it; `None` while the API is open.

    Raises:
        Refused: 400, 403 or 422.
    """
    key = headers.get(b"idempotency-key")
    if key is not None and not is_key(key):
        raise bad_key("Idempotency-Key", HTTPStatus.BAD_REQUEST)
    return make_submission(body, key, deps=deps, caller=caller)


def make_submission(
    body: bytes,
    key: bytes | None,
    *,
    deps: ApiDeps,
    caller: Caller | None,
    members: dict[str, Any] | None = None,
) -> Submission:
    """Check one job; `key`, if any, is its idempotency key, `members` what `parse_object` has read.

    Raises:
        Refused: 400, 403 or 422.
    """
    try:
        spec = parse_job(
            body, new_id=deps.store.new_id, backends=deps.backends, caller=caller, members=members
        )
    except Refused as refused:
        problem = refused.problem
        if caller is not None and problem.code == "forbidden":
            _log.info(Event.API_REFUSED, reason=problem.code, token=caller.name, field=problem.field)
        raise
    permits = None if caller is None or caller.proxies is anything else caller.proxies
    if key is None:
        return Submission(spec=spec, permits=permits)
    if caller is not None:  # NUL is in no key and no name, so nobody's key looks like another's
        key = caller.name.encode() + b"\0" + key
    return Submission(
        spec=spec,
        idempotency_key=hashlib.sha256(key).hexdigest(),
        body_digest=hashlib.sha256(body).hexdigest(),
        permits=permits,
    )


async def serve_download(
    scope: Message,
    receive: Receive,
    send: Send,
    *,
    deps: ApiDeps,
    intake: Intake,
    caller: Caller | None = None,
) -> None:
    """The ASGI application: 201 when the store holds the job.

    A cancel leaves it open whether the job is taken in.

    Raises:
        Refused: 400, 403, 413 or 422; a body over the limit is not read to its end.
        StoreUnavailable, StoreRefused: the store cannot take the job in.
        Gone: the client has left.
    """
    with intake.room(client_of(scope)) as keep:
        body = await read_body(receive, deps.settings.max_body, keep)
        submission = read_submission(body, dict(scope["headers"]), deps=deps, caller=caller)
        job_id = accepted_id(*await intake.submit(submission), field="Idempotency-Key")
    headers = [*_HEADERS, (b"location", b"/jobs/" + job_id.encode())]
    await send_answer(
        send, status=HTTPStatus.CREATED, headers=headers, body=b'{"id": "%s"}' % job_id.encode()
    )


async def read_body(receive: Receive, limit: int, keep: Callable[[int], None]) -> bytes:
    """The whole body; `keep` is told how much of it there is, see `Intake.room`.

    Raises:
        Refused: 413, it has more than `limit` bytes.
        StoreUnavailable: there is no room for it.
        Gone: the client has left before its end.
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


_HEADERS = ((b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff"))


def accepted_id(why: Accepted, job_id: str, *, field: str) -> str:
    """The id to answer; `field` is where the client has its idempotency key.

    Raises:
        Refused: 422, the key was used with another body; 409, its aggregation has another proxy.
        StoreUnavailable: its shard has not taken it, whatever became of others in the same call.
    """
    if why is Accepted.UNAVAILABLE:
        raise StoreUnavailable("the job's shard of the store does not answer")
    if why is Accepted.PROXIED:
        raise Refused(_PROXIED)
    if why is Accepted.CONFLICT:
        raise Refused(
            Problem(
                status=HTTPStatus.UNPROCESSABLE_ENTITY,
                code="idempotency_conflict",
                detail=f"The {field} was used with another body.",
                field=field,
            )
        )
    return job_id


_PROXIED = Problem(
    status=HTTPStatus.CONFLICT,
    code="proxy_not_allowed",
    detail="The aggregation goes through a proxy that the token may not use.",
    field="aggr_id",
)


def is_key(key: bytes) -> bool:
    """Whether it can be an idempotency key."""
    return _KEY.fullmatch(key) is not None


def bad_key(field: str, status: HTTPStatus) -> Refused:
    """An idempotency key that is none."""
    return Refused(
        Problem(
            status=status,
            code="idempotency_key",
            detail=f"{field} must be 1 to 255 printable ASCII characters.",
            field=field,
        )
    )
