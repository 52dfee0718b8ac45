"""What the commands for a running service have in common: its address, a client, and errors in one line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from downloader.errors import ConfigError

if TYPE_CHECKING:
    from downloader.client import ApiProblem, Client

API = "http://127.0.0.1:8000"
"""As `downloader.client.DEFAULT_URL`, which is not imported for `--help`."""

Api = Annotated[str, Parameter(name="--api", env_var="DOWNLOADER_API", help="Address of the service.")]
Token = Annotated[
    str,
    Parameter(
        name="--token",
        env_var="DOWNLOADER_TOKEN",
        show_default=False,
        help="Its token. Others on this machine can see it here; use the variable.",
    ),
]

_USAGE = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.MISDIRECTED_REQUEST,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
"""Answers for which the command line or the token has to be changed."""

_HINTS: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "; set DOWNLOADER_TOKEN to one of the service's [[api.tokens]]",
    HTTPStatus.FORBIDDEN: "; use another token",
}


@contextlib.contextmanager
def connect(api: str, token: str, *, retries: int = 0) -> Iterator[Client]:
    """A client, whose refusals leave as errors with the right exit status.

    Args:
        api: `--api`.
        token: `--token`.
        retries: further tries of a request; a person would rather be told at once.

    Raises:
        ConfigError: the service refused, and the command line or the token has to be changed.
        ClientError: anything else went wrong.
    """
    from downloader.client import ApiProblem, Client

    with Client(api, token=token, retries=retries) as client:
        try:
            yield client
        except ApiProblem as problem:
            if problem.status in _USAGE:
                raise ConfigError(explain(problem)) from problem
            raise


def explain(problem: ApiProblem) -> str:
    """One line: status, text, and what to do."""
    words = " ".join(str(word) for word in (problem.status, problem.code) if word)
    return f"{words}: {problem}{_HINTS.get(problem.status, '')}"


def write_json(document: Mapping[str, Any]) -> None:
    """A line of `--json`."""
    import json

    write(json.dumps(document))


def write(line: str) -> None:
    """A line of a program's output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
