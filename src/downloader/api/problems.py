"""Errors as RFC 9457 problem documents.

A problem names a field or a header, never its value: bodies, headers and secrets are not echoed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from http import HTTPStatus
from typing import Any

from downloader.model import status_phrase

CONTENT_TYPE = "application/problem+json"

RETRY_AFTER_S = 2
"""`Retry-After` of a 503: a store that restarts or fails over is back within a few seconds."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error in one field of a job, or a warning about it."""

    field: str
    code: str
    """Stable, for programs."""
    detail: str
    """One sentence for a person; may change."""

    def members(self) -> dict[str, str]:
        """Its JSON."""
        return {"code": self.code, "detail": self.detail, "field": self.field}


@dataclass(frozen=True, slots=True)
class Problem:
    """One error, as the client sees it."""

    status: int
    code: str
    """Stable, for programs."""
    _: KW_ONLY
    detail: str
    """One sentence for a person; may change."""
    field: str = ""
    """The field of the body, or the header, at fault; empty if there is none."""
    more_headers: tuple[tuple[bytes, bytes], ...] = ()
    """Headers that the status requires (`Allow`, `Content-Range`)."""
    errors: Sequence[Fault] = ()
    """All errors of a job; code, detail and field above are those of the first."""
    warnings: Sequence[Fault] = ()
    """Warnings about the job."""

    def members(self) -> dict[str, Any]:
        """The members of the document other than its status."""
        members: dict[str, Any] = {"code": self.code, "detail": self.detail}
        if self.field:
            members["field"] = self.field
        for name, faults in (("errors", self.errors), ("warnings", self.warnings)):
            if faults:
                members[name] = [fault.members() for fault in faults]
        return members

    def body(self) -> bytes:
        """The document, as UTF-8 JSON."""
        start = {"type": "about:blank", "title": status_phrase(self.status), "status": self.status}
        return json.dumps(start | self.members()).encode()

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


def faulty(status: int, errors: Sequence[Fault]) -> Problem:
    """A job with these errors, at least one."""
    first = errors[0]
    return Problem(status, first.code, detail=first.detail, field=first.field, errors=errors)


def bad_request(code: str, detail: str) -> Refused:
    """400: the request itself is malformed."""
    return Refused(Problem(HTTPStatus.BAD_REQUEST, code, detail=detail))


def unavailable(code: str, detail: str) -> Problem:
    """503, with `Retry-After`."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, code, detail=detail)


STORE_UNAVAILABLE = unavailable("store_unavailable", "The store cannot take requests now; try again.")
INTERNAL = Problem(
    HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail="An internal error; the service's log has it."
)


def too_large(limit: int) -> Problem:
    """413: a body of more than `limit` bytes."""
    detail = f"The body has more than {limit} bytes."
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", detail=detail)


def not_found(detail: str) -> Refused:
    """404."""
    return Refused(Problem(HTTPStatus.NOT_FOUND, "not_found", detail=detail))


UNKNOWN_JOB = Problem(HTTPStatus.NOT_FOUND, "unknown_job", detail="There is no job with this id.")
