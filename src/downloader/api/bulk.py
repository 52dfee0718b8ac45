"""`POST /downloads`: any number of jobs as NDJSON, answered line for line while they arrive.

At the level of ASGI, since Quart collects a body without bound. Jobs that arrive together go to the store in
one call. While the store or the client's reading of its answers is waited for, nothing more is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

from downloader.api.asgi import Gone, Message, Receive, Send, client_of
from downloader.api.auth import Caller
from downloader.api.deps import ApiDeps
from downloader.api.exchange import STREAMED
from downloader.api.intake import Intake
from downloader.api.json import parse_object
from downloader.api.problems import STORE_UNAVAILABLE, Problem, Refused, too_large
from downloader.api.submit import accepted_id, bad_key, is_key, make_submission
from downloader.store import Accepted, StoreError, StoreUnavailable, Submission

PATH = "/downloads"

KEY_FIELD = "idempotency_key"

_HEADERS = [(b"content-type", b"application/x-ndjson"), (b"x-content-type-options", b"nosniff")]


class Lines:
    """Splits a stream into lines of bounded length; what it holds is at most one line."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of a line, without its end."""
        self._limit = limit
        self._rest = b""
        self._too_long = False
        """The line that has begun is; its bytes are not kept."""

    @property
    def kept(self) -> int:
        """Bytes of the line that has begun."""
        return len(self._rest)

    def feed(self, data: bytes, *, last: bool) -> Iterator[bytes | None]:
        """The lines that end in `data`, `None` for one that is too long; with `last` also one without an end.

        Blank lines are left out.
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
    """The ASGI application. Whatever ends it, what has been answered with an id is accepted.

    Raises:
        Gone: the client has left, or does not read its answers; or there is no more room, and it is cut off.
        StoreUnavailable: there is no room for what arrived first.
        Refused: 408, the client has sent nothing for too long.
    """
    scope[STREAMED] = True
    lines = Lines(deps.settings.max_body)
    started, more = False, True
    with intake.room(client_of(scope)) as keep:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            more = message["more_body"]
            try:
                keep(lines.kept + len(message["body"]))
            except StoreUnavailable:
                if started:
                    raise Gone from None
                raise
            batch = [
                _read(line, deps=deps, caller=caller) for line in lines.feed(message["body"], last=not more)
            ]
            if batch or not more:
                answer = await _take(batch, intake)
                if not started:
                    await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": _HEADERS})
                    started = True
                await send({"type": "http.response.body", "body": answer, "more_body": more})
            keep(lines.kept)


def _read(line: bytes | None, *, deps: ApiDeps, caller: Caller | None) -> Submission | Problem:
    """A line's job, or what is wrong with it."""
    if line is None:
        return too_large(deps.settings.max_body)
    try:
        members = parse_object(line)
        key: Any = members.get(KEY_FIELD)
        if key is not None and not (isinstance(key, str) and is_key(key.encode())):
            raise bad_key(KEY_FIELD, HTTPStatus.UNPROCESSABLE_ENTITY)
        key = key.encode() if key is not None else None
        return make_submission(line, key, deps=deps, caller=caller, members=members)
    except Refused as refused:
        return refused.problem


async def _take(batch: Sequence[Submission | Problem], intake: Intake) -> bytes:
    """Hand the jobs of a batch to the store; answers its lines."""
    submissions = [item for item in batch if isinstance(item, Submission)]
    answers = iter(await intake.submit_all(submissions))
    return b"".join(
        _problem_line(item) if isinstance(item, Problem) else _answer_line(next(answers)) for item in batch
    )


def _answer_line(answer: tuple[Accepted, str] | StoreError) -> bytes:
    try:
        if isinstance(answer, StoreError):
            raise answer
        return b'{"id": "%s"}\n' % accepted_id(*answer, field=KEY_FIELD).encode()
    except Refused as refused:
        return _problem_line(refused.problem)
    except StoreError:
        return _problem_line(STORE_UNAVAILABLE)


def _problem_line(problem: Problem) -> bytes:
    line = {"code": problem.code, "detail": problem.detail}
    if problem.field:
        line["field"] = problem.field
    return json.dumps(line).encode() + b"\n"
