"""Traces with OpenTelemetry: spans, exporters, and the trace context that a job carries in the store.

OpenTelemetry is imported only if the environment names an exporter. Otherwise there are no `Traces`, and
callers do without a span.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from importlib.metadata import entry_points
from typing import Any

import trio

from downloader.observe.logging import Event, get_logger

Attributes = Mapping[str, str | int]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

log = get_logger()


class Kind(StrEnum):
    """A span's role, by the names of `opentelemetry.trace.SpanKind`."""

    SERVER = "SERVER"
    CLIENT = "CLIENT"
    PRODUCER = "PRODUCER"


class Span:
    """A span that has begun."""

    def __init__(self, span: Any) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        """For what this span causes (W3C Trace Context)."""

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""
        self._span.set_attributes(attributes)

    def fail(self, kind: str, reason: str = "") -> None:
        """Mark the span as failed; neither text may contain secrets."""
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415  see the module

        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, reason))


class Traces:
    """Begins spans."""

    def __init__(self, tracer: Any) -> None:
        """`tracer`: an `opentelemetry.trace.Tracer`."""
        from opentelemetry.context import Context  # noqa: PLC0415  see the module
        from opentelemetry.trace import SpanKind  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._tracer = tracer
        self._kinds = {kind: SpanKind[kind.value] for kind in Kind}
        self._extract = TraceContextTextMapPropagator().extract
        self._root = Context()

    @contextmanager
    def span(self, name: str, *, kind: Kind, parent: str, attributes: Attributes) -> Iterator[Span]:
        """A span around the work in the context; an exception or a cancel marks the span as failed.

        There are few different names. `parent` is a traceparent; without one the span begins a trace.
        Attributes contain no secrets.
        """
        context = self._extract({"traceparent": parent}, context=self._root)
        started = self._tracer.start_span(
            name, context=context, kind=self._kinds[kind], attributes=attributes
        )
        span = Span(started)
        try:
            yield span
        except BaseException as error:
            span.fail(type(error).__name__)  # its text may contain a secret
            raise
        finally:
            started.end()


@asynccontextmanager
async def open_traces(*, instance: str, version: str, flush_s: float) -> AsyncIterator[Traces | None]:
    """The traces of this process, as configured by OpenTelemetry's environment variables.

    A thread of the SDK exports the spans. On close the remaining spans are sent, for at most `flush_s`
    seconds.
    `instance` is this process's `service.instance.id`.

    Yields:
        `None` if the environment asks for no traces, or if what it asks for is not installed, which a
        warning says.
    """
    names = exporters(os.environ)
    try:
        provider = _provider(names, instance=instance, version=version) if names else None
    except (ImportError, LookupError, ValueError) as error:
        log.warning(Event.TRACES_UNAVAILABLE, reason=f"{error}; pip install 'downloader-service[otel]'")
        provider = None
    if provider is None:
        yield None
        return
    try:
        yield Traces(provider.get_tracer("downloader", version))
    finally:
        # The thread is a daemon: one that hangs does not keep the process from exiting.
        with trio.move_on_after(flush_s):
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)


def exporters(environ: Mapping[str, str]) -> Sequence[str]:
    """The exporters that the environment asks for, by the names of the entry points.

    The default is `otlp` if there is an endpoint, and otherwise none; the SDK's is always `otlp`.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    default = "otlp" if any(map(environ.get, _ENDPOINTS)) else "none"
    wanted = environ.get("OTEL_TRACES_EXPORTER") or default
    protocol = next(filter(None, map(environ.get, _PROTOCOLS)), "http/protobuf")
    otlp = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}.get(protocol, protocol)
    names = [name.strip() for name in wanted.split(",")]
    return [otlp if name == "otlp" else name for name in names if name not in ("", "none")]


def _provider(names: Sequence[str], *, instance: str, version: str) -> Any:
    """A `TracerProvider` of the SDK.

    Raises:
        ImportError, LookupError, ValueError: a package or an exporter is missing, or a variable is malformed.
    """
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415  see the module
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    own = {"service.name": "downloader", "service.version": version, "service.instance.id": instance}
    # The environment's names win (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES).
    resource = Resource.create(own).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    # All exporters first: a processor starts a thread, which nobody would end after an error.
    for exporter in [_exporter(name) for name in names]:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _exporter(name: str) -> Any:
    """A `SpanExporter` by the name of the entry point. Raises as `_provider`."""
    for entry_point in entry_points(group="opentelemetry_traces_exporter", name=name):
        return entry_point.load()()
    raise LookupError(f"there is no exporter {name} for traces")
