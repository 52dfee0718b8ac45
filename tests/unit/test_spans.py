"""Which spans there are, and when there are none. What needs OpenTelemetry's packages is marked `slow`."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, NoReturn

import pytest
import trio

from downloader.ids import new_id
from downloader.model import CallbackOutcome, ErrorCode, JobSpec, Kind, Lease, Outcome, Verdict
from downloader.observe import Traces, open_traces
from downloader.observe.traces import exporters
from downloader.service.work import traced_callback, traced_download

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "x"}, []),
        (ENDPOINT, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ["otlp_proto_http", "console"]),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, []),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "True"}, []),
    ],
)
def test_exporters_named_by_the_environment(environ: dict[str, str], expected: list[str]) -> None:
    assert [*exporters(environ)] == expected


async def test_without_it_there_are_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINT:
        monkeypatch.delenv(name, raising=False)
    async with open_traces(instance="i", version="1", flush_s=1) as traces:
        assert traces is None


@pytest.mark.slow
def test_it_imports_nothing_then() -> None:
    code = (
        "import sys, trio\n"
        "import downloader.service.api_role, downloader.service.process\n"
        "from downloader.observe import open_traces\n"
        "async def main():\n"
        "    async with open_traces(instance='i', version='1', flush_s=1): pass\n"
        "trio.run(main)\n"
        # redis-py imports the API and the SDK's metrics by itself where they are installed.
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk.trace')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert ran.stdout == "[]\n"


@pytest.mark.slow
async def test_an_exporter_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "pigeon")
    async with open_traces(instance="i", version="1", flush_s=1) as traces:
        assert traces is None
    printed = "".join(capfd.readouterr())
    assert "traces.unavailable" in printed
    assert "pigeon" in printed


@pytest.mark.slow
async def test_an_exporter_that_is_not_installed_leaves_no_thread_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console,pigeon")
    threads = set(threading.enumerate())
    async with open_traces(instance="i", version="1", flush_s=1) as traces:
        assert traces is None
        assert set(threading.enumerate()) == threads


@pytest.mark.slow
async def test_a_collector_that_hangs_does_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "30")
        async with AsyncExitStack() as stack:
            opened = open_traces(instance="i", version="1", flush_s=0.2)
            traces = await stack.enter_async_context(opened)
            assert traces is not None
            await traced_download(traces, lease(Kind.DOWNLOAD), succeed)
            with trio.fail_after(20):  # far from both limits
                await stack.aclose()
        silent.settimeout(20)
        connection, _ = silent.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")  # its thread ends


def lease(kind: Kind, **fields: Any) -> Lease:
    given = {"url": "https://me:s3cret@origin.example:8443/a?k=s3cret", "traceparent": PARENT} | fields
    spec = JobSpec(id=new_id(0, 1), aggr_id="a", aggr_limit=1, **given)
    result = Outcome(verdict=Verdict.SUCCEEDED) if kind is Kind.CALLBACK else None
    return Lease(kind=kind, spec=spec, queue="a", generation=1, attempts=1, crashes=0, limit=1, result=result)


async def succeed() -> Outcome:
    return Outcome(verdict=Verdict.SUCCEEDED, response_code=200)


@pytest.fixture
def traced() -> tuple[Traces, Callable[[], Any]]:
    """Traces, and the only span that has ended."""
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  not in each checkout
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: PLC0415

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def ended() -> Any:
        [span] = exporter.get_finished_spans()
        return span

    return Traces(provider.get_tracer("t")), ended


@pytest.mark.slow
async def test_a_download_that_fails(traced: tuple[Traces, Callable[[], Any]]) -> None:
    traces, ended = traced

    async def attempt() -> Outcome:
        return Outcome(verdict=Verdict.RETRY, error="no answer", error_code=ErrorCode.TIMEOUT)

    await traced_download(traces, lease(Kind.DOWNLOAD), attempt)
    span = ended()
    assert (span.name, span.kind.name) == ("download origin.example", "CLIENT")
    assert (span.status.status_code.name, span.status.description) == ("ERROR", "no answer")
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" in PARENT
    assert span.attributes["error.type"] == "timeout"
    assert span.attributes["server.port"] == 8443
    assert span.attributes["http.request.resend_count"] == 1
    assert span.attributes["url.full"] == "https://origin.example:8443/a?k=***"


@pytest.mark.slow
async def test_an_exception_s_text_is_not_in_the_span(traced: tuple[Traces, Callable[[], Any]]) -> None:
    traces, ended = traced

    async def attempt() -> NoReturn:
        raise RuntimeError("s3cret")

    with pytest.raises(RuntimeError):
        await traced_download(traces, lease(Kind.DOWNLOAD), attempt)
    assert ended().attributes["error.type"] == "RuntimeError"
    assert "s3cret" not in ended().to_json()


@pytest.mark.slow
async def test_the_password_of_a_destination_is_not_in_the_span(
    traced: tuple[Traces, Callable[[], Any]],
) -> None:
    traces, ended = traced

    async def deliver(_: Lease) -> CallbackOutcome:
        return CallbackOutcome(verdict=Verdict.SUCCEEDED)

    queue = "https://me:s3cret@sqs.example/1/q"
    await traced_callback(traces, lease(Kind.CALLBACK, callback_type="sqs", callback_dst=queue), deliver)
    assert ended().attributes["messaging.destination.name"].endswith("sqs.example/1/q")
    assert "s3cret" not in ended().to_json()


@pytest.mark.slow
async def test_a_callback_through_a_broker(traced: tuple[Traces, Callable[[], Any]]) -> None:
    traces, ended = traced
    sent = []

    async def deliver(leased: Lease) -> CallbackOutcome:
        sent.append(leased.spec.traceparent)
        return CallbackOutcome(verdict=Verdict.SUCCEEDED)

    job = lease(Kind.CALLBACK, callback_type="kafka", callback_dst="orders", traceparent="")
    await traced_callback(traces, job, deliver)
    span = ended()
    assert (span.name, span.kind.name, span.parent) == ("callback kafka", "PRODUCER", None)
    assert span.attributes["messaging.destination.name"] == "orders"
    assert span.status.status_code.name == "UNSET"
    assert sent == [
        f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"
    ]
