"""Log events, logging, counters, metrics and traces."""

from __future__ import annotations

from downloader.observe.counters import (
    API_COUNTERS,
    BUCKET,
    COUNTERS,
    HISTOGRAMS,
    NOTIFIER_COUNTERS,
    PROCESSOR_COUNTERS,
    SEPARATOR,
    SUM,
    Counters,
    by_name,
)
from downloader.observe.logging import Event, configure, get_logger, label_lines
from downloader.observe.metrics import KINDS, METRICS, TROUBLES, Metric
from downloader.observe.traces import Kind as SpanKind
from downloader.observe.traces import Traces, open_traces
