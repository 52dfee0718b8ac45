"""Jobs for tests."""

from __future__ import annotations

from typing import Any

from downloader.model import JobSpec
from downloader.store import JobStore


def spec_for(store: JobStore, aggr_id: str = "a", **fields: Any) -> JobSpec:
    """A job that could have come through the API."""
    values: dict[str, Any] = {
        "id": store.new_id(aggr_id),
        "aggr_id": aggr_id,
        "aggr_limit": 1,
        "url": "http://127.0.0.1:1/file",
        "callback_type": "http",
        "callback_dst": "http://127.0.0.1:2/done",
    }
    values |= fields
    values.setdefault("callback_error_type", values["callback_type"])
    values.setdefault("callback_error_dst", values["callback_dst"])
    return JobSpec(**values)
