"""What the clients send, and the response to a job among many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from downloader.client.errors import ApiProblem
from downloader.wire import DownloadRequest


class JobFields(DownloadRequest, total=False):
    """The fields of a job, as in `POST /download`."""

    idempotency_key: str
    """The job is accepted once, however often sent with this key; made at random if absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The response to a job among many: an id or a problem."""

    job: JobFields
    id: str = ""
    problem: ApiProblem | None = None
    warnings: Sequence[str] = ()
    """What the service ignored, such as an unknown field."""

    @property
    def not_taken(self) -> bool:
        """Whether the store did not take the job, so that a client may send the job again."""
        return self.problem is not None and self.problem.code == "store_unavailable"
