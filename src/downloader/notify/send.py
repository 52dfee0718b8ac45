"""An attempt at a callback: from the lease to the outcome, and the time of the next attempt."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import trio

from downloader.errors import StorageError
from downloader.model import CallbackOutcome, JobSpec, Lease, Outcome, Verdict
from downloader.net import requested_url
from downloader.notify.bulkhead import SHORTEST_S
from downloader.notify.health import Breakers
from downloader.notify.notifier import Delivered, Notifier, Payload, Rejected, Result, RetryLater
from downloader.plugins import find_cancel, one_line
from downloader.wire import callback_body, group_callback_body

QUICK_S = 5.0
"""A delivery that takes longer is slow. Slow destinations get no more slots than silent destinations."""

_JITTER = 0.2
"""A delay is varied by up to this fraction, so that callbacks do not all return at the same time."""


def next_delay_s(
    tries: int, schedule: Sequence[float], *, retry_after_s: float | None = None, rng: random.Random
) -> float | None:
    """Seconds until the next attempt after `tries` (1 or more) failed; `None` if the schedule is used up.

    `retry_after_s`, the peer's request, is a lower limit: if the schedule's delay is shorter, the result is
    `retry_after_s` plus jitter.
    """
    if tries > len(schedule):
        return None
    delay = schedule[max(tries, 1) - 1] * rng.uniform(1 - _JITTER, 1 + _JITTER)
    if retry_after_s is not None and delay < retry_after_s:
        delay = retry_after_s * rng.uniform(1, 1 + _JITTER)
    return delay


_MAX_AFTER_S = 86400.0
"""Limit of `RetryLater.after_s`: a day."""


@dataclass(frozen=True, slots=True)
class _Broken:
    """The plugin failed, not the delivery."""

    problem: str
    """Without the exception's text, which may contain a secret."""
    error: BaseException | None = None


async def send_callback(
    lease: Lease,
    *,
    backends: Mapping[str, Notifier],
    schedule: Sequence[float],
    download_url: Callable[[JobSpec, str], str],
    timeout_s: float,
    rng: random.Random,
    health: Breakers,
) -> CallbackOutcome:
    """Send a callback once and return the outcome; exceptions of the plugin are not raised.

    The body is the same in all attempts. After a cancel the peer may or may not have the callback. A failure
    of the plugin updates `health`, and counts as an attempt only while the plugin is healthy. After the last
    attempt of the `schedule` the callback is `FAILED`. `download_url` raises `StorageError` if the storage
    fails. `timeout_s` is the time limit of the delivery, longer than the plugin's own timeouts.
    """
    assert lease.result is not None, "a callback's lease carries the download's result"
    name, destination = lease.spec.callback(success=lease.result.verdict is Verdict.SUCCEEDED)
    if not name:
        error = lease.spec.damage or "the job names no callback for this result"
        return CallbackOutcome(verdict=Verdict.FAILED, error=error)
    try:
        body = _body(lease, lease.result, download_url)
    except StorageError as exc:
        return _retry(lease, RetryLater(str(exc)), schedule, rng)
    spec = lease.spec
    payload = Payload(
        job_id=lease.id,
        aggr_id=spec.aggr_id,
        body=body,
        traceparent=spec.traceparent,
        retry=lease.result_retry,
    )
    begun_at = trio.current_time()
    result = await _ask(backends[name], destination, payload, timeout_s=timeout_s)
    slow = trio.current_time() - begun_at > QUICK_S
    if isinstance(result, _Broken):
        reason = f"backend {name} failed: {result.problem}"
        facts = {"job_id": lease.id, "aggr_id": lease.spec.aggr_id}
        if not health.failed(name, reason, begun_at=begun_at, error=result.error, **facts):
            return CallbackOutcome(verdict=Verdict.RELEASE, error=reason, retry_after_s=SHORTEST_S)
        result = RetryLater(reason)
    else:
        health.worked(name)
    match result:
        case Delivered():
            return CallbackOutcome(verdict=Verdict.SUCCEEDED, slow=slow)
        case Rejected(reason):
            return CallbackOutcome(verdict=Verdict.FAILED, error=one_line(reason), slow=slow)
        case RetryLater():
            return replace(_retry(lease, result, schedule, rng), slow=slow)
        case _:
            assert_never(result)


def _body(lease: Lease, result: Outcome, download_url: Callable[[JobSpec, str], str]) -> bytes:
    if lease.spec.completes:
        return group_callback_body(lease.spec)
    return callback_body(
        lease.spec,
        result,
        attempts=lease.result_attempts,
        download_url=download_url(lease.spec, result.file.sha256) if result.has_file else "",
        final_url=_final_url(lease.spec, result),
    )


def _final_url(spec: JobSpec, result: Outcome) -> str:
    if result.verdict is not Verdict.SUCCEEDED:
        return ""
    return result.response.final_url or requested_url(spec.url)


def _retry(
    lease: Lease, result: RetryLater, schedule: Sequence[float], rng: random.Random
) -> CallbackOutcome:
    """Another attempt, or the end of the schedule."""
    after_s = None if result.after_s is None else min(result.after_s, _MAX_AFTER_S)
    delay = next_delay_s(lease.attempts + 1, schedule, retry_after_s=after_s, rng=rng)
    verdict = Verdict.FAILED if delay is None else Verdict.RETRY
    return CallbackOutcome(verdict=verdict, error=one_line(result.reason), retry_after_s=delay)


async def _ask(
    backend: Notifier, destination: str, payload: Payload, *, timeout_s: float
) -> Result | _Broken:
    """Call `Notifier.deliver`, and return the result or the failure. The only caller of `deliver`."""
    try:
        with trio.move_on_after(timeout_s):
            return _checked(await backend.deliver(destination, payload))
    except BaseException as exc:  # noqa: BLE001 - a plugin can raise anything, SystemExit too
        if (cancel := find_cancel(exc)) is not None:
            raise cancel from None
        return _Broken(type(exc).__name__, exc)
    return _Broken(f"no answer within {timeout_s:g} s")


def _checked(result: object) -> Result | _Broken:
    """Check the types of a plugin's result."""
    match result:
        case Delivered() | RetryLater(str(), None) | Rejected(str()):
            return result
        case RetryLater(str(), float() | int() as after_s) if math.isfinite(after_s) and after_s >= 0:
            return result
        case RetryLater(str()):
            return _Broken("answered RetryLater with an after_s that is not a number of seconds")
        case RetryLater() | Rejected():
            return _Broken(f"answered {type(result).__name__} with a reason that is not a text")
        case _:
            return _Broken(f"answered {type(result).__name__}")
