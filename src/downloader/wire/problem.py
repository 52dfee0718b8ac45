"""Errors as RFC 9457 problem documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from downloader.model import status_phrase
from downloader.wire.base import WireModel, optional


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
