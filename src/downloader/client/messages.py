"""Requests and responses of the clients: jobs in batches, parameters, errors. No I/O."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict

from downloader.backoff import parse_retry_after
from downloader.errors import DownloaderError
from downloader.model import ErrorName, describe_status
from downloader.wire import AcceptedLine, DownloadRequest, LineProblem


class ClientError(DownloaderError):
    """Base of the client's errors. Raised itself if a response does not come from this service."""


class Unreachable(ClientError):
    """No response: refused, reset, timed out. The service may still have carried out the request."""


class WaitTimeout(ClientError, TimeoutError):
    """The time for waiting was up before a job had ended; the job goes on."""


class ApiProblem(ClientError):
    """The service refused the request, or a line of many, with a problem document (RFC 9457)."""

    def __init__(self, problem: LineProblem, *, status: int = 0) -> None:
        details = [fault.detail for fault in problem.errors] or [problem.detail]
        where = f" ({problem.field})" if problem.field and problem.field not in problem.detail else ""
        super().__init__("; ".join(text.rstrip(".") for text in details) + where)
        self.code = problem.code
        """Stable code for programs, from the list in `docs/errors.md`. Empty if the response came from
        something else, such as a proxy."""
        self.detail = problem.detail
        """One sentence, for people."""
        self.field = problem.field
        """The field, header or parameter at fault; empty if there is none."""
        self.status = status
        """The response's status; 0 for a line of `submit_many`, which has no status."""
        self.errors: Sequence[Mapping[str, Any]] = [fault.model_dump() for fault in problem.errors]
        """All errors of a job, each with `code`, `detail` and `field`; empty for other requests."""


class JobFields(DownloadRequest, total=False):
    """The fields of a job, as in `POST /download`."""

    idempotency_key: str
    """A job is accepted only once per key, even if sent several times. By default a random key."""


class JobFilters(TypedDict, total=False):
    """Filters for jobs. A member that is `None` does not filter."""

    aggr_id: str | None
    """Only jobs of this aggregation."""
    q: str | None
    """Only jobs of aggregations whose name contains this text, in upper or lower case."""
    since: datetime | None
    """Only jobs that ended at this time or later. A time without a zone is local time."""
    until: datetime | None
    """Only jobs that ended at this time or earlier."""
    error_code: ErrorName | None
    """Only jobs whose download ended with this code."""
    destination: str | None
    """Only jobs with a callback to this destination, written as in `stats`."""
    group: str | None
    """Only jobs of this group; without a state, its unfinished jobs."""
    tags: Sequence[str]
    """Only jobs with one of these tags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The response to a job among many: an id or a problem."""

    job: JobFields
    id: str = ""
    problem: ApiProblem | None = None
    warnings: Sequence[str] = ()
    """Lines about ignored parts of the job, such as an unknown field."""

    @property
    def not_taken(self) -> bool:
        """Whether the store did not take the job, so that a client may send the job again."""
        return self.problem is not None and self.problem.code == "store_unavailable"


BATCH_JOBS = 500
BATCH_BYTES = 1024**2
"""Most jobs and bytes in one request of `submit_many`. A retry repeats the whole request. The service
responds while it reads, so the response must fit into the buffers of a connection until the request is
sent."""

Lines = Sequence[tuple[JobFields, bytes]]
"""Jobs, each with a line of NDJSON."""


class Batches:
    """Collects jobs into batches of bounded size."""

    def __init__(self) -> None:
        self._lines: list[tuple[JobFields, bytes]] = []
        self._bytes = 0

    def add(self, job: JobFields) -> Lines:
        """Add a job. If the present batch was full, return it and begin another; otherwise return `()`."""
        line = encode({**job, "idempotency_key": job.get("idempotency_key") or new_key()}) + b"\n"
        full = len(self._lines) == BATCH_JOBS or self._bytes + len(line) > BATCH_BYTES
        batch = self.rest() if full else ()
        self._lines.append((job, line))
        self._bytes += len(line)
        return batch

    def rest(self) -> Lines:
        """Remove and return the jobs of the last batch, which need not be full."""
        batch, self._lines, self._bytes = self._lines, [], 0
        return batch


def query(**given: str | datetime | Sequence[str] | None) -> Mapping[str, str]:
    """The parameters that are given; a time without a zone is local time."""
    return {name: text for name, value in given.items() if (text := _parameter(value))}


def _parameter(value: str | datetime | Sequence[str] | None) -> str:
    if isinstance(value, datetime):
        return value.astimezone().isoformat()
    text = value if isinstance(value, str) else ",".join(value or ())
    return text.encode(errors="replace").decode()  # lone surrogates become `?`


def encode(fields: Mapping[str, Any]) -> bytes:
    """Compact JSON."""
    return json.dumps(fields, separators=(",", ":")).encode()


def segment(text: str) -> str:
    """Percent-encode a text as one segment of a path."""
    return quote(text, safe="", errors="surrogatepass")  # a lone surrogate makes a name that does not exist


def new_key() -> str:
    """A random idempotency key."""
    return secrets.token_hex(16)


_AGAIN = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""Statuses of requests that were not carried out."""

_UNCERTAIN = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT})
"""Statuses from a proxy; the request may have been carried out."""

_ERRNO = re.compile(r"^\[Errno -?\d+\] ")

M = TypeVar("M", bound=BaseModel)
D = TypeVar("D", dict[str, Any], list[Any])


def pause_wanted(result: httpx2.Response | httpx2.RequestError, *, repeatable: bool) -> float | None:
    """Least seconds to wait before the request is repeated; `None` if no repetition is allowed.

    `repeatable`: the request may be carried out twice.
    """
    if isinstance(result, httpx2.RequestError):
        unsent = isinstance(result, httpx2.ConnectError | httpx2.ConnectTimeout)
        return 0.0 if repeatable or unsent else None
    if result.status_code in _AGAIN or (repeatable and result.status_code in _UNCERTAIN):
        return parse_retry_after(result.headers.get("retry-after", ""), datetime.now(UTC)) or 0.0
    return None


def success(result: httpx2.Response | httpx2.RequestError, url: httpx2.URL) -> httpx2.Response:
    """A response with a status of 2xx.

    Raises:
        ApiProblem: another status.
        Unreachable: no response from the service at `url`.
        ClientError: a response that cannot be decoded.
    """
    if isinstance(result, httpx2.RequestError):
        raise no_response(result, url) from result
    if not result.is_success:
        raise _problem(result)
    return result


def no_response(error: httpx2.RequestError, url: httpx2.URL) -> ClientError:
    """The client's error for a request to the service at `url` that failed with `error`."""
    if isinstance(error, httpx2.DecodingError):  # the body is not in the encoding that its head names
        return not_a_downloader(error.request.url)
    if isinstance(error, httpx2.TimeoutException):
        reason = "no answer in time"
    else:
        reason = _ERRNO.sub("", str(error)) or type(error).__name__
    return Unreachable(f"cannot reach {url}: {reason}")


def _problem(response: httpx2.Response) -> ApiProblem:
    with suppress(ClientError):
        problem = _line_problem(json_object(response.content, response.url), response.url)
        if problem.code:
            return ApiProblem(problem, status=response.status_code)
    detail = f"{response.url.copy_with(query=None)} answered {describe_status(response.status_code)}"
    return ApiProblem(LineProblem(code="", detail=detail), status=response.status_code)


def _line_problem(document: dict[str, Any], url: httpx2.URL) -> LineProblem:
    """The problem in a document, without optional members that are malformed."""
    try:
        return LineProblem.model_validate(document)
    except ValidationError as error:
        malformed = {details["loc"][0] for details in error.errors()}
    return as_model(LineProblem, {name: document[name] for name in document.keys() - malformed}, url)


def submitted(job: JobFields, line: str, response: httpx2.Response) -> Submitted:
    """The outcome for one line of `POST /downloads`."""
    document = json_object(line, response.url)
    if "id" in document:
        accepted = as_model(AcceptedLine, document, response.url)
        warnings = [warning.detail for warning in accepted.warnings]
        return Submitted(job=job, id=accepted.id, warnings=warnings)
    problem = _line_problem(document, response.url)
    warnings = [warning.detail for warning in problem.warnings]
    return Submitted(job=job, problem=ApiProblem(problem), warnings=warnings)


def as_model(model: type[M], document: Mapping[str, Any], url: httpx2.URL) -> M:
    """A document from this URL as this model.

    Raises:
        ClientError: the document does not fit the model.
    """
    try:
        return model.model_validate(document)
    except ValidationError:
        raise not_a_downloader(url) from None


def json_object(text: str | bytes, url: httpx2.URL) -> dict[str, Any]:
    """The JSON object in a text from this URL.

    Raises:
        ClientError: the text has no JSON object.
    """
    return _document(text, url, dict)


def json_array(text: str | bytes, url: httpx2.URL) -> list[Any]:
    """Like `json_object`, for an array."""
    return _document(text, url, list)


def _document(text: str | bytes, url: httpx2.URL, kind: type[D]) -> D:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, kind):
        raise not_a_downloader(url)
    return document


def not_a_downloader(url: httpx2.URL) -> ClientError:
    """The error for a response that this service does not send."""
    return ClientError(
        f"{url.copy_with(query=None)} did not answer as a downloader does: is it another service?"
    )


class Snapshots:
    """Finds the snapshots in the lines of `GET /events`."""

    def __init__(self, url: httpx2.URL) -> None:
        self._url = url
        self._event = ""

    def read(self, line: str) -> dict[str, Any] | None:
        """The snapshot in this line; `None` if the line has no snapshot."""
        name, _, value = line.partition(": ")
        if name == "event":
            self._event = value
        elif name == "data" and self._event == "snapshot":
            return json_object(value, self._url)
        return None
