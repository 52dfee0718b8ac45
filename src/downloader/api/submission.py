"""The way of a job to the store: from the bytes of a request to a `Submission`, and the response as JSON."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from downloader.api.auth import Caller
from downloader.api.deps import ApiDeps
from downloader.api.parse import parse_job, warnings_for
from downloader.api.problems import Problem, Refused, fault_in, problem, refused
from downloader.globs import anything
from downloader.model import JobSpec
from downloader.observe import Event, get_logger
from downloader.store import Accepted, StoreUnavailable, Submission
from downloader.wire import AcceptedLine, Fault

TRACE = "downloader.trace"
"""Key in the ASGI scope: the traceparent of the request's own span; absent without traces."""

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")

_KEY = re.compile(r"[\x20-\x7e]{1,255}")

QUOTA_AFTER_S = 10
"""`Retry-After` of a 429: jobs of the token end at any time."""

_QUOTAS = {
    "jobs": "max_pending",
    "bytes": "max_pending_bytes",
    "aggregations": "max_aggregations",
    "groups": "max_groups",
}

_log = get_logger()


def traceparent(headers: Mapping[bytes, bytes]) -> str:
    """The trace that a request belongs to; empty without a valid header, as W3C Trace Context demands."""
    value = headers.get(b"traceparent", b"").decode("latin-1")
    match = _TRACEPARENT.fullmatch(value)
    return value if match and match[1].strip("0") and match[2].strip("0") else ""


def in_trace(submission: Submission, trace: str) -> Submission:
    """The submission with a trace, which the digests do not include: a repetition has another trace."""
    return replace(submission, spec=replace(submission.spec, traceparent=trace)) if trace else submission


def key_fault(key: object, field: str) -> Fault | None:
    """The error of an idempotency key; `None` if the key is valid or absent."""
    if key is None or (isinstance(key, str) and _KEY.fullmatch(key)):
        return None
    return fault_in(field, "idempotency_key", "must be 1 to 255 printable ASCII characters")


def make_submission(
    body: bytes,
    members: dict[str, Any],
    *,
    key: str | None,
    deps: ApiDeps,
    caller: Caller | None,
    earlier: Sequence[Fault] = (),
) -> Submission:
    """Make the submission of one checked job with a new id; arguments as for `parse_job`.

    `key`: the job's idempotency key, checked.

    Raises:
        Refused: 400, 403 or 422; with the job's warnings.
    """
    try:
        spec = parse_job(body, members, deps, new_id=deps.store.new_id, caller=caller, earlier=earlier)
    except Refused as error:
        wrong = error.problem.model_copy(update={"warnings": warnings_for(members)})
        if caller is not None and wrong.code == "forbidden":
            _log.info(Event.API_REFUSED, reason=wrong.code, token=caller.name, field=wrong.field)
        raise Refused(wrong) from None
    permits = None if caller is None or caller.proxies is anything else caller.proxies
    quota = None if caller is None else caller.quota
    if key is None:
        return Submission(spec=spec, permits=permits, quota=quota)
    if caller is not None:  # keys are each token's own; no key and no name contains a NUL
        key = f"{caller.name}\0{key}"
    return Submission(
        spec=spec,
        idempotency_key=hashlib.sha256(key.encode()).hexdigest(),
        value_digest=_digest_of_values(spec, members),
        body_digest=hashlib.sha256(body).hexdigest(),
        permits=permits,
        quota=quota,
    )


def _digest_of_values(spec: JobSpec, members: Mapping[str, Any]) -> str:
    """A digest of the values of a job's fields.

    The order of keys, blanks, and the way a value is written (`4.0`, a field given with its default value)
    do not change the digest. Fields with their default are left out, so that the digest stays the same when a
    later version has more fields.
    """
    stored = json.loads(spec.to_json())
    for name in ("created_ms", "token", "counted"):
        stored.pop(name, None)
    if "key" in stored:  # not with the id and the date, which a repetition does not have
        stored["key"] = members["key"]
    if "extra" in stored:  # of a value that is no string, the text as received
        stored["extra"] = members["extra"]
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def check_accepted(why: Accepted, job_id: str, *, key_field: str) -> None:
    """Check the store's result for a job; `key_field` names the place of the idempotency key.

    Raises:
        Refused: 422, the key was used with another job; 409, the aggregation has another proxy, or
            the group is sealed.
        StoreUnavailable: the job's shard has not answered.
    """
    if why is Accepted.UNAVAILABLE:
        raise StoreUnavailable("the job's shard of the store does not answer")
    if why is Accepted.PROXIED:
        raise refused("proxy_not_allowed", field="aggr_id")
    if why is Accepted.SEALED:
        raise refused("group_sealed", field="group")
    if why is Accepted.OVER_QUOTA:
        raise Refused(over_quota(job_id))
    if why is Accepted.CONFLICT:
        detail = f"The {key_field} was used with another job."
        raise refused("idempotency_conflict", detail, field=key_field)


def over_quota(quota: str) -> Problem:
    """The response to a token that has reached a quota; `quota` is the store's name of the amount."""
    until = "groups are deleted" if quota == "groups" else "jobs have ended"
    return problem(
        "over_quota",
        f"The token has reached {_QUOTAS[quota]}; try again when some of its {until}.",
        more_headers=((b"retry-after", b"%d" % QUOTA_AFTER_S),),
    )


def created(job_id: str, warnings: Sequence[Fault], *, replayed: bool = False) -> bytes:
    """The JSON of the response to an accepted job."""
    if not warnings and not replayed:  # nearly always
        return b'{"id": "%s"}' % job_id.encode()
    return AcceptedLine(id=job_id, warnings=warnings, replayed=replayed).model_dump_json().encode()
