"""`POST /download` takes one job, `POST /downloads` any number as NDJSON, with a response line per line.

Both are plain ASGI functions: a route of Quart's costs more CPU (`docs/design/http.md`), and Quart buffers a
body without bound. The jobs of one received chunk go to the store in one call; no more of the body is read
until the store has answered and the client has received the responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus

import trio

from downloader import wire
from downloader.api.auth import CALLER, Caller
from downloader.api.deps import ApiDeps, Context
from downloader.api.intake import BULK_PATH, MAX_BATCH, SINGLE_PATH, Intake, memory_of
from downloader.api.json import parse_object
from downloader.api.parse import warnings_for
from downloader.api.problems import Problem, Refused, problem, refused, too_large
from downloader.api.routing import NDJSON, ResponseSpec, route
from downloader.api.submission import (
    TRACE,
    check_accepted,
    created,
    in_trace,
    key_fault,
    make_submission,
    traceparent,
)
from downloader.observe import Counters, get_logger
from downloader.server import STREAMED, Gone, HttpError, Message, Receive, Send, client_of, send_response
from downloader.store import Accepted, StoreError, StoreUnavailable, Submission
from downloader.wire import AcceptedLine, Callback, DownloadRequest, Fault, LineProblem

_KEY_HEADER = "Idempotency-Key"

_HEADERS = ((b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff"))

_REPLAYED = (b"idempotent-replayed", b"true")
"""Stripe's header; the IETF's draft of `Idempotency-Key` has none."""

_log = get_logger()


@route(
    "POST",
    SINGLE_PATH,
    scope="submit",
    plain=True,
    callback=Callback,
    headers=[
        {
            "name": _KEY_HEADER,
            "required": False,
            "description": "The same key with the same job within 24 hours answers the same id and enqueues"
            " nothing.",
            "schema": {"type": "string", "pattern": "^[ -~]{1,255}$"},
        }
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
    problems=[
        *("idempotency_key", "idempotency_conflict", "proxy_not_allowed", "group_sealed", "over_quota"),
        "too_large",
    ],
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
            raise refused(fault.code, f"{fault.field} {fault.detail}.", field=fault.field)
        members = parse_object(body)
        submission = make_submission(body, members, key=key, deps=deps, caller=caller)
        submission = in_trace(submission, scope.get(TRACE) or traceparent(headers))
        warnings, size = warnings_for(members), len(body)
        del body, members  # while it waits for the store, the parsed job alone is kept
        keep(max(size, memory_of(submission)))
        why, job_id = await intake.submit(submission)
        check_accepted(why, job_id, key_field=_KEY_HEADER)
    fields = [*_HEADERS, (b"location", b"/jobs/" + job_id.encode())]
    if why is Accepted.REPEATED:
        fields.append(_REPLAYED)
    content = created(job_id, warnings)
    await send_response(send, status=HTTPStatus.CREATED, headers=fields, body=content)


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


KEY_FIELD = "idempotency_key"

STEP_LINES = 50
"""Lines that are read before other tasks get a turn: a few milliseconds. A chunk may have ten thousands."""

_START = {
    "type": "http.response.start",
    "status": HTTPStatus.OK,
    "headers": [(b"content-type", b"application/x-ndjson"), (b"x-content-type-options", b"nosniff")],
}

_Job = tuple[Submission, Sequence[Fault]]
"""A job with the warnings about the job's line."""


class Lines:
    """Splits a stream into lines of bounded length; keeps at most one incomplete line."""

    def __init__(self, limit: int) -> None:
        """`limit`: most bytes of a line, without the line end."""
        self._limit = limit
        self._rest = b""
        """The incomplete line."""
        self._too_long = False
        """The incomplete line is over the limit; the line's bytes were discarded."""

    @property
    def kept(self) -> int:
        """Bytes kept of the incomplete line."""
        return len(self._rest)

    def feed(self, data: bytes, *, last: bool) -> Iterator[bytes | None]:
        """The lines that `data` completes, without blank lines; `None` in place of a line that is too long.

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
    callback=Callback,
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
                batch: list[_Job | Problem] = []
                for line in arrived[start : start + MAX_BATCH]:
                    if len(batch) % STEP_LINES == 0:
                        await trio.lowlevel.checkpoint()
                    batch.append(_read(line, trace, deps, caller))
                response_lines = await _take(batch, intake, deps.counters)
                if not started:
                    await send(_START)
                    started = True
                await send({"type": "http.response.body", "body": response_lines, "more_body": True})
            keep(lines.kept)
    if not started:
        await send(_START)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _read(line: bytes | None, trace: str, deps: ApiDeps, caller: Caller | None) -> _Job | Problem:
    """The job on a line, or a problem; `None` is a line that is too long."""
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
    return in_trace(submission, trace), warnings_for(members)


async def _take(batch: Sequence[_Job | Problem], intake: Intake, counters: Counters) -> bytes:
    """Submit the jobs of a batch; returns the lines of the response."""
    submissions = [item[0] for item in batch if not isinstance(item, Problem)]
    results = iter(await intake.submit_all(submissions) if submissions else ())
    lines = [item if isinstance(item, Problem) else _response_line(next(results), item[1]) for item in batch]
    for line in lines:
        if isinstance(line, Problem):
            counters.add("jobs_refused", 1, BULK_PATH, line.code)
    return b"".join(line.line() + b"\n" if isinstance(line, Problem) else line for line in lines)


def _response_line(result: tuple[Accepted, str] | StoreError, warnings: Sequence[Fault]) -> bytes | Problem:
    """The line with the job's id, or a problem."""
    try:
        if isinstance(result, StoreError):
            raise result
        why, job_id = result
        check_accepted(why, job_id, key_field=KEY_FIELD)
    except Refused as error:
        return error.problem
    except StoreError:
        return problem("store_unavailable")
    return created(job_id, warnings, replayed=why is Accepted.REPEATED) + b"\n"
