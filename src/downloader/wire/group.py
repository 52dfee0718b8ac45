"""Groups of jobs, and the callback of a complete group."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from downloader.model import MAX_URL_CHARS, JobSpec, StateName
from downloader.wire.base import NEWER, Cursor, Moment, WireModel, moment, rfc3339


@with_config(ConfigDict(strict=True, hide_input_in_errors=True, use_attribute_docstrings=True))
class GroupRequest(TypedDict, total=False):
    """The callback of a group of jobs. The fields are those of a job."""

    callback_type: str
    """A configured backend, such as `http`."""
    callback_dst: Annotated[str, Field(max_length=MAX_URL_CHARS)]
    """The callback's destination, as for a job."""
    extra: Any
    """Passed back in the callback; a value that is not a string becomes JSON text."""


class Group(WireModel):
    """A group of jobs."""

    name: str
    state: Literal["open", "sealed", "complete"]
    """`open`: takes jobs. `sealed`: takes no jobs, and some have not ended. `complete`: all have ended."""
    jobs: int = 0
    """All jobs that were accepted. Once `complete`, the counts do not change."""
    succeeded: int = 0
    """Ended jobs whose download succeeded. A job has ended when its download and callback have."""
    failed: int = 0
    cancelled: int = 0
    unfinished: int = 0
    """Jobs whose download or callback goes on."""
    first_at: Moment | None = None
    """When the first job was accepted."""
    last_at: Moment | None = None
    """When a job last ended."""
    completed_at: Moment | None = None
    callback_id: str = ""
    """The id of the group's callback, for `GET /jobs/<id>` and `POST /retry/<id>`. Empty without a callback,
    and until the group is complete."""
    callback_state: Annotated[StateName | Literal[""], NEWER] = ""
    """The state of the group's callback; empty without a callback, or once its record is deleted."""


class GroupPage(WireModel):
    """A page of groups. With a Redis Cluster, a group may be on several pages."""

    groups: Sequence[Group]
    cursor: Cursor


class GroupCallback(BaseModel):
    """The payload of a group's callback; fields that a newer service adds are ignored."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    group: str
    """The group's name."""
    jobs: int
    """Number of jobs: the sum of `succeeded`, `failed` and `cancelled`."""
    succeeded: int
    failed: int
    cancelled: int
    first_at: str | None
    """When the first job was accepted (RFC 3339); `null` without jobs."""
    last_at: str | None
    """When the last job ended, its callback included; `null` without jobs."""
    extra: str
    """The group's `extra`."""


def group_callback_body(spec: JobSpec) -> bytes:
    """The body of the callback of a complete group, in ASCII; the same for every backend."""
    stored = json.loads(spec.completes)
    counts, times = (
        {name: stored.get(name, 0) for name in names}
        for names in (("jobs", "succeeded", "failed", "cancelled"), ("first_at", "last_at"))
    )
    fields = {
        "group": spec.aggr_id,
        **counts,
        **{name: rfc3339(time) if (time := moment(ms)) else None for name, ms in times.items()},
        "extra": spec.extra,
    }
    # Unchecked: `extra` may have a lone surrogate, which pydantic refuses and JSON in ASCII can express.
    return json.dumps(fields, separators=(",", ":")).encode("ascii")
