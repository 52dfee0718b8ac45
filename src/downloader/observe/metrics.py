"""The table of the metrics of `GET /metrics`: names, labels and sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

KINDS: Mapping[str, str] = {"processor": "download", "notifier": "callback"}
"""The label `kind` of a role's metrics: the kind of tasks that the role works on."""

TROUBLES: Mapping[str, str] = {
    "disk": "the disk of the spool is full",
    "store_memory": "the store's memory is almost full",
    "lag": "the event loop is late",
}
"""The troubles of an instance, by the name in reports and in the label `trouble`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric. Labels have few values: never an aggregation, a URL or a destination."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    """`kind` is from `KINDS`. The other labels are those of the source, in the same order."""
    source: str = ""
    """The counter or histogram with the values. `downloads_*` stands for all counters with this prefix; the
    rest of the name is the first label. Gauges have no source, because they are read for each request."""


METRICS = (
    Metric(
        name="downloader_jobs_accepted_total",
        type="counter",
        labels=("route",),
        source="jobs_accepted",
        help="Jobs taken in",
    ),
    Metric(
        name="downloader_jobs_refused_total",
        type="counter",
        labels=("route", "code"),
        source="jobs_refused",
        help="Jobs not taken in, by the code of the problem",
    ),
    Metric(
        name="downloader_api_requests_total",
        type="counter",
        labels=("route", "status"),
        source="requests",
        help="Requests answered, by template of the route and class of the status (2xx)",
    ),
    Metric(
        name="downloader_queue_wait_seconds",
        type="histogram",
        labels=("kind",),
        source="queue_wait_seconds",
        help="Time from when a download or callback was due until it was leased",
    ),
    Metric(
        name="downloader_downloads_total",
        type="counter",
        labels=("outcome", "error_code"),
        source="downloads_*",
        help="Attempts at downloads, by how they ended; the error code is empty without an error",
    ),
    Metric(
        name="downloader_download_bytes_total",
        type="counter",
        source="bytes",
        help="Bytes of stored files",
    ),
    Metric(
        name="downloader_download_duration_seconds",
        type="histogram",
        source="download_seconds",
        help="Time from the lease of a download until the store knew how the attempt ended",
    ),
    Metric(
        name="downloader_callbacks_total",
        type="counter",
        labels=("outcome", "backend"),
        source="callbacks_*",
        help="Attempts at callbacks, by how they ended",
    ),
    Metric(
        name="downloader_delivery_duration_seconds",
        type="histogram",
        labels=("backend",),
        source="delivery_seconds",
        help="Time from the lease of a callback until the store knew how the attempt ended",
    ),
    Metric(
        name="downloader_poison_total",
        type="counter",
        labels=("kind",),
        source="poison",
        help="Downloads and callbacks that failed because their workers died too often",
    ),
    Metric(
        name="downloader_leases_expired_total",
        type="counter",
        labels=("kind",),
        source="leases_recovered",
        help="Leases that ended without a result, because their holder died; the work was given to others",
    ),
    Metric(
        name="downloader_leases_lost_total",
        type="counter",
        labels=("kind",),
        source="leases_lost",
        help="Results that were refused, because another instance had taken over",
    ),
    Metric(
        name="downloader_store_call_duration_seconds",
        type="histogram",
        labels=("call",),
        source="store_call_seconds",
        help="Time that a call to Redis or Valkey took, as its caller saw it",
    ),
    Metric(
        name="downloader_pending",
        type="gauge",
        labels=("kind",),
        help="Downloads and callbacks that wait; those of the 1,000 largest groups, if there are more",
    ),
    Metric(
        name="downloader_groups",
        type="gauge",
        labels=("kind",),
        help="Aggregations with downloads, and destinations with callbacks, that wait or are in flight",
    ),
    Metric(
        name="downloader_next_due_seconds",
        type="gauge",
        labels=("kind",),
        help="Time until the next waiting download or callback is due; absent if none waits for a time",
    ),
    Metric(
        name="downloader_aggregations_cooling",
        type="gauge",
        help="Aggregations that cool down, of the 500 busiest",
    ),
    Metric(
        name="downloader_aggregations_paced",
        type="gauge",
        help="Aggregations that start downloads more slowly than asked after a cooldown, of the 500 busiest",
    ),
    Metric(
        name="downloader_downloads_oldest_due_seconds",
        type="gauge",
        help="How long the oldest download has waited for a slot alone, of the 100 busiest aggregations",
    ),
    Metric(
        name="downloader_callbacks_oldest_due_seconds",
        type="gauge",
        help="How long the oldest callback has been due, of the 100 destinations with the most",
    ),
    Metric(
        name="downloader_callbacks_failed",
        type="gauge",
        help="Callbacks that were given up, are kept and can be sent again",
    ),
    Metric(
        name="downloader_job_groups",
        type="gauge",
        help="Groups of jobs; in a Cluster, in the shard with the most of them",
    ),
    Metric(
        name="downloader_job_groups_sealed",
        type="gauge",
        help="Groups of jobs that are sealed and not complete: somebody waits for them",
    ),
    Metric(
        name="downloader_in_flight",
        type="gauge",
        labels=("kind",),
        help="Downloads and callbacks in flight now",
    ),
    Metric(
        name="downloader_instances",
        type="gauge",
        labels=("role",),
        help="Instances that have reported lately",
    ),
    Metric(
        name="downloader_instances_in_trouble",
        type="gauge",
        labels=("trouble",),
        help="Instances whose disk is full, whose event loop is late, or that find the store's memory full",
    ),
    Metric(
        name="downloader_backends_unhealthy",
        type="gauge",
        help="Backends that are unhealthy now, counted for each instance",
    ),
)
