"""The trace of the request that brings a job, as far as the store."""

from __future__ import annotations

import json
from typing import Any

import pytest

from downloader.observe import Traces
from servers.api import JOB, Served, Serving

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def kept(api: Served, job_id: str) -> str:
    view = await api.store.get(job_id)
    assert view is not None
    return view.spec.traceparent


@pytest.mark.parametrize("path", ["/download", "/downloads"])
async def test_a_job_keeps_the_trace_of_its_request(api: Served, path: str) -> None:
    answer = await api.client.post(path, json=JOB, headers={"traceparent": VALID})
    assert await kept(api, answer.json()["id"]) == VALID


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nonsense",
        VALID.upper(),
        VALID + "-x",
        VALID.replace("00-4", "ff-4"),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    ],
)
async def test_a_malformed_traceparent_is_ignored(api: Served, value: str) -> None:
    answer = await api.client.post("/download", json=JOB, headers={"traceparent": value})
    assert answer.status_code == 201
    assert await kept(api, answer.json()["id"]) == ""


async def test_a_replay_in_another_trace_is_a_replay(api: Served) -> None:
    body, ids = json.dumps(JOB).encode(), []
    for trace in (VALID, VALID.replace("4736", "4737")):
        answer = await api.post(body, {"Idempotency-Key": "k", "traceparent": trace})
        ids.append(answer.json()["id"])
    assert ids[0] == ids[1]
    assert await kept(api, ids[0]) == VALID


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/download", "/downloads"])
async def test_with_traces_a_job_is_below_its_request(serving: Serving, path: str) -> None:
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  not in each checkout
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: PLC0415

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    api = await serving(traces=Traces(provider.get_tracer("t")))
    answer = await api.client.post(path, json=JOB, headers={"traceparent": VALID})
    trace = await kept(api, answer.json()["id"])
    spans: list[Any] = [*exporter.get_finished_spans()]
    [span] = spans
    assert (span.name, span.kind.name, span.status.status_code.name) == (f"POST {path}", "SERVER", "UNSET")
    assert trace == f"{VALID[:35]}-{span.context.span_id:016x}-01"
    assert f"{span.parent.span_id:016x}" == VALID[36:52]
    assert span.attributes["http.response.status_code"] == answer.status_code
