"""`POST /download`, at the level of ASGI beside Quart's routes: the one that has to be fast."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from http import HTTPStatus

from downloader.api.asgi import Gone, Message, Receive, Send, send_answer
from downloader.api.auth import Caller
from downloader.api.deps import ApiDeps
from downloader.api.fields import parse_job
from downloader.api.intake import Intake
from downloader.api.problems import Problem, Refused, too_large
from downloader.observe import Event, get_logger
from downloader.store import Accepted, Submission

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
    if key is not None and not _KEY.fullmatch(key):
        raise Refused(
            Problem(
                status=HTTPStatus.BAD_REQUEST,
                code="idempotency_key",
                detail="Idempotency-Key must be 1 to 255 printable ASCII characters.",
                field="Idempotency-Key",
            )
        )
    spec = parse_job(
        body,
        new_id=deps.store.new_id,
        backends=deps.backends,
        caller=caller,
    )
    if key is None:
        return Submission(spec=spec)
    if caller is not None:  # NUL is in no key and no name, so nobody's key looks like another's
        key = caller.name.encode() + b"\0" + key
    return Submission(
        spec=spec,
        idempotency_key=hashlib.sha256(key).hexdigest(),
        body_digest=hashlib.sha256(body).hexdigest(),
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
    body = await read_body(receive, deps.settings.max_body)
    try:
        submission = read_submission(body, dict(scope["headers"]), deps=deps, caller=caller)
    except Refused as refused:
        if caller is not None and refused.problem.code == "forbidden":
            problem = refused.problem
            _log.info(Event.API_REFUSED, reason=problem.code, token=caller.name, field=problem.field)
        raise
    why, job_id = await intake.submit(submission)
    if why is Accepted.CONFLICT:
        raise Refused(_CONFLICT)
    _log.debug(
        Event.JOB_ACCEPTED, job=job_id, aggr=submission.spec.aggr_id, repeated=why is Accepted.REPEATED
    )
    headers = [*_HEADERS, (b"location", b"/jobs/" + job_id.encode())]
    await send_answer(
        send, status=HTTPStatus.CREATED, headers=headers, body=b'{"id": "%s"}' % job_id.encode()
    )


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        Refused: 413, it has more than `limit` bytes.
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
    return body


_HEADERS = ((b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff"))

_CONFLICT = Problem(
    status=HTTPStatus.UNPROCESSABLE_ENTITY,
    code="idempotency_conflict",
    detail="The Idempotency-Key was used with another body.",
    field="Idempotency-Key",
)
