"""One trace from the POST to the callback, over three processes, in a collector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from servers.fleet import job_for, open_fleet
from servers.origin import Origin
from servers.sink import Sink
from servers.valkey import Valkey

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

Spans = list[tuple[str, dict[str, Any], Any]]
"""The sending service, the attributes, and the span (`opentelemetry.proto`)."""


@contextmanager
def collector() -> Iterator[tuple[str, Spans]]:
    """A receiver of OTLP over HTTP; yields the URL and the received spans."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415  not in each checkout
        ExportTraceServiceRequest,
    )

    spans: Spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in request.resource_spans:
                owner = values(resource.resource.attributes)
                for scope in resource.scope_spans:
                    spans.extend(
                        (owner["service.name"], values(span.attributes), span) for span in scope.spans
                    )
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", spans
        finally:
            server.shutdown()
            thread.join()


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@pytest.mark.slow
@pytest.mark.timeout(120)  # three processes that import the SDK, on a busy machine
async def test_one_trace_from_the_post_to_the_callback(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    """The collector gets the spans at the stop: until then they wait for a minute."""
    with collector() as (endpoint, spans):
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        async with open_fleet(folder, server, {"processor": {"max_retries": 0}}) as fleet:
            roles = ("api", "processor", "notifier")
            await fleet.start_all(*roles, **{role: {"environ": environ} for role in roles})
            fleet.client.headers["traceparent"] = f"00-{TRACE}-{CLIENT}-01"
            good = await fleet.post(
                **job_for(origin.url("/bytes/10?token=s3cret"), sink.url("/ok?key=s3cret"))
            )
            bad = await fleet.post(**job_for(origin.url("/status/404"), sink.url("/status/410")))
            [delivered, refused] = await sink.heard_of(good, bad)
            await fleet.stop_all()
        assert spans
    assert "s3cret" not in str(spans)
    assert {span.trace_id.hex() for _, _, span in spans} == {TRACE}
    posts = {span.span_id: span for _, _, span in spans if span.name == "POST /download"}
    assert [post.parent_span_id.hex() for post in posts.values()] == [CLIENT, CLIENT]
    work = {
        (attributes.get("downloader.job.id"), span.name): (attributes, span) for _, attributes, span in spans
    }
    download, callback = work[good, "download 127.0.0.1"], work[good, "callback http"]
    assert download[1].parent_span_id == callback[1].parent_span_id
    assert download[1].parent_span_id in posts
    assert download[0]["http.response.status_code"] == 200
    assert download[0]["http.response.body.size"] == 10
    assert download[0]["url.full"] == origin.url("/bytes/10?token=***")
    assert delivered.traceparent == f"00-{TRACE}-{callback[1].span_id.hex()}-01"
    failed, given_up = work[bad, "download 127.0.0.1"], work[bad, "callback http"]
    assert failed[1].parent_span_id == given_up[1].parent_span_id != download[1].parent_span_id
    assert (failed[0]["error.type"], failed[1].status.code) == ("404", failed[1].status.STATUS_CODE_ERROR)
    assert "404 Not Found" in failed[1].status.message
    assert (given_up[0]["error.type"], given_up[1].status.code) == ("failed", failed[1].status.code)
    assert refused.traceparent == f"00-{TRACE}-{given_up[1].span_id.hex()}-01"
    assert {owner for owner, _, _ in spans} == {"downloader"}
    assert len(spans) == 6
