"""What the clients raise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from downloader.errors import DownloaderError


class ClientError(DownloaderError):
    """Base of the errors below; raised itself if another program than this service answers."""


class Unreachable(ClientError):
    """No answer: refused, reset, timed out. The service may have carried out the request nevertheless."""


class WaitTimeout(ClientError, TimeoutError):
    """A job had not ended when the time for waiting was up; it goes on."""


class ApiProblem(ClientError):
    """The service refused the request, or a line of many, with a problem document (RFC 9457)."""

    def __init__(
        self,
        *,
        code: str,
        detail: str,
        field: str = "",
        status: int = 0,
        errors: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        details = [str(each.get("detail", "")) for each in errors] or [detail]
        where = f" ({field})" if field and field not in detail else ""
        super().__init__("; ".join(text.rstrip(".") for text in details) + where)
        self.code = code
        """Stable, for programs: those of `docs/api.md`. Empty if something else than the service answered."""
        self.detail = detail
        """One sentence, for people."""
        self.field = field
        """The field, header or parameter at fault; empty if there is none."""
        self.status = status
        """The response's status; 0 for a line of `submit_many`, which has none of its own."""
        self.errors = errors
        """All errors of a job, each with `code`, `detail` and `field`; empty for other requests."""

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, status: int = 0) -> Self:
        """From the members of a problem document, or of a line of `POST /downloads`."""
        code, detail, field = (str(document.get(name, "")) for name in ("code", "detail", "field"))
        found = document.get("errors")
        errors = [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else ()
        return cls(code=code, detail=detail or code, field=field, status=status, errors=errors)
