"""`POST /download` takes one job, `POST /downloads` any number of them as NDJSON, answered line for line.

Both are plain ASGI functions: a route of Quart's costs more CPU (`docs/design/http.md`), and Quart buffers a
body without bound. The jobs of one received chunk go to the store in one call; no more of the body is read
until the store has answered and the client has received the answers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import trio

from downloader import wire
from downloader.api.auth import CALLER, Caller
from downloader.api.deps import ApiDeps, Context
from downloader.api.globs import anything
from downloader.api.intake import BULK_PATH, MAX_BATCH, SINGLE_PATH, Intake, memory_of
from downloader.api.json import parse_object
from downloader.api.parse import parse_job, unknown_fields
from downloader.api.problems import STORE_UNAVAILABLE, Problem, Refused, fault_in, too_large
from downloader.api.routing import NDJSON, Parameter, ResponseSpec, route
from downloader.model import JobSpec
from downloader.observe import Counters, Event, get_logger
from downloader.server import STREAMED, Gone, HttpError, Message, Receive, Send, client_of, send_response
from downloader.store import Accepted, StoreError, StoreUnavailable, Submission
from downloader.wire import AcceptedLine, DownloadRequest, Fault, LineProblem

TRACE = "downloader.trace"
"""Key in the ASGI scope: the traceparent of the request's own span; absent without traces."""

_KEY_HEADER = "Idempotency-Key"

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")

_KEY = re.compile(r"[\x20-\x7e]{1,255}")

_HEADERS = ((b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff"))

_REPLAYED = (b"idempotent-replayed", b"true")
"""Stripe's header; the IETF's draft of `Idempotency-Key` has none."""

_PROXIED = Problem(
    status=HTTPStatus.CONFLICT,
    code="proxy_not_allowed",
    detail="The aggregation goes through a proxy that the token may not use.",
    field="aggr_id",
)

_log = get_logger()


@route(
    "POST",
    SINGLE_PATH,
    scope="submit",
    plain=True,
    calls_back=True,
    parameters=[
        Parameter(
            name=_KEY_HEADER,
            place="header",
            description="The same key with the same job within 24 hours answers the same id and enqueues"
            " nothing.",
            schema={"type": "string", "pattern": "^[ -~]{1,255}$"},
        )
    ],
    body=DownloadRequest,
    responses={
        HTTPStatus.CREATED: ResponseSpec(
            "The job is accepted.",
            wire.Accepted,
            headers={
                "Location": "The job's route.",
                "Idempotent-Replayed": "`true` if the idempotency key was known.",
            },
        )
    },
    problems={
        HTTPStatus.BAD_REQUEST: "the body is not a JSON object, or the idempotency key is malformed",
        HTTPStatus.CONFLICT: "the aggregation uses a proxy that the token may not use",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the body is too large",
        HTTPStatus.UNPROCESSABLE_ENTITY: "fields are at fault, all of them in `errors`, or the idempotency"
        " key was used with another job",
    },
)
async def submit(context: Context, scope: Message, receive: Receive, send: Send) -> None:
    """Submit a job.

    Accepts a download and answers its id once the store holds it. A callback is required (the pair, or
    `callback_url`) unless the job brings its own bucket. Any `Content-Type` is taken.
    """
    # After a cancel the store may hold the job or not.
    deps, intake, caller = context.deps, context.intake, scope[CALLER]
    with intake.room(client_of(scope)) as keep:
        body = await read_body(receive, deps.settings.max_body, keep)
        headers = dict(scope["headers"])
        header = headers.get(b"idempotency-key")
        key = None if header is None else header.decode("latin-1")
        if fault := key_fault(key, _KEY_HEADER):
            detail = f"{fault.field} {fault.detail}."
            raise Refused(
                Problem(status=HTTPStatus.BAD_REQUEST, code=fault.code, detail=detail, field=fault.field)
            )
        members = parse_object(body)
        submission = make_submission(body, members, key=key, deps=deps, caller=caller)
        submission = in_trace(submission, scope.get(TRACE) or traceparent(headers))
        unknown, size = unknown_fields(members), len(body)
        del body, members  # while it waits for the store, the parsed job alone is kept
        keep(max(size, memory_of(submission)))
        why, job_id = await intake.submit(submission)
        check_accepted(why, key_field=_KEY_HEADER)
    fields = [*_HEADERS, (b"location", b"/jobs/" + job_id.encode())]
    if why is Accepted.REPEATED:
        fields.append(_REPLAYED)
    answer = created(job_id, unknown)
    await send_response(send, status=HTTPStatus.CREATED, headers=fields, body=answer)


async def read_body(receive: Receive, limit: int, keep: Callable[[int], None]) -> bytes:
    """The whole body; calls `keep` (see `Intake.room`) with the number of bytes received.

    Raises:
        Refused: 413, it has more than `limit` bytes.
        StoreUnavailable: from `keep`.
        Gone: the client left before the end of the body.
        HttpError: from `receive`.
    """
    pieces, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        pieces.append(message["body"])
        size += len(message["body"])
        more = message["more_body"]
        if size > limit:
            raise Refused(too_large(limit))
        keep(size)
    return b"".join(pieces)


def traceparent(headers: Mapping[bytes, bytes]) -> str:
    """The trace that a request belongs to; empty without a valid header, as W3C Trace Context demands."""
    value = headers.get(b"traceparent", b"").decode("latin-1")
    found = _TRACEPARENT.fullmatch(value)
    return value if found and found[1].strip("0") and found[2].strip("0") else ""


def in_trace(submission: Submission, trace: str) -> Submission:
    """The submission with its trace. The digest leaves it out, because a repetition has another trace."""
    return replace(submission, spec=replace(submission.spec, traceparent=trace)) if trace else submission


def key_fault(key: object, field: str) -> Fault | None:
    """The error of an idempotency key; `None` if it is valid or absent."""
    if key is None or (isinstance(key, str) and _KEY.fullmatch(key)):
        return None
    return fault_in(field, "idempotency_key", "must be 1 to 255 printable ASCII characters")


def make_submission(
    body: bytes,
    members: dict[str, Any],
    *,
    key: str | None,
    deps: ApiDeps,
    caller: Caller | None,
    earlier: Sequence[Fault] = (),
) -> Submission:
    """Check one job and give it an id; arguments as for `parse_job`. `key` is its idempotency key, checked.

    Raises:
        Refused: 400, 403 or 422; with warnings of unknown fields.
    """
    try:
        spec = parse_job(
            body,
            members,
            new_id=deps.store.new_id,
            backends=deps.backends,
            buckets=deps.buckets,
            egress=deps.egress,
            caller=caller,
            earlier=earlier,
        )
    except Refused as refused:
        problem = refused.problem.model_copy(update={"warnings": unknown_fields(members)})
        if caller is not None and problem.code == "forbidden":
            _log.info(Event.API_REFUSED, reason=problem.code, token=caller.name, field=problem.field)
        raise Refused(problem) from None
    permits = None if caller is None or caller.proxies is anything else caller.proxies
    if key is None:
        return Submission(spec=spec, permits=permits)
    if caller is not None:  # keys are each token's own; no key and no name contains a NUL
        key = f"{caller.name}\0{key}"
    return Submission(
        spec=spec,
        idempotency_key=hashlib.sha256(key.encode()).hexdigest(),
        value_digest=_digest_of_values(spec, members),
        body_digest=hashlib.sha256(body).hexdigest(),
        permits=permits,
    )


def _digest_of_values(spec: JobSpec, members: Mapping[str, Any]) -> str:
    """A digest of what a job asks for.

    It does not depend on the order of keys, on blanks, or on how a value is written (`4.0`, a field given
    with its default value). Fields with their default are left out, so that it stays the same when a later
    version has more fields.
    """
    stored = json.loads(spec.to_json())
    stored.pop("created_ms", None)
    if "extra" in stored:  # of a value that is no string, the text as received
        stored["extra"] = members["extra"]
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def check_accepted(why: Accepted, *, key_field: str) -> None:
    """Check that the store has the job; `key_field` names the field or header with the idempotency key.

    Raises:
        Refused: 422, the key was used with another job; 409, the aggregation has another proxy.
        StoreUnavailable: the job's shard did not take it.
    """
    if why is Accepted.UNAVAILABLE:
        raise StoreUnavailable("the job's shard of the store does not answer")
    if why is Accepted.PROXIED:
        raise Refused(_PROXIED)
    if why is Accepted.CONFLICT:
        detail = f"The {key_field} was used with another job."
        raise Refused(
            Problem(
                status=HTTPStatus.UNPROCESSABLE_ENTITY,
                code="idempotency_conflict",
                detail=detail,
                field=key_field,
            )
        )


def created(job_id: str, warnings: Sequence[Fault], *, replayed: bool = False) -> bytes:
    """The JSON that answers an accepted job."""
    if not warnings and not replayed:  # nearly always
        return b'{"id": "%s"}' % job_id.encode()
    return AcceptedLine(id=job_id, warnings=warnings, replayed=replayed).model_dump_json().encode()


KEY_FIELD = "idempotency_key"

_START = {
    "type": "http.response.start",
    "status": HTTPStatus.OK,
    "headers": [(b"content-type", b"application/x-ndjson"), (b"x-content-type-options", b"nosniff")],
}

_Job = tuple[Submission, Sequence[Fault]]
"""A job with the warnings about its line."""


class Lines:
    """Splits a stream into lines of bounded length; keeps at most one incomplete line."""

    def __init__(self, limit: int) -> None:
        """`limit`: most bytes of a line, without its line end."""
        self._limit = limit
        self._rest = b""
        """The incomplete line."""
        self._too_long = False
        """The incomplete line is over the limit; its bytes were discarded."""

    @property
    def kept(self) -> int:
        """Bytes kept of the incomplete line."""
        return len(self._rest)

    def feed(self, data: bytes, *, last: bool) -> Iterator[bytes | None]:
        """The lines that `data` completes, without blank ones; `None` in place of one that is too long.

        With `last` the end of `data` completes a line too.
        """
        *ended, rest = data.split(b"\n")
        for line in ended:
            yield from self._end(line)
        if not self._too_long:
            self._rest += rest
            if len(self._rest) > self._limit:
                self._rest, self._too_long = b"", True
        if last:
            yield from self._end(b"")

    def _end(self, line: bytes) -> Iterator[bytes | None]:
        line = self._rest + line if self._rest else line
        too_long = self._too_long or len(line) > self._limit + line.endswith(b"\r")
        self._rest, self._too_long = b"", False
        if too_long:
            yield None
        elif line and not line.isspace():
            yield line


@route(
    "POST",
    BULK_PATH,
    scope="submit",
    plain=True,
    calls_back=True,
    body=DownloadRequest,
    body_type=NDJSON,
    responses={
        HTTPStatus.OK: ResponseSpec(
            "For each line an accepted job or a problem.", AcceptedLine | LineProblem, NDJSON
        )
    },
)
async def submit_lines(context: Context, scope: Message, receive: Receive, send: Send) -> None:
    """Submit any number of jobs.

    One job a line, each answered by a line in the same order while further ones are read. A line's
    `idempotency_key` works as the header does for a single job. Read while you send.
    """
    # Every job whose id was sent is accepted. A refusal after the response began closes the connection.
    deps, intake, caller = context.deps, context.intake, scope[CALLER]
    scope[STREAMED] = True
    lines = Lines(deps.settings.max_body)
    trace = scope.get(TRACE) or traceparent(dict(scope["headers"]))
    started, more = False, True
    with intake.room(client_of(scope)) as keep:
        while more:
            try:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                more = message["more_body"]
                keep(lines.kept + len(message["body"]))
            except (HttpError, StoreUnavailable):
                if started:
                    raise Gone from None
                raise
            arrived = list(lines.feed(message["body"], last=not more))
            for start in range(0, len(arrived), MAX_BATCH):
                await trio.lowlevel.checkpoint()  # the shortest lines of a chunk take half a second together
                batch = [_read(line, trace, deps, caller) for line in arrived[start : start + MAX_BATCH]]
                answer = await _take(batch, intake, deps.counters)
                if not started:
                    await send(_START)
                    started = True
                await send({"type": "http.response.body", "body": answer, "more_body": True})
            keep(lines.kept)
    if not started:
        await send(_START)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _read(line: bytes | None, trace: str, deps: ApiDeps, caller: Caller | None) -> _Job | Problem:
    """The job on a line, or the problem with it; `None` is a line that is too long."""
    if line is None:
        return too_large(deps.settings.max_body)
    try:
        members = parse_object(line)
        key = members.pop(KEY_FIELD, None)
        fault = key_fault(key, KEY_FIELD)
        submission = make_submission(
            line, members, key=key, deps=deps, caller=caller, earlier=(fault,) if fault else ()
        )
    except Refused as refused:
        return refused.problem
    return in_trace(submission, trace), unknown_fields(members)


async def _take(batch: Sequence[_Job | Problem], intake: Intake, counters: Counters) -> bytes:
    """Submit the jobs of a batch; returns its lines of the answer."""
    submissions = [item[0] for item in batch if not isinstance(item, Problem)]
    answers = iter(await intake.submit_all(submissions) if submissions else ())
    lines = [item if isinstance(item, Problem) else _answer_line(next(answers), item[1]) for item in batch]
    for line in lines:
        if isinstance(line, Problem):
            counters.add("jobs_refused", 1, BULK_PATH, line.code)
    return b"".join(line.line() + b"\n" if isinstance(line, Problem) else line for line in lines)


def _answer_line(answer: tuple[Accepted, str] | StoreError, warnings: Sequence[Fault]) -> bytes | Problem:
    """The line with the job's id, or the problem with it."""
    try:
        if isinstance(answer, StoreError):
            raise answer
        why, job_id = answer
        check_accepted(why, key_field=KEY_FIELD)
    except Refused as refused:
        return refused.problem
    except StoreError:
        return STORE_UNAVAILABLE
    return created(job_id, warnings, replayed=why is Accepted.REPEATED) + b"\n"
