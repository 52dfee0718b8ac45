"""One attempt at one callback: from the lease to what the store is told."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import trio

from downloader.model import Delivery, Lease, Verdict, callback_payload
from downloader.notify import Delivered, Notifier, Payload, Rejected, Result, RetryLater
from downloader.notify._schedule import next_delay_s
from downloader.observe.events import Event
from downloader.observe.logging import get_logger

UNHEALTHY_AFTER = 3
"""Failures of a plugin in a row; one or two may be one odd destination's."""

_REASON_CHARS = 500
"""Reasons come from plugins and peers, and are kept in the store."""


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """How a plugin itself fares, whatever its destinations answer."""

    failures: int = 0
    """In a row: it raised, hung, or answered what is no result."""
    last_error: str = ""
    """Of the last failure ever; one line."""

    @property
    def healthy(self) -> bool:
        """Whether the plugin can be relied on."""
        return self.failures < UNHEALTHY_AFTER

    def failed(self, error: str) -> BackendHealth:
        """The health after one more failure."""
        return BackendHealth(self.failures + 1, error)

    def worked(self) -> BackendHealth:
        """The health after the plugin did its part, also if the destination did not."""
        return BackendHealth(0, self.last_error)


async def deliver(
    lease: Lease,
    *,
    backends: Mapping[str, Notifier],
    schedule: Sequence[float],
    download_url: str,
    timeout_s: float,
    rng: random.Random,
    health: MutableMapping[str, BackendHealth] | None = None,
) -> Delivery:
    """Send the callback once and tell what is to become of it; raises nothing that a plugin raises.

    The body is byte-identical over retries. A cancel leaves it unknown whether the peer has it.

    Args:
        lease: of a callback, with the download's result in it.
        backends: the open plugins by name.
        schedule: `notifier.retry_schedule`; used up, the callback is `FAILED`.
        download_url: where the file can be fetched; left out of the body of a failure.
        timeout_s: the plugin's deadline, longer than any that it keeps itself.
        rng: source of the delays' jitter.
        health: by backend; updated here, read by whoever answers for the instance's readiness.
    """
    assert lease.result is not None, "a callback's lease carries the download's result"
    name, destination = lease.spec.callback(success=lease.result.verdict is Verdict.SUCCEEDED)
    if not name:
        return Delivery(verdict=Verdict.FAILED, error="the job names no callback for this result")
    backend = backends.get(name)
    if backend is None:
        result: Result = RetryLater(f"backend {name} is not configured: there is no [backends.{name}]")
    else:
        payload = Payload(job_id=lease.id, aggr_id=lease.spec.aggr_id, body=_body(lease, download_url))
        result = await _ask(name, backend, destination, payload, timeout_s=timeout_s, health=health)
    match result:
        case Delivered():
            return Delivery(verdict=Verdict.SUCCEEDED)
        case Rejected(reason):
            return Delivery(verdict=Verdict.FAILED, error=_one_line(reason))
        case RetryLater(reason, after_s):
            delay = next_delay_s(lease.attempts + 1, schedule, retry_after_s=after_s, rng=rng)
            verdict = Verdict.FAILED if delay is None else Verdict.RETRY
            return Delivery(verdict=verdict, error=_one_line(reason), retry_after_s=delay)
        case _:
            assert_never(result)


async def _ask(
    name: str,
    backend: Notifier,
    destination: str,
    payload: Payload,
    *,
    timeout_s: float,
    health: MutableMapping[str, BackendHealth] | None,
) -> Result:
    """The plugin's answer; a failure of the plugin itself becomes a `RetryLater` and counts against it."""
    problem = f"no answer within {timeout_s:g} s"
    error: Exception | None = None
    try:
        with trio.move_on_after(timeout_s):
            answer: object = await backend.deliver(destination, payload)
            if isinstance(answer, (Delivered, RetryLater, Rejected)):
                _worked(name, health)
                return answer
            problem = f"answered {type(answer).__name__}"
    except Exception as exc:  # noqa: BLE001 - a stranger's code can raise anything, and must not stop the others
        problem, error = type(exc).__name__, exc
    reason = f"backend {name} failed: {problem}"
    get_logger().error(
        Event.BACKEND_UNHEALTHY,
        backend=name,
        job=payload.job_id,
        aggr=payload.aggr_id,
        error=reason,
        exc_info=error,
    )
    if health is not None:
        health[name] = health.get(name, BackendHealth()).failed(reason)
    return RetryLater(reason)


def _worked(name: str, health: MutableMapping[str, BackendHealth] | None) -> None:
    before = None if health is None else health.get(name)
    if health is None or before is None or not before.failures:
        return
    health[name] = before.worked()
    if not before.healthy:
        get_logger().warning(Event.BACKEND_HEALTHY, backend=name)


def _body(lease: Lease, download_url: str) -> bytes:
    assert lease.result is not None
    payload = callback_payload(
        lease.spec, lease.result, attempts=lease.result_attempts, download_url=download_url
    )
    # ASCII, as a client's `extra` may hold a lone surrogate, for which UTF-8 has no form.
    return json.dumps(payload, separators=(",", ":")).encode("ascii")


def _one_line(reason: str) -> str:
    return " ".join(str(reason).split())[:_REASON_CHARS]
