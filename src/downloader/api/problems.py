"""Errors as RFC 9457 problem documents.

A problem names a field or a header, never its value: bodies, headers and secrets are not echoed.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from pydantic import Field

from downloader import wire
from downloader.wire import Fault

CONTENT_TYPE = "application/problem+json"

RETRY_AFTER_S = 2
"""`Retry-After` of a 503: a store that restarts or fails over is back within a few seconds."""


class Problem(wire.Problem):
    """One error, as the client sees it, with the headers that its status requires."""

    more_headers: Annotated[Sequence[tuple[bytes, bytes]], Field(exclude=True)] = ()
    """Such as `Allow` and `Content-Range`."""

    def line(self) -> bytes:
        """The line of `POST /downloads`, without its end."""
        return self.model_dump_json(exclude={"status", "title", "type"}).encode()

    def body(self) -> bytes:
        """The document, as UTF-8 JSON."""
        return self.model_dump_json().encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers, without `Content-Length`."""
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"x-content-type-options", b"nosniff")]
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
        return [*headers, *self.more_headers]


class Refused(Exception):
    """The request is answered with this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def fault_in(field: str, code: str, detail: str) -> Fault:
    """An error in a field, or a warning about it."""
    return Fault(code=code, detail=detail, field=field)


def faulty(status: int, errors: Sequence[Fault]) -> Problem:
    """A job with these errors, at least one."""
    first = errors[0]
    return Problem(status=status, code=first.code, detail=first.detail, field=first.field, errors=errors)


def bad_request(code: str, detail: str) -> Refused:
    """400: the request itself is malformed."""
    return Refused(Problem(status=HTTPStatus.BAD_REQUEST, code=code, detail=detail))


def unavailable(code: str, detail: str) -> Problem:
    """503, with `Retry-After`."""
    return Problem(status=HTTPStatus.SERVICE_UNAVAILABLE, code=code, detail=detail)


STORE_UNAVAILABLE = unavailable("store_unavailable", "The store cannot take requests now; try again.")
INTERNAL = Problem(
    status=HTTPStatus.INTERNAL_SERVER_ERROR,
    code="internal",
    detail="An internal error; the service's log has it.",
)


def too_large(limit: int) -> Problem:
    """413: a body of more than `limit` bytes."""
    detail = f"The body has more than {limit} bytes."
    return Problem(status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE, code="too_large", detail=detail)


def not_found(detail: str) -> Refused:
    """404."""
    return Refused(Problem(status=HTTPStatus.NOT_FOUND, code="not_found", detail=detail))


UNKNOWN_JOB = Problem(status=HTTPStatus.NOT_FOUND, code="unknown_job", detail="There is no job with this id.")
