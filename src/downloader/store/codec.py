"""Arguments of the scripts for jobs and leases, and values from the scripts' answers. Pure.

Numbers that a script stores are sent as strings. States and error codes that are unknown come from a newer
version; they stay plain strings and are passed on.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

from downloader.model import (
    ErrorCode,
    FileFacts,
    JobSpec,
    Kind,
    Lease,
    Outcome,
    ResponseMetadata,
    State,
    Verdict,
)
from downloader.net import host_of
from downloader.phases import Phases
from downloader.store import ended
from downloader.store.values import CallbackPlan, Reapable, Settlement, Submission
from downloader.wire import moment

Seal = Callable[[str], str]
"""Encrypts a text that may contain a secret."""


# Arguments


def given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not `None`; the scripts take the others as absent."""
    return {name: value for name, value in arguments.items() if value is not None}


def submit(item: Submission, permitted: str, seal: Seal | None, *, with_host: bool = False) -> dict[str, Any]:
    """Arguments for a job; `permitted` is the proxy that the aggregation may have, if not every proxy.

    `with_host`: store the host of the URL for the scripts.
    """
    spec = replace(item.spec, host=host_of(item.spec.url)) if with_host else item.spec
    return given(
        id=spec.id,
        queue=spec.aggr_id,
        limit=str(spec.aggr_limit),
        rate=None if spec.aggr_rate is None else str(spec.aggr_rate),
        delay=None if spec.aggr_delay is None else str(spec.aggr_delay),
        due=spec.not_before,
        priority=spec.priority or None,
        proxy=spec.aggr_proxy,
        spec=spec.to_json(seal),
        idempotency=item.idempotency_key,
        values=item.value_digest,
        body=item.body_digest,
        permitted=permitted if item.permits else None,
        token=spec.token or None,
        quota=item.quota,
        job_group=spec.group or None,
    )


def script_of(settlement: Settlement) -> str:
    """The name of the transition for a settlement."""
    match settlement.verdict:
        case Verdict.RELEASE:
            return "release"
        case Verdict.RETRY | Verdict.THROTTLED:
            return "retry_later"
        case _:
            return "finish" if settlement.lease.kind is Kind.DOWNLOAD else "close_callback"


def settle(script: str, settlement: Settlement, seal: Seal | None) -> dict[str, Any]:
    """Arguments of the transition `script`, which is `script_of(settlement)`."""
    match script:
        case "release":
            return {
                **leased(settlement.lease),
                "error": settlement.error,
                "delay_ms": ms(settlement.delay_s),
            }
        case "retry_later":
            return _retry_later(settlement, seal)
        case "finish":
            return _finish(settlement, seal)
        case _:
            return _close_callback(settlement, seal)


def leased(lease: Lease) -> dict[str, Any]:
    """The arguments that name a lease."""
    return {"id": lease.spec.id, "generation": str(lease.generation)}


def _retry_later(settlement: Settlement, seal: Seal | None) -> dict[str, Any]:
    outcome = settlement.outcome
    return {
        **leased(settlement.lease),
        "error": settlement.error,
        "code": outcome.error_code if outcome else "",
        "status": str(outcome.response_code if outcome else 0),
        "attempts": "0" if settlement.verdict is Verdict.THROTTLED else "1",
        "delay_ms": ms(settlement.delay_s),
        **given(phases=_phases(outcome, seal), slow=settlement.slow or None),
        **_cooldown(outcome),
    }


def _finish(settlement: Settlement, seal: Seal | None) -> dict[str, Any]:
    outcome = settlement.outcome
    assert outcome is not None, "a download that ended has an outcome"
    file = outcome.file
    # A poisoned job has no attempt under this lease, and the attempt that a deadline cuts off does not count.
    counts = outcome.error_code not in (ErrorCode.POISON, ErrorCode.DEADLINE)
    return {
        **_ended(settlement),
        **callback(settlement.callback),
        **_of_job(settlement.lease.spec),
        "attempts": "1" if counts else "0",
        "code": outcome.error_code,
        "status": str(outcome.response_code),
        "size": str(file.size),
        "sha256": file.sha256,
        "mime": file.mime_type,
        "image": file.image_size,
        **given(
            record=None if settlement.callback else _record(settlement, outcome, seal),
            more=_more(outcome, seal) or None,
            phases=_phases(outcome, seal),
        ),
        **_cooldown(outcome),
    }


def _more(outcome: Outcome, seal: Seal | None) -> list[str]:
    """Names and values of the fields that few jobs have."""
    response = outcome.response
    final_url = seal(response.final_url) if seal and response.final_url else response.final_url
    values = {
        "filename": outcome.file.filename,
        "etag": response.etag,
        "last_modified": response.last_modified,
        "content_type": response.content_type,
        "final_url": final_url,
        "not_modified": "1" if response.not_modified else "",
    }
    return [text for name, value in values.items() if value for text in (name, value)]


def _phases(outcome: Outcome | None, seal: Seal | None) -> str | None:
    return outcome.phases.to_text(seal) if outcome and outcome.phases else None


def _close_callback(settlement: Settlement, seal: Seal | None) -> dict[str, Any]:
    assert settlement.callback is not None, "a callback that ended has a queue"
    return {
        **_ended(settlement),
        "limit": str(settlement.callback.limit),
        **given(
            job_group=settlement.lease.spec.group or None,
            slow=settlement.slow or None,
            record=_record(settlement, settlement.lease.result, seal),
        ),
    }


def _record(settlement: Settlement, outcome: Outcome | None, seal: Seal | None) -> str | None:
    """The argument `record` if the job ends with this success; `outcome` is the download's.

    A cancelled download counts as ended, because it cannot be retried.
    """
    if outcome is None or settlement.verdict is not Verdict.SUCCEEDED or settlement.lease.spec.damage:
        return None
    if outcome.verdict is not Verdict.SUCCEEDED and outcome.error_code != ErrorCode.CANCELLED:
        return None
    return ended.record(settlement.lease.spec, outcome, seal)


def _ended(settlement: Settlement) -> dict[str, Any]:
    """Arguments for a task of either kind that reaches a terminal state."""
    return {
        **leased(settlement.lease),
        "error": settlement.error,
        "state": State.SUCCEEDED if settlement.verdict is Verdict.SUCCEEDED else State.FAILED,
        "keep_ms": ms(settlement.keep_s),
    }


def callback(plan: CallbackPlan | None) -> dict[str, str]:
    """The arguments `callback`, `limit` and `token`; an empty queue stands for no callback."""
    if plan is None:
        return {"callback": "", "limit": "0"}
    return given(callback=plan.queue, limit=str(plan.limit), token=plan.token or None)


def cancelled(spec: JobSpec, plan: CallbackPlan | None, seal: Seal | None) -> dict[str, str]:
    """The arguments about the end of a job that a client cancels."""
    kept = plan is None and not spec.sealed and not spec.damage
    record = ended.record(spec, Outcome(verdict=Verdict.FAILED), seal) if kept else None
    return {**callback(plan), **_of_job(spec), **given(record=record)}


def _of_job(spec: JobSpec) -> dict[str, str]:
    """The arguments `counted` and `job_group`."""
    return given(counted=spec.token if spec.counted else None, job_group=spec.group or None)


def ms(seconds: float) -> int:
    """Whole milliseconds."""
    return int(seconds * 1000)


def types(names: Iterable[str] | None) -> str | None:
    """Types of callbacks in the form that the scripts use: `,http,kafka,`; `None` for all types."""
    return None if names is None else f",{','.join(sorted(names))},"


def _cooldown(outcome: Outcome | None) -> dict[str, Any]:
    """The arguments of `cool_down` in `_lib.lua`."""
    if outcome is None or outcome.cooldown is None:
        return {}
    cooldown = outcome.cooldown
    return given(
        cool_ms=ms(cooldown.seconds),
        asked=cooldown.asked,
        host_too=cooldown.of_host,
        had=cooldown.had,
        host_had=cooldown.host_had,
    )


# Answers

E = TypeVar("E", bound=StrEnum)

Unseal = Callable[[str], str | None]
"""Decrypts the secret fields of a job, see `JobSpec.from_json`."""

_VERDICTS: Mapping[str, Verdict] = {
    "": Verdict.RETRY,
    State.PENDING: Verdict.RETRY,
    State.RUNNING: Verdict.RETRY,
    State.SUCCEEDED: Verdict.SUCCEEDED,
}
"""Verdict of a download's last attempt, by the download's state; `FAILED` for every other state."""


def fields(flat: Sequence[Any]) -> dict[str, Any]:
    """A mapping from a flat list of names and values, as returned by the scripts and HGETALL."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def lease(kind: Kind, flat: Sequence[Any], unseal: Unseal) -> Lease:
    """A lease from a row of `lease.lua`."""
    row = fields(flat)
    result = fields(row["result"]) or (_LOST if kind is Kind.CALLBACK else {})
    spec = JobSpec.from_json(row["id"], row["spec"], unseal)
    if spec.damage and kind is Kind.DOWNLOAD:
        spec = replace(spec, aggr_id=row["queue"])
    return Lease(
        kind=kind,
        spec=spec,
        queue=row["queue"],
        generation=int(row["generation"]),
        attempts=number_in(row["attempts"]),
        crashes=number_in(row["crashes"]),
        throttled=number_in(row["throttled"]),
        limit=number_in(row["limit"]) or 1,
        proxy=row["proxy"],
        token=row["token"],
        result=outcome_in(result, unseal) if result else None,
        result_attempts=number_in(result.get("attempts")),
        result_retry=result.get("retried", ""),
        proven=row["proven"] == "1",
        failing=row["failing"] == "1",
        waited_s=row["waited_ms"] / 1000 if row["waited_ms"] >= 0 else None,
        age_s=row["age_ms"] / 1000,
    )


_LOST: Mapping[str, str] = {
    "state": State.FAILED,
    "code": ErrorCode.STORAGE,
    "error": "the result of the download is lost: its record was deleted or overwritten in the store",
}
"""Result of a download without a record."""

_SHA256 = re.compile("[0-9a-f]{64}")


def reapable(flat: Sequence[Any], unseal: Unseal) -> Reapable:
    """A job from a row of `reap.lua`."""
    row = fields(flat)
    spec, has_file, digests = row.get("spec", ""), row.get("file") == "1", row.get("digests", "")
    if "ended" in row:
        job = ended.parse(row["ended"])
        unclear = number_in(job.download["deliveries"]) > number_in(job.download["attempts"])
        has_file = job.download["state"] == State.SUCCEEDED or unclear
        spec, digests = job.spec, job.download.get("digests", "")
    return Reapable(
        spec=JobSpec.from_json(row["id"], spec, unseal), has_file=has_file, digests=_SHA256.findall(digests)
    )


def moment_in(ms: str) -> datetime | None:
    """The moment in a text of Unix ms; `None` for no text or a damaged one."""
    try:
        return moment(int(ms)) if ms else None
    except (ValueError, OverflowError):
        return None


def number_in(text: str | None) -> int:
    """The number in a text; 0 for no text or a damaged one."""
    try:
        return int(text or 0)
    except ValueError:
        return 0


def outcome_in(stored: Mapping[str, str], unseal: Unseal) -> Outcome:
    """The outcome of a download, from the hash of the download."""
    row = defaultdict[str, str](str, stored)
    return Outcome(
        verdict=_VERDICTS.get(row["state"], Verdict.FAILED),
        error=row["error"],
        error_code=_member(ErrorCode, row["code"]),
        response_code=number_in(row["status"]),
        file=FileFacts(
            size=number_in(row["size"]),
            sha256=row["sha256"],
            mime_type=row["mime"],
            image_size=row["image"],
            filename=row["filename"],
        ),
        response=ResponseMetadata(
            etag=row["etag"],
            last_modified=row["last_modified"],
            content_type=row["content_type"],
            final_url=_unsealed(row["final_url"], unseal),
            not_modified=bool(row["not_modified"]),
        ),
        phases=Phases.from_text(row["phases"], partial(_unsealed, unseal=unseal))
        if "phases" in stored
        else None,
    )


def _unsealed(text: str, unseal: Unseal) -> str:
    """The plain text of a URL that may be encrypted; empty if the key is missing."""
    return text if text.startswith("http") else (unseal(text) or "" if text else "")


def _member(names: type[E], text: str) -> E | str:
    try:
        return names(text)
    except ValueError:
        return text
