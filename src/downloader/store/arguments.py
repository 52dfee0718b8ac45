"""The arguments of the scripts, from values of the model. Pure.

Numbers go as strings where a script stores them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from downloader.model import Delivery, ErrorCode, JobSpec, Lease, Outcome, State, Verdict
from downloader.net import Url, UrlError
from downloader.store.values import CallbackPlan, CloseResult, FinishResult, Submission

NO_CALLBACK = CallbackPlan(group="", limit=0)


def submit(
    item: Submission, permitted: str, seal: Callable[[str], str] | None, *, with_host: bool = False
) -> dict[str, Any]:
    """Arguments for a job; `permitted` is the proxy that its aggregation may have, if not every proxy.

    `with_host`: the scripts are to know the host of its URL.
    """
    spec = replace(item.spec, host=host_of(item.spec.url)) if with_host else item.spec
    return {
        "id": item.spec.id,
        "group": item.spec.aggr_id,
        "limit": str(item.spec.aggr_limit),
        **_pace(item.spec),
        "due": item.spec.not_before,
        **({"priority": item.spec.priority} if item.spec.priority else {}),
        "proxy": item.spec.aggr_proxy,
        "spec": spec.to_json(seal),
        "idempotency": item.idempotency_key,
        "values": item.value_digest,
        "body": item.body_digest,
        **({"permitted": permitted} if item.permits else {}),
    }


def host_of(url: str) -> str:
    """The host of a job's URL by which it is limited; empty for a URL that is none."""
    try:
        return Url.parse(url).origin.host.removesuffix(".")
    except UrlError:
        return ""


def release(result: tuple[Lease, str, float]) -> dict[str, Any]:
    """Arguments for a task that is handed back: its lease, the reason, and the seconds until it is due."""
    _, reason, delay_s = result
    return {"error": reason, "delay_ms": ms(delay_s)}


def retry_later(result: tuple[Lease, Outcome | Delivery, float]) -> dict[str, Any]:
    """Arguments for a task that is tried again: its lease, the attempt's end, and the seconds until then."""
    _, end, delay_s = result
    code, status = (end.error_code, end.response_code) if isinstance(end, Outcome) else ("", 0)
    return {
        "error": end.error,
        "code": code,
        "status": str(status),
        "attempts": "0" if end.verdict is Verdict.THROTTLED else "1",
        "delay_ms": ms(delay_s),
        **_cooldown(end),
    }


def finish(result: FinishResult) -> dict[str, Any]:
    """Arguments for a download that has ended."""
    _, outcome, plan, keep_s = result
    plan = plan or NO_CALLBACK
    file = outcome.file
    # A job that ends as poison has made no attempt under this lease, and one at its deadline none to its end.
    counts = outcome.error_code not in (ErrorCode.POISON, ErrorCode.DEADLINE)
    return {
        "state": _terminal_state(outcome.verdict),
        "attempts": "1" if counts else "0",
        "error": outcome.error,
        "code": outcome.error_code,
        "status": str(outcome.response_code),
        "size": str(file.size),
        "sha256": file.sha256,
        "mime": file.mime_type,
        "image": file.image_size,
        **({"filename": file.filename} if file.filename else {}),
        "callback": plan.group,
        "limit": str(plan.limit),
        "keep_ms": ms(keep_s),
        **_cooldown(outcome),
    }


def close_callback(result: CloseResult) -> dict[str, Any]:
    """Arguments for a callback that has ended."""
    _, delivery, keep_s, limit = result
    return {
        "state": _terminal_state(delivery.verdict),
        "error": delivery.error,
        "keep_ms": ms(keep_s),
        "limit": str(limit),
    }


def ms(seconds: float) -> int:
    """Whole milliseconds."""
    return int(seconds * 1000)


def _terminal_state(verdict: Verdict) -> State:
    return State.SUCCEEDED if verdict is Verdict.SUCCEEDED else State.FAILED


def _pace(spec: JobSpec) -> dict[str, str]:
    """The rate and the delay that a job names."""
    named = {"rate": spec.aggr_rate, "delay": spec.aggr_delay}
    return {name: str(value) for name, value in named.items() if value is not None}


def _cooldown(end: Outcome | Delivery) -> dict[str, Any]:
    """The arguments of `cool_down` in `_lib.lua`."""
    if not isinstance(end, Outcome) or end.cooldown is None:
        return {}
    return {"cool_ms": ms(end.cooldown.seconds), "asked": end.cooldown.asked}
