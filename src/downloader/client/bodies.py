"""What the clients send: jobs in batches, JSON, parameters; and the response to a job among many."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

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


BATCH_JOBS = 500
BATCH_BYTES = 1024**2
"""Jobs and bytes in one request of `submit_many`, which is sent again as a whole. Its response fits into the
buffers of a connection, so that the service is not held up while the request is still being sent."""

Lines = Sequence[tuple[JobFields, bytes]]
"""Jobs, each with a line of NDJSON."""


class Batches:
    """Collects jobs into batches of bounded size."""

    def __init__(self) -> None:
        self._lines: list[tuple[JobFields, bytes]] = []
        self._bytes = 0

    def add(self, job: JobFields) -> Lines:
        """Add a job; returns the full batch if the job did not fit into that, otherwise an empty one."""
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


def query(**given: str | datetime | None) -> Mapping[str, str]:
    """The parameters that are given; a time without a zone is local time."""
    return {
        name: value.astimezone().isoformat()
        if isinstance(value, datetime)
        else value.encode(errors="replace").decode()  # without half of a surrogate pair
        for name, value in given.items()
        if value is not None
    }


def encode(fields: Mapping[str, Any]) -> bytes:
    """Compact JSON."""
    return json.dumps(fields, separators=(",", ":")).encode()


def segment(text: str) -> str:
    """Percent-encode a text as one segment of a path."""
    return quote(text, safe="", errors="surrogatepass")  # the service then knows nothing of this name


def new_key() -> str:
    """A random idempotency key."""
    return secrets.token_hex(16)
