"""What the clients raise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from downloader.errors import DownloaderError
from downloader.wire import LineProblem


class ClientError(DownloaderError):
    """Base of the errors below; raised as such if a response is not from this service."""


class Unreachable(ClientError):
    """No response: refused, reset, timed out. The service may have carried out the request nevertheless."""


class WaitTimeout(ClientError, TimeoutError):
    """The time for waiting was up before a job had ended; the job goes on."""


class ApiProblem(ClientError):
    """The service refused the request, or a line of many, with a problem document (RFC 9457)."""

    def __init__(self, problem: LineProblem, *, status: int = 0) -> None:
        details = [fault.detail for fault in problem.errors] or [problem.detail]
        where = f" ({problem.field})" if problem.field and problem.field not in problem.detail else ""
        super().__init__("; ".join(text.rstrip(".") for text in details) + where)
        self.code = problem.code
        """Stable code for programs, from the list in `docs/errors.md`. Empty if it was not the service that
        responded."""
        self.detail = problem.detail
        """One sentence, for people."""
        self.field = problem.field
        """The field, header or parameter at fault; empty if there is none."""
        self.status = status
        """The response's status; 0 for a line of `submit_many`, which has no status."""
        self.errors: Sequence[Mapping[str, Any]] = [fault.model_dump() for fault in problem.errors]
        """All errors of a job, each with `code`, `detail` and `field`; empty for other requests."""
