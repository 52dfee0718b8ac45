"""Shared by the commands for a running service: its address, a client, and errors in one line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from downloader.errors import ConfigError
from downloader.printable import escape

if TYPE_CHECKING:
    from downloader.client import ApiProblem, Client

API = "http://127.0.0.1:8000"
"""As `downloader.client.DEFAULT_URL`, which is not imported for `--help`."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The flags that say which service a command is for."""

    api: Annotated[str, Parameter(name="--api", env_var="DOWNLOADER_API")] = API
    """Address of the service."""
    token: Annotated[str, Parameter(name="--token", env_var="DOWNLOADER_TOKEN", show_default=False)] = ""
    """Its token. Others on this machine can see it; prefer the variable."""


LOCAL = Service()
"""The default: on this machine, without a token."""

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
def connect(service: Service, *, retries: int = 0) -> Iterator[Client]:
    """A client; refusals of the service are raised as errors with the right exit status.

    Args:
        service: its address and token.
        retries: further tries of a request; none by default, so that a person sees an error at once.

    Raises:
        ConfigError: the service refused, and the command line or the token has to be changed.
        ClientError: anything else went wrong.
    """
    from downloader.client import ApiProblem, Client

    with Client(service.api, token=service.token, retries=retries) as client:
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


def for_each(names: Sequence[str], act: Callable[[Client, str], None], service: Service) -> int:
    """Do something with each job or aggregation; returns the exit status.

    There is a line on standard error for each that is unknown or in the wrong state.

    Raises:
        ConfigError: there are none.
    """
    from downloader.client import ApiProblem

    if not names:
        raise ConfigError("nothing to do: give an id or a name")
    status = 0
    with connect(service) as client:
        for name in names:
            try:
                act(client, name)
            except ApiProblem as problem:
                if problem.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                    raise
                status = 1
                sys.stderr.write(f"downloader: {escape(name)}: {explain(problem)}\n")
    return status
