"""The spans of downloads and callbacks: their names and attributes (OpenTelemetry's semantic conventions).

Their parent is the request that brought the job; the job carries its context through the store. Nothing of a
URL's query or userinfo gets into a span.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from downloader.model import CallbackOutcome, ErrorCode, Lease, Outcome, Verdict
from downloader.net import Url, UrlError, redact_url
from downloader.observe import SpanKind, Traces

_MESSAGING = {"kafka": "kafka", "sqs": "aws_sqs"}
"""`messaging.system` by the type of a callback."""


async def traced_download(traces: Traces, lease: Lease, attempt: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Make the attempt in a span of its own. The origin gets no `traceparent`."""
    attributes = {"http.request.method": "GET", **_of_job(lease), **_of_url(lease.spec.url)}
    if lease.attempts:
        attributes["http.request.resend_count"] = lease.attempts
    name = f"download {attributes['server.address']}"
    with traces.span(
        name, kind=SpanKind.CLIENT, parent=lease.spec.traceparent, attributes=attributes
    ) as span:
        outcome = await attempt()
        if outcome.response_code:
            span.set({"http.response.status_code": outcome.response_code})
        if outcome.verdict is Verdict.SUCCEEDED:
            span.set({"http.response.body.size": outcome.file.size})
        else:
            of_status = outcome.error_code is ErrorCode.HTTP_STATUS
            span.fail(str(outcome.response_code if of_status else outcome.error_code), outcome.error)
    return outcome


async def traced_callback(
    traces: Traces, lease: Lease, deliver: Callable[[Lease], Awaitable[CallbackOutcome]]
) -> CallbackOutcome:
    """Deliver in a span of its own, whose context the callback carries."""
    assert lease.result is not None, "a callback's lease carries the download's result"
    backend, destination = lease.spec.callback(success=lease.result.verdict is Verdict.SUCCEEDED)
    attributes = _of_job(lease) | {"downloader.callback.type": backend}
    kind = SpanKind.CLIENT
    if backend == "http":
        attributes |= {"http.request.method": "POST", **_of_url(destination)}
    elif backend in _MESSAGING:
        kind = SpanKind.PRODUCER
        attributes |= {
            "messaging.system": _MESSAGING[backend],
            "messaging.operation.type": "send",
            "messaging.operation.name": "send",
            "messaging.destination.name": redact_url(destination),
        }
    with traces.span(
        f"callback {backend}", kind=kind, parent=lease.spec.traceparent, attributes=attributes
    ) as span:
        delivery = await deliver(replace(lease, spec=replace(lease.spec, traceparent=span.traceparent)))
        if delivery.verdict is not Verdict.SUCCEEDED:
            span.fail(str(delivery.verdict), delivery.error)
    return delivery


def _of_job(lease: Lease) -> dict[str, str | int]:
    return {"downloader.job.id": lease.id, "downloader.aggregation": lease.spec.aggr_id}


def _of_url(text: str) -> dict[str, str | int]:
    try:
        origin = Url.parse(text, "download").origin
    except UrlError:  # accepted by another version
        return {"url.full": redact_url(text), "server.address": ""}
    return {"url.full": redact_url(text), "server.address": origin.host, "server.port": origin.port}
