"""The base of the models, times in the form of RFC 3339, and errors as RFC 9457 problem documents."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from operator import not_
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainSerializer,
    WithJsonSchema,
)

from downloader.model import ErrorName, StateName, status_phrase

LAST_MS = 253402300799999
"""The last millisecond of the year 9999, the last that RFC 3339 and Python can write."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class WireModel(BaseModel):
    """Base of the models that the API sends. Members that a newer service adds are kept in `model_extra`."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )


def moment(ms: int | None) -> datetime | None:
    """A Unix time as a time in UTC; `None` for 0 too. Times after the year 9999 become `LAST_MS`."""
    return _EPOCH + min(ms, LAST_MS) * _MS if ms else None


def rfc3339(time: datetime) -> str:
    """A time as RFC 3339 in UTC, to the millisecond."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unix_ms(text: str) -> int:
    """The Unix time of a text as in RFC 3339; 1 for times before 1970.

    Raises:
        ValueError: the text is no time, or has no offset from UTC.
    """
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return max(1, (time.astimezone(UTC) - _EPOCH) // _MS)
    except (ValueError, OverflowError):
        pass
    raise ValueError("must be a time with its offset, as in RFC 3339")


Moment = Annotated[
    datetime,
    PlainSerializer(rfc3339, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A time, in JSON as RFC 3339 in UTC."""


NEWER = GetPydanticSchema(lambda _type, handler: handler(str))
"""Marks a field that has known values for type checkers, but accepts values added by a newer service."""

KnownState = Annotated[
    StateName, NEWER, WithJsonSchema({"type": "string", "enum": list(get_args(StateName))})
]
KnownError = Annotated[ErrorName | Literal[""], NEWER]

Cursor = Annotated[str, Field(description="Of the next page; empty at the end.")]


def optional(**schema: Any) -> Any:
    """A member that is left out of the JSON while empty or false."""
    return Field(exclude_if=not_, **schema)


def _whole(value: object) -> object:
    """Convert `4.0` to 4: JSON does not distinguish integers from floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
"""An integer of a request: `4.0` is 4; `2.5` and `true` are refused."""


class _Error(WireModel):
    code: str
    """Stable, for programs."""
    detail: str
    """One sentence for people; may change."""


class Fault(_Error):
    """An error in one field of a job, or a warning about a field."""

    field: str


Warnings = Annotated[
    Sequence[Fault], optional(description="Fields and headers of a job that are ignored; at most ten.")
]


class LineProblem(_Error):
    """A problem with one line of `POST /downloads`."""

    field: Annotated[str, optional()] = ""
    """The field of the body, the header or the parameter at fault."""
    errors: Annotated[Sequence[Fault], optional()] = ()
    """All errors of a job; the first is also in `code`, `detail` and `field`."""
    warnings: Warnings = ()


class Problem(LineProblem):
    """An error as a problem document (RFC 9457)."""

    status: int
    title: str = Field(default_factory=lambda data: status_phrase(data["status"]))
    """The name of the status."""
    type: str = "about:blank"
    """Always `about:blank`: `code` is the kind of error."""
