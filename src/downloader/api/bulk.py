"""`POST /downloads`: any number of jobs as NDJSON, answered line for line while they arrive.

A plain ASGI function, since Quart buffers a body without bound. The jobs of one received chunk go to the
store in one call. Backpressure: no more of the body is read until the store has answered and the client has
received the answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from http import HTTPStatus

import trio

from downloader.api.asgi import Gone, Message, Receive, Send, client_of
from downloader.api.auth import Caller
from downloader.api.deps import ApiDeps
from downloader.api.exchange import STREAMED
from downloader.api.intake import BULK_PATH, MAX_BATCH, Intake
from downloader.api.json import parse_object
from downloader.api.parse import unknown_fields
from downloader.api.problems import STORE_UNAVAILABLE, Fault, Problem, Refused, too_large
from downloader.api.submit import (
    TRACE,
    check_accepted,
    created,
    in_trace,
    key_fault,
    make_submission,
    traceparent,
)
from downloader.observe import Counters
from downloader.store import Accepted, StoreError, StoreUnavailable, Submission

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


async def serve_downloads(
    scope: Message,
    receive: Receive,
    send: Send,
    *,
    deps: ApiDeps,
    intake: Intake,
    caller: Caller | None = None,
) -> None:
    """Answer each line with a job's id or a problem. Every job whose id was sent is accepted.

    Raises:
        Gone: the client left or does not read, or `Intake.room` is used up after the response began.
        StoreUnavailable: `Intake.room` is used up before the response began.
        Refused: before the response began: the body is malformed, or the client sent nothing for too long.
    """
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
            except (Refused, StoreUnavailable):
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
    return b"".join(_problem_line(line) if isinstance(line, Problem) else line for line in lines)


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
    replayed = {"replayed": True} if why is Accepted.REPEATED else {}
    return created(job_id, warnings, **replayed) + b"\n"


def _problem_line(problem: Problem) -> bytes:
    return json.dumps(problem.members()).encode() + b"\n"
