"""What a response of the service says: a model of `downloader.wire`, or a problem."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from downloader.backoff import parse_retry_after
from downloader.client.bodies import JobFields, Submitted
from downloader.client.errors import ApiProblem, ClientError, Unreachable
from downloader.model import describe_status
from downloader.wire import AcceptedLine, LineProblem

_AGAIN = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""The request was not carried out."""

_UNCERTAIN = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT})
"""Responses of a proxy: the request may have been carried out."""

_ERRNO = re.compile(r"^\[Errno -?\d+\] ")

M = TypeVar("M", bound=BaseModel)


def pause_wanted(result: httpx2.Response | httpx2.RequestError, *, repeatable: bool) -> float | None:
    """Least seconds to wait before the request is repeated; `None` if no repetition is allowed.

    `repeatable`: it does no harm to carry out the request twice.
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
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
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
