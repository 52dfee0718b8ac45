"""Parts of several commands: flags, the files that flags name, and the client of a running service."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from downloader.errors import ConfigError
from downloader.model import ErrorName
from downloader.printable import escape

if TYPE_CHECKING:
    from downloader.client import ApiProblem, Client, JobFilters
    from downloader.config import Settings

HOST_LIMIT = 4
"""Default limit of downloads from one host at once: quick, and few enough for any host."""

Config = Annotated[Path | None, Parameter(name=["--config", "-c"])]
Host = Annotated[str | None, Parameter(name="--host")]
Port = Annotated[int | None, Parameter(name=["--port", "-p"], validator=Number(gte=0, lte=65535))]
Json = Annotated[bool, Parameter(name="--json", show_default=False)]


AggrId = Annotated[str | None, Parameter(name=["--aggr-id", "--aggr"])]
Part = Annotated[str | None, Parameter(name="-q")]
GroupName = Annotated[str | None, Parameter(name="--group")]
Tags = Annotated[tuple[str, ...], Parameter(name="--tag", show_default=False)]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = re.compile(r"([0-9]{1,6})([smhdw])")


def parse_bytes(text: str, flag: str) -> int:
    """The number of bytes in the value of a flag, such as `500KiB` or `2MB`.

    Raises:
        ConfigError: it is no number of bytes, or 0.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        if (size := TypeAdapter(ByteSize).validate_python(text)) > 0:
            return size
    except ValidationError:
        pass
    raise ConfigError(f'{flag}: must be a number of bytes, or like "500KiB"')


def _time(_type: object, tokens: Sequence[Token]) -> datetime:
    """The time of a flag; one without a zone is local time."""
    text, now = tokens[0].value, datetime.now().astimezone()
    if age := _AGE.fullmatch(text):
        return now - timedelta(seconds=int(age[1]) * _UNITS_S[age[2]])
    if text in ("today", "yesterday"):
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight - timedelta(days=text == "yesterday")
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{tokens[0].keyword} {text}: must be a time such as 2026-11-27T08:00 or yesterday,"
            " or a number with s, m, h, d or w, such as 2h for two hours ago"
        ) from None


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The flags that select jobs."""

    aggr_id: AggrId = None
    """Only jobs of this aggregation."""
    q: Part = None
    """Only jobs of aggregations with this text in the name."""
    error_code: Annotated[ErrorName | None, Parameter(name="--error-code")] = None
    """Only jobs whose download ended with this code."""
    destination: Annotated[str | None, Parameter(name="--destination")] = None
    """Only jobs with a callback to this destination, such as "http https://client.example"."""
    since: Annotated[datetime | None, Parameter(name="--since", converter=_time)] = None
    """Only jobs that ended at this time or later: 2026-11-27T08:00, yesterday, or 2h ago."""
    group: GroupName = None
    """Only jobs of this group."""
    tag: Tags = ()
    """Only jobs with one of these tags."""

    def fields(self) -> JobFilters:
        """The filters as arguments of the client."""
        fields = asdict(self)
        return cast("JobFilters", {"tags": fields.pop("tag"), **fields})


NO_FILTERS = Filters()

API = "http://127.0.0.1:8000"
"""Same as the default URL of `downloader.client`, whose import would slow down `--help`."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The flags that identify the service."""

    api: Annotated[str, Parameter(name="--api", env_var="DOWNLOADER_API")] = API
    """Address of the service."""
    token: Annotated[str, Parameter(name="--token", env_var="DOWNLOADER_TOKEN", show_default=False)] = ""
    """Token of the service. Others on this machine can see it; prefer the variable."""


LOCAL = Service()
"""The default: a service on this machine, without a token."""

_USAGE = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.MISDIRECTED_REQUEST,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
"""Statuses of responses that mean: change the command line or the token."""

_HINTS: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "; set DOWNLOADER_TOKEN to one of the service's [[api.tokens]]",
    HTTPStatus.FORBIDDEN: "; use another token",
}


def load(config: Path | None, flags: dict[str, Any] | None = None) -> Settings:
    """The settings from a file, the environment and flags (by dotted key, `None`: not given).

    Raises:
        ConfigError: a setting is invalid, or the file cannot be read.
    """
    from downloader.config import load_settings

    return load_settings(config, environ=os.environ, overrides=flags or {})


def name_of(source: str) -> str:
    """The name of a file that a flag names, for people."""
    return "standard input" if source == "-" else source


def read_text(source: str) -> Iterator[str]:
    """Yield the lines of a text, each with the line end.

    Args:
        source: a file's name, or `-` for standard input. UTF-8.

    Raises:
        ConfigError: the file cannot be read.
    """
    name = name_of(source)
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb") as file:
            for number, line in enumerate(file):
                yield line.decode("utf-8" if number else "utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ConfigError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_lines(source: str) -> Iterator[tuple[str, str]]:
    """Yield the place (`FILE, line NUMBER`) and text of each line, except blank lines and comments.

    A # at the start of a line begins a comment; elsewhere it is part of a URL. Arguments and errors are those
    of `read_text`.
    """
    for number, line in enumerate(read_text(source), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield f"{name_of(source)}, line {number}", text


@contextlib.contextmanager
def connect(service: Service, *, retries: int = 0) -> Iterator[Client]:
    """Open a client; a refusal by the service becomes an error with the right exit status.

    Args:
        service: address and token.
        retries: further tries of a failed request; by default none, so that a person sees an error at once.

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
    """One line for the user: status, text, and a hint."""
    words = " ".join(str(word) for word in (problem.status, problem.code) if word)
    text = str(problem).replace("`download=1`", "--download")
    return f"{words}: {text}{_HINTS.get(problem.status, '')}"


def for_each(names: Sequence[str], act: Callable[[Client, str], None], service: Service) -> int:
    """Call `act` for each job or aggregation; return the exit status.

    An unknown name, or one in the wrong state, gives a line on standard error.

    Raises:
        ConfigError: no names are given.
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
