"""The table of the metrics of `GET /metrics`: names, labels and sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal

KINDS: Mapping[str, str] = {"processor": "download", "notifier": "callback"}
"""The label `kind` of a role's metrics: the kind of tasks that the role works on."""

TROUBLES: Mapping[str, str] = {
    "disk": "the disk of the spool is full",
    "store_memory": "the store's memory is almost full",
    "lag": "the event loop is late",
}
"""The troubles of an instance, by the name in reports and in the label `trouble`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. Labels have few values: never an aggregation, a URL or a destination."""

    name: str
    help: str
    _: KW_ONLY
    labels: tuple[str, ...] = ()
    """`kind` is from `KINDS`. The other labels are those of the source, in the same order."""
    source: str = ""
    """The counter or histogram with the values. `downloads_*` stands for all counters with this prefix; the
    rest of the name is the first label. Gauges have no source, because they are read for each request."""

    @property
    def type(self) -> Literal["counter", "gauge", "histogram"]:
        """The type, by the name and the source."""
        if self.name.endswith("_total"):
            return "counter"
        return "histogram" if self.source else "gauge"


METRICS = (
    Metric("downloader_jobs_accepted_total", "Jobs taken in", labels=("route",), source="jobs_accepted"),
    Metric(
        "downloader_jobs_refused_total",
        "Jobs not taken in, by the code of the problem",
        labels=("route", "code"),
        source="jobs_refused",
    ),
    Metric(
        "downloader_api_requests_total",
        "Requests answered, by template of the route and class of the status (2xx)",
        labels=("route", "status"),
        source="requests",
    ),
    Metric(
        "downloader_queue_wait_seconds",
        "Time from when a download or callback was due until it was leased",
        labels=("kind",),
        source="queue_wait_seconds",
    ),
    Metric(
        "downloader_downloads_total",
        "Attempts at downloads, by how they ended; the error code is empty without an error",
        labels=("outcome", "error_code"),
        source="downloads_*",
    ),
    Metric("downloader_download_bytes_total", "Bytes of stored files", source="bytes"),
    Metric(
        "downloader_download_duration_seconds",
        "Time from the lease of a download until the store knew how the attempt ended",
        source="download_seconds",
    ),
    Metric(
        "downloader_callbacks_total",
        "Attempts at callbacks, by how they ended",
        labels=("outcome", "backend"),
        source="callbacks_*",
    ),
    Metric(
        "downloader_delivery_duration_seconds",
        "Time from the lease of a callback until the store knew how the attempt ended",
        labels=("backend",),
        source="delivery_seconds",
    ),
    Metric(
        "downloader_poison_total",
        "Downloads and callbacks that failed because their workers died too often",
        labels=("kind",),
        source="poison",
    ),
    Metric(
        "downloader_leases_expired_total",
        "Leases that ended without a result, because their holder died; the work was given to others",
        labels=("kind",),
        source="leases_recovered",
    ),
    Metric(
        "downloader_leases_lost_total",
        "Results that were refused, because another instance had taken over",
        labels=("kind",),
        source="leases_lost",
    ),
    Metric(
        "downloader_store_call_duration_seconds",
        "Time that a call to Redis or Valkey took, as its caller saw it",
        labels=("call",),
        source="store_call_seconds",
    ),
    Metric(
        "downloader_pending",
        "Downloads and callbacks that wait; those of the 1,000 largest queues, if there are more",
        labels=("kind",),
    ),
    Metric(
        "downloader_groups",
        "Aggregations with downloads, and destinations with callbacks, that wait or are in flight",
        labels=("kind",),
    ),
    Metric(
        "downloader_next_due_seconds",
        "Time until the next waiting download or callback is due; absent if none waits for a time",
        labels=("kind",),
    ),
    Metric("downloader_aggregations_cooling", "Aggregations that cool down, of the 500 busiest"),
    Metric(
        "downloader_aggregations_paced",
        "Aggregations that start downloads more slowly than asked after a cooldown, of the 500 busiest",
    ),
    Metric(
        "downloader_downloads_oldest_due_seconds",
        "How long the oldest download has waited for a slot alone, of the 100 busiest aggregations",
    ),
    Metric(
        "downloader_callbacks_oldest_due_seconds",
        "How long the oldest callback has been due, of the 100 destinations with the most",
    ),
    Metric("downloader_callbacks_failed", "Callbacks that were given up, are kept and can be sent again"),
    Metric("downloader_job_groups", "Groups of jobs; in a Cluster, in the shard with the most of them"),
    Metric(
        "downloader_job_groups_sealed",
        "Groups of jobs that are sealed and not complete: somebody waits for them",
    ),
    Metric("downloader_in_flight", "Downloads and callbacks in flight now", labels=("kind",)),
    Metric("downloader_instances", "Instances that have reported lately", labels=("role",)),
    Metric(
        "downloader_instances_in_trouble",
        "Instances whose disk is full, whose event loop is late, or that find the store's memory full",
        labels=("trouble",),
    ),
    Metric("downloader_backends_unhealthy", "Backends that are unhealthy now, counted for each instance"),
)
