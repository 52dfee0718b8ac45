"""Structured logs on standard error: JSON for programs, aligned lines for people.

Get a logger with `get_logger()`, name the `Event`, give the rest as fields:
`log.info(Event.JOB_FAILED, job=lease.id, aggr=lease.spec.aggr_id, error=outcome.error)`. URLs go through
`downloader.net.redact_url` first.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any, Literal, TextIO

import structlog

from downloader.printable import cut, escape, escape_all

_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")
"""Values that need no quotes: printable ASCII without blank, quote, equals sign and backslash."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

EventDict = MutableMapping[str, Any]


class Event(StrEnum):
    """The first word of a log line (`event` in JSON).

    The names do not change, because operators search and alert on them.
    """

    SERVICE_STARTED = "service.started"
    """All roles of this instance run."""
    SERVICE_STOPPING = "service.stopping"
    """A signal was received: no new work begins, work in flight has the grace period."""
    SERVICE_STOPPED = "service.stopped"
    """The process exits: all work is done or handed back, or `reason` says what hangs."""
    SERVICE_FAILED = "service.failed"
    """A part ended with an unexpected error; the process exits and should be restarted."""
    CONFIG_DEPRECATED = "config.deprecated"
    """The configuration uses a deprecated form, which still works."""
    API_LISTENING = "api.listening"
    """The HTTP API takes requests; `page` is the address of the web page."""
    API_OPEN = "api.open"
    """The API listens on more than loopback and has no tokens: every client that reaches the API may use the
    API."""
    API_REFUSED = "api.refused"
    """A request was refused for a wrong token, or as a browser's cross-site form."""
    API_FAILED = "api.failed"
    """A request raised an unexpected error, and the client got a 500, or a response that was cut off. With
    `reason`: the store refuses the request, also if it is repeated, and the client got a 503."""
    JOB_ACCEPTED = "job.accepted"
    """A job was taken in and is in the store."""
    JOB_SUCCEEDED = "job.succeeded"
    """The file is stored; terminal."""
    JOB_FAILED = "job.failed"
    """The download failed for good; terminal."""
    JOB_RETRY = "job.retry"
    """An attempt failed, another attempt follows."""
    JOB_RELEASED = "job.released"
    """A job was handed back without counting the attempt, because of a stop or a failure of our own."""
    JOB_THROTTLED = "job.throttled"
    """The origin asked for a pause: the job's aggregation cools down, and the attempt does not count."""
    JOB_POISON = "job.poison"
    """The job's workers died too often; terminal."""
    AUDIT = "audit"
    """A client has changed something: `action` is `cancel` (a job; terminal), `cancel_jobs` (of an
    aggregation or a group), `purge` (a job that has ended), `retry`, `retry_jobs`, `adjust` (an aggregation)
    or `pause_all`. `token` is the name of the client's token, `client` its address, and the other fields say
    what was changed; `partly`, which shards of a Cluster did not answer and have perhaps not changed."""
    WORK_DONE = "work.done"
    """Counts of a processor's or notifier's work in the last minute, by counter; absent if there are none."""
    CALLBACK_DELIVERED = "callback.delivered"
    """The peer has acknowledged the callback."""
    CALLBACK_RETRY = "callback.retry"
    """A callback was not delivered, another attempt follows."""
    CALLBACK_FAILED = "callback.failed"
    """A callback was given up; the callback is kept and can be sent again."""
    CALLBACK_RELEASED = "callback.released"
    """A callback was handed back without counting the attempt: a stop, or a backend that fails or is full."""
    BACKEND_FAILED = "backend.failed"
    """A notifier plugin raised, hung or gave no proper result; at level debug while the backend is unhealthy.
    """
    BACKEND_UNHEALTHY = "backend.unhealthy"
    """A notifier plugin keeps failing: callbacks of the backend wait, other backends are not affected."""
    BACKEND_HEALTHY = "backend.healthy"
    """A notifier plugin delivers again."""
    PLUGIN_NOT_CLOSED = "plugin.not_closed"
    """A plugin failed or hung during the close; the stop went on without the plugin."""
    LEASE_LOST = "lease.lost"
    """Another instance has taken the task; the result of this instance is discarded."""
    LEASE_NOT_RENEWED = "lease.not_renewed"
    """Leases could not be renewed; the renewal is repeated. The work of a lease that ends is cancelled."""
    SWEEP_RECOVERED = "sweep.recovered"
    """Tasks of instances that died were handed back."""
    FILE_DELETED = "file.deleted"
    """A stored file was deleted at the end of the retention."""
    FILE_UNDELETABLE = "file.undeletable"
    """A stored file could not be deleted; another attempt follows."""
    DISK_FULL = "disk.full"
    """The spool's disk is above the high-water mark; no download is begun."""
    DISK_RESUMED = "disk.resumed"
    """The spool's disk is below the low-water mark again."""
    STORE_UNAVAILABLE = "store.unavailable"
    """A role could not report to Redis or Valkey, or a shard of a Cluster does not answer; the service keeps
    trying. One line a minute."""
    STORE_AVAILABLE = "store.available"
    """The role has reported again, after an outage of `seconds`, or the shard answers again."""
    STORE_FULL = "store.full"
    """The memory of a server of the store is almost full; new jobs are refused until jobs have ended."""
    STORE_EVICTS = "store.evicts"
    """The server deletes keys that have a time to live when memory is full; the server should refuse writes.
    """
    STORE_EMPTY = "store.empty"
    """The store came back without acknowledged data."""
    TRACES_UNAVAILABLE = "traces.unavailable"
    """The environment asks for traces, but no exporter is installed; the service runs without traces."""
    LIBRARY = "library"
    """A message of a library (quart, redis, asyncio), in `message`, with the `logger`."""


def get_logger(**fields: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger with fields; usable before and after `configure`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**fields)
    return logger


def label_lines(**fields: str) -> None:
    """Add fields to all JSON lines of the present task and of tasks that begin after this call."""
    structlog.contextvars.bind_contextvars(**fields)


def configure(
    *,
    form: Literal["auto", "console", "json"] = "auto",
    level: Literal["debug", "info", "warning", "error"] = "info",
    stream: TextIO | None = None,
) -> None:
    """Set up the logging of the process and of the standard library.

    The form `auto` prints for people when `stream` (default: standard error) is a terminal, JSON otherwise.
    Other libraries' messages are printed from `warning` on.
    """
    out = stream if stream is not None else sys.stderr
    terminal = out.isatty()
    console = form == "console" or (form == "auto" and terminal)
    shape: list[structlog.typing.Processor] = _console(colors=terminal) if console else _json()
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
    ours: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        stamp,
    ]
    structlog.configure(
        processors=[*ours, structlog.processors.format_exc_info, *shape],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: _Lines(out),
        cache_logger_on_first_use=False,  # a logger made at import has to follow `configure`
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*ours, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _as_library,
                *shape,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, _LEVELS[level]) if level != "debug" else logging.INFO)
    logging.captureWarnings(capture=True)


class _Lines:
    """Writes lines. Errors of writing (a full disk, a closed pipe) lose lines and are ignored."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = msg


def _json() -> list[structlog.typing.Processor]:
    return [structlog.contextvars.merge_contextvars, _cut_fields, structlog.processors.JSONRenderer()]


def _console(*, colors: bool) -> list[structlog.typing.Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors,
        timestamp_key="time",
        exception_formatter=structlog.dev.plain_traceback,
        pad_event_to=20,
        sort_keys=False,
    )
    return [_quote_fields, renderer]


def _as_library(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Move a library's message to the field `message`."""
    event["message"] = event["event"]
    event["event"] = Event.LIBRARY.value
    return event


def _cut_fields(_logger: Any, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = cut(value)
    return event


def _quote_fields(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Quote and escape fields with blanks or special characters, so that a value cannot look like a field."""
    for key, value in event.items():
        if key == "exception":
            event[key] = "\n".join(map(escape, str(value).split("\n")))
        elif key == "event":
            event[key] = escape(str(value))
        elif isinstance(value, str):
            text = cut(value)
            event[key] = str(text) if _PLAIN.fullmatch(text) else _Quoted(text)
    return event


class _Quoted:
    """Text with a quoted and escaped `repr`, which the console renderer prints."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\\", "\\\\").replace('"', '\\"')

    def __repr__(self) -> str:
        return f'"{escape_all(self._text)}"'
