"""Structured logs on standard error: JSON for programs, aligned lines for people.

Get a logger with `get_logger()`, name the event from `downloader.observe.events`, give the rest as fields:
`log.info(Event.JOB_FAILED, job=lease.id, aggr=lease.spec.aggr_id, error=outcome.error)`. URLs go through
`downloader.net.redact_url` first.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

from downloader.observe.events import Event
from downloader.printable import cut, escape, escape_all

_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")
"""Values that need no quotes: printable ASCII without blank, quote, equals sign and backslash."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

EventDict = MutableMapping[str, Any]


def get_logger(**fields: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger with these fields; usable before `configure`, which it obeys from then on."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**fields)
    return logger


def configure(
    *,
    form: Literal["auto", "console", "json"] = "auto",
    level: Literal["debug", "info", "warning", "error"] = "info",
    stream: TextIO | None = None,
) -> None:
    """Set up the process's logging, the standard library's and so every other library's included.

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
    return [_cut_fields, structlog.processors.JSONRenderer()]


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
    """Text whose `repr`, which the console renderer prints, is quoted and escaped."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\\", "\\\\").replace('"', '\\"')

    def __repr__(self) -> str:
        return f'"{escape_all(self._text)}"'
