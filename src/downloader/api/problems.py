"""Errors as RFC 9457 problem documents.

A problem names a field or a header, never its value: bodies, headers and secrets are not echoed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import Field

from downloader import wire
from downloader.wire import Fault

CONTENT_TYPE = "application/problem+json"

RETRY_AFTER_S = 2
"""`Retry-After` of a 503: a store that restarts or fails over is back within a few seconds."""


class Problem(wire.Problem):
    """An error, as clients receive errors, with the headers that the status requires."""

    more_headers: Annotated[Sequence[tuple[bytes, bytes]], Field(exclude=True)] = ()
    """Such as `Allow` and `Content-Range`."""

    def __init__(self, status: int, code: str, detail: str, **members: Any) -> None:
        super().__init__(status=status, code=code, detail=detail, **members)

    def line(self) -> bytes:
        """A line of the response to `POST /downloads`, without the line end."""
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
    """The response to the request is this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def problem(code: str, detail: str = "", **members: Any) -> Problem:
    """The problem with a code and the status of the code; `detail` is by default the meaning of the code."""
    return Problem(STATUSES[code], code, detail or CODES[code], **members)


def refused(code: str, detail: str = "", **members: Any) -> Refused:
    """See `problem`."""
    return Refused(problem(code, detail, **members))


def fault_in(field: str, code: str, detail: str) -> Fault:
    """An error in a field, or a warning about a field."""
    return Fault(code=code, detail=detail, field=field)


def faulty(status: int, errors: Sequence[Fault]) -> Problem:
    """The problem of a job with one or more errors."""
    first = errors[0]
    return Problem(status, first.code, first.detail, field=first.field, errors=errors)


def too_large(limit: int) -> Problem:
    """A body of more than `limit` bytes."""
    return problem("too_large", f"The body has more than {limit} bytes.")


_BY_STATUS: Mapping[int, Mapping[str, str]] = {
    HTTPStatus.BAD_REQUEST: {
        "bad_encoding": "The body is not UTF-8, or has half of a surrogate pair.",
        "bad_framing": "Transfer-Encoding with Content-Length or HTTP/1.0.",
        "bad_json": "The body is not well-formed JSON.",
        "bad_number": "A number is out of range, or NaN.",
        "bad_request": "The request is not well-formed HTTP.",
        "duplicate_key": "An object has the same key twice.",
        "idempotency_key": "The idempotency key is not 1 to 255 printable ASCII characters.",
        "not_an_object": "The body is not a JSON object.",
        "small_chunks": "The chunks of the body are too small.",
        "too_deep": "The body has more than 100 levels of nesting.",
    },
    HTTPStatus.UNAUTHORIZED: {
        "unauthorized": "A configured token is required: in the header Authorization: Bearer, or by POST"
        " /session.",
    },
    HTTPStatus.FORBIDDEN: {
        "cross_site": "A browser sent the request for another site.",
        "forbidden": "The token lacks the scope, or the field's value is not on its allow-lists.",
        "page_header": "With a session's cookie, a request to change something needs `X-Downloader-Page: 1`.",
    },
    HTTPStatus.NOT_FOUND: {
        "not_found": "There is no such route, file or role.",
        "unknown_aggregation": "There is no aggregation of this name with unfinished downloads, and nothing"
        " is set for it.",
        "unknown_group": "There is no group of jobs of this name.",
        "unknown_job": "There is no job with this id.",
    },
    HTTPStatus.METHOD_NOT_ALLOWED: {
        "method_not_allowed": "The route has no such method; see Allow.",
    },
    HTTPStatus.REQUEST_TIMEOUT: {"request_timeout": "The request arrived too slowly."},
    HTTPStatus.CONFLICT: {
        "encrypted": "The job is encrypted with a key that is not in this instance's"
        " `redis.encryption_keys`.",
        "group_complete": "The group is complete, and takes no other callback.",
        "group_not_complete": "The group is sealed, and some of its jobs have not ended.",
        "group_sealed": "The group is sealed and takes no more jobs.",
        "not_ended": "Only a job whose download and callback are over can be deleted; cancel it first.",
        "not_to_be_cancelled": "The download of this job is over.",
        "not_to_be_retried": "Only a failed callback, or with `download=1` a failed download, can be retried;"
        " no download whose aggregation uses another proxy now.",
        "proxy_not_allowed": "The aggregation goes through a proxy that the token may not use.",
    },
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: {"too_large": "The body is larger than `api.max_body`."},
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: {
        "range_not_satisfiable": "The range begins past the end of the file.",
    },
    HTTPStatus.MISDIRECTED_REQUEST: {
        "misdirected_request": "This host name is not allowed; see the setting `api.allowed_hosts`.",
    },
    HTTPStatus.UNPROCESSABLE_ENTITY: {
        "idempotency_conflict": "The idempotency key was used with another job.",
        "query": "A parameter of the query is malformed.",
        # Fields
        "bucket_not_allowed": "A bucket that is not in `processor.s3.buckets` or `processor.cloud.buckets`;"
        " any, without the extra `aws` or `cloud`.",
        "characters": "Control or invisible characters.",
        "egress": "`egress.callbacks` does not allow the callback's host.",
        "header_forbidden": "A warning: a header that the downloader sets itself is left out.",
        "header_name": "A header's name is not a token (RFC 9110).",
        "header_value": "Characters that no header can hold.",
        "headers_too_large": "More than 8 KiB of headers.",
        "key": "A path that is absolute, or has parts that are not allowed, also when filled in.",
        "malformed": "The field's form is wrong.",
        "mime_pattern": "A malformed pattern of MIME types.",
        "out_of_range": "A number below or above its bounds.",
        "required": "The field is missing or empty.",
        "reserved": "One of Kafka's internal topics.",
        "subpath": "A path that is absolute, or has parts that are not allowed.",
        "too_long": "The text is too long.",
        "too_many_headers": "More than 32 headers.",
        "unknown_backend": "A callback type that is not configured.",
        "unknown_field": "There is no such field: a warning for a job, an error for an aggregation.",
        "url_characters": "The URL has control characters.",
        "url_host": "The URL has no host, or a malformed one.",
        "url_malformed": "Not an absolute URL.",
        "url_port": "A port that does not exist, or another protocol's.",
        "url_scheme": "The URL has another scheme than allowed.",
        "url_too_long": "The URL has more than 8192 characters.",
        "url_userinfo": "The URL has more than one @ before its path.",
        "wrong_type": "The value is of another type than the field.",
    },
    HTTPStatus.TOO_MANY_REQUESTS: {
        "over_quota": "The token has reached one of its quotas; see Retry-After.",
    },
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: {
        "head_too_large": "Request line and headers are too large, or the headers too many.",
    },
    HTTPStatus.INTERNAL_SERVER_ERROR: {"internal": "An error of the service; its log has it."},
    HTTPStatus.SERVICE_UNAVAILABLE: {
        "store_unavailable": "The store cannot take requests now; try again.",
        "too_many_connections": "Too many clients are connected; try again.",
        "too_many_listeners": "Too many clients listen to events; try again.",
    },
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: {"http_version": "Only HTTP/1.0 and HTTP/1.1 are supported."},
}

CODES = {code: text for codes in _BY_STATUS.values() for code, text in sorted(codes.items())}
"""The codes of problem documents with explanations; `docs/api/` lists the codes by route."""

STATUSES = {code: status for status, codes in _BY_STATUS.items() for code in codes}
"""The status of a problem document by code. A field at fault has its code within the `errors` of a 422."""
