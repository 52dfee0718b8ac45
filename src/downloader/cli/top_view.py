"""The screen of `downloader top`: a snapshot of `GET /events` as text."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from downloader.cli.aggregations import STATES
from downloader.observe import TROUBLES
from downloader.printable import escape

WINDOW_S = 20.0
"""Time over which rates are averaged; instances report only every few seconds."""

INSTANCES = 8
"""Most instances shown on a screen."""

DESTINATIONS = 3
"""Most destinations of callbacks shown; the service lists those with the most callbacks first."""

_FLOW = {
    "pending": 0,
    "in flight": 0,
    "per s": 0,
    "bytes per s": 80,
    "done": 60,
    "failed": 50,
    "retried": 80,
}
_INSTANCE = {"role": 0, "host": 0, "version": 80, "up": 60, "in flight": 0, "unhealthy": 60}
_AGGREGATION = {"aggregation": 0, "in flight": 0, "limit": 60, "pending": 0, "state": 0}
"""Columns of the tables, each with the least width of a terminal that shows the column."""

_FIXED_LINES = 9
"""Lines of the screen other than rows of the two tables."""


class Rates:
    """Growth of counters per second, over the last snapshots."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Mapping[str, Mapping[str, float]]]] = deque()

    def add(self, state: Mapping[str, Any], now_s: float) -> None:
        """Add the counters of a snapshot."""
        self._seen.append((now_s, state.get("counters", {})))
        while now_s - self._seen[0][0] > WINDOW_S and len(self._seen) > 2:  # noqa: PLR2004  # two for a rate
            self._seen.popleft()

    def of(self, role: str, name: str) -> float:
        """Growth of a counter per second; 0 before the second snapshot."""
        if len(self._seen) < 2:  # noqa: PLR2004  # as above
            return 0.0
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        grown = _count(last, role, name) - _count(first, role, name)
        return max(grown, 0.0) / (ended - began)


def _count(counters: Mapping[str, Any], role: str, name: str) -> float:
    return float(counters.get(role, {}).get(name, 0))


def view(
    state: Mapping[str, Any],
    rates: Rates,
    *,
    title: str,
    height: int | None,
    width: int = 80,
    problem: str = "",
) -> RenderableType:
    """The screen.

    Args:
        state: a snapshot of `GET /events`.
        rates: of its counters.
        title: the service's address.
        height: lines of the terminal; `None`: unlimited.
        width: columns of the terminal.
        problem: why the snapshot is outdated; empty if current.
    """
    instances = state.get("instances", [])
    shown = instances if height is None else instances[:INSTANCES]
    lines, destinations = [*_troubles(state), *_backlog(state, rates)], _destinations(state)
    used = _FIXED_LINES + len(lines) + len(destinations) + len(shown)
    room = None if height is None else max(1, height - used)
    return Group(
        _head(state, title, problem).append("" if height is None else "  q quits", "dim"),
        *lines,
        _flow(state, rates, width),
        *destinations,
        Text(),
        _instances(shown, width, more=len(instances) - len(shown) + state.get("more_instances", 0)),
        Text(),
        _aggregations(state, room, width),
    )


def _head(state: Mapping[str, Any], title: str, problem: str) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("downloader ", "bold").append(title)
    if problem:
        line.append(f"  {escape(problem)}", "bold red")
    elif not state.get("store"):
        line.append("  the store does not answer", "bold red")
    elif state.get("paused"):
        line.append("  all aggregations are paused", "bold yellow")
    else:
        line.append("  store ok", "green")
    return line


def _troubles(state: Mapping[str, Any]) -> Sequence[Text]:
    """A line for each trouble of the instances, with the hosts of the instances."""
    hosts: dict[str, set[str]] = {}
    for row in state.get("instances", []):
        for name in row.get("troubles", ()):
            hosts.setdefault(name, set()).add(str(row.get("host", "")))
    lines = [f"{TROUBLES.get(name, name)}: {', '.join(sorted(names))}" for name, names in hosts.items()]
    if state.get("stalled"):
        lines.append("downloads do not progress: no attempt has ended or received a byte for ten minutes")
    return [Text(escape(line), "bold red", overflow="ellipsis", no_wrap=True) for line in sorted(lines)]


def _table(columns: Mapping[str, int], width: int, left: Collection[str], *, expand: bool = False) -> Table:
    """A table with the columns for which the terminal has room; columns not in `left` have numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0), expand=expand)
    for name, least in columns.items():
        if width >= least:
            ratio = 1 if expand and not table.columns else None
            justify: Literal["left", "right"] = "left" if name in left else "right"
            table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", ratio=ratio)
    return table


def _add(table: Table, cells: Mapping[str, RenderableType]) -> None:
    """Add a row, with a cell for each column by the name of the column."""
    table.add_row(*(cells.get(str(column.header), "") for column in table.columns))


def _flow(state: Mapping[str, Any], rates: Rates, width: int) -> Table:
    counters, flying = state.get("counters", {}), state.get("in_flight", {})
    waiting = state.get("waiting") or {}  # missing if the token may not see all aggregations
    table = _table({"": 0, **_FLOW}, width, left=[""])
    rows = (
        ("downloads", "processor", "downloads_succeeded", "downloads_failed", "downloads_retried"),
        ("callbacks", "notifier", "callbacks_delivered", "callbacks_failed", "callbacks_retried"),
    )
    for label, role, good, bad, again in rows:
        cells: dict[str, RenderableType] = {
            "": Text(label, "bold"),
            "pending": _number((waiting.get(label) or {}).get("pending")),
            "in flight": _number(flying.get(label)),
        }
        if role in counters:  # not for a token that may not see all aggregations
            numbers = [int(_count(counters, role, name)) for name in (good, bad, again)]
            cells |= {
                "per s": f"{rates.of(role, good) + rates.of(role, bad):.1f}",
                "bytes per s": decimal(int(rates.of(role, "bytes"))) if role == "processor" else "",
                "done": f"{numbers[0]:,}",
                "failed": Text(f"{numbers[1]:,}", "red" if numbers[1] else ""),
                "retried": f"{numbers[2]:,}",
            }
        _add(table, cells)
    return table


def _destinations(state: Mapping[str, Any]) -> Sequence[Text]:
    """A line for each destination whose callbacks wait."""
    waiting = (state.get("waiting") or {}).get("callbacks") or {}
    lines = []
    for row in waiting.get("destinations", ())[:DESTINATIONS]:
        line = f"{row.get('pending', 0):,} callbacks wait for {row.get('destination', '')}"
        due = row.get("due_at")
        if due and (seconds := round(datetime.fromisoformat(due).timestamp() - time.time())) > 0:
            line += f", next attempt in {seconds} s"
        lines.append(Text(escape(line), "yellow", overflow="ellipsis", no_wrap=True))
    return lines


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _backlog(state: Mapping[str, Any], rates: Rates) -> Sequence[Text]:
    """Since when the oldest download is due, and how long all that may start takes, if any waits.

    It takes at least so long: if an aggregation that starts few jobs has most of them, the rate falls when
    the others are done.
    """
    downloads = (state.get("waiting") or {}).get("downloads") or {}
    rate = rates.of("processor", "downloads_succeeded") + rates.of("processor", "downloads_failed")
    parts = []
    held = downloads.get("held", 0)  # missing from a service of an older version
    if oldest := downloads.get("oldest_due_at"):
        parts.append(f"oldest due for {_since(datetime.fromisoformat(oldest).timestamp() * 1000)}")
    pending = downloads.get("pending", 0) - held
    if pending > 0 and rate:
        parts.append(f"at least {_since((time.time() - pending / rate) * 1000)} left at {rate:,.2f}/s")
    if held:
        parts.append(f"{held:,} {'more ' if pending > 0 else ''}paused or cooling")
    return [Text(", ".join(parts), "dim", overflow="ellipsis", no_wrap=True)] if parts else []


def _instances(instances: list[Mapping[str, Any]], width: int, *, more: int) -> Table:
    table = _table(_INSTANCE, width, left=["role", "host", "version", "unhealthy"])
    for row in instances:
        bad = ", ".join(
            f"{backend.get('backend')}: {backend.get('error')}" for backend in row.get("unhealthy", ())
        )
        cells: dict[str, RenderableType] = {
            name: Text(escape(str(row.get(name, "")))) for name in ("host", "version")
        }
        cells["role"] = Text(escape(str(row.get("role", ""))), "bold")
        cells["unhealthy"] = Text(escape(bad), "red", overflow="ellipsis")
        cells |= {"up": _since(row.get("started_ms", 0)), "in flight": _number(row.get("in_flight"))}
        _add(table, cells)
    if more:
        table.add_row(Text(f"and {more} more", "dim"))
    return table


def _aggregations(state: Mapping[str, Any], room: int | None, width: int) -> RenderableType:
    aggregations = state.get("aggregations", [])
    shown = aggregations if room is None or len(aggregations) <= room else aggregations[: room - 1]
    if not aggregations:
        return Text("no jobs wait or run", "dim")
    # With `expand`, the numbers keep their room beside a long name.
    table = _table(_AGGREGATION, width, left=["aggregation", "state"], expand=True)
    for row in shown:
        cells: dict[str, RenderableType] = {
            name: f"{row.get(name.replace(' ', '_'), 0):,}" for name in ("in flight", "limit", "pending")
        }
        if row.get("limit") == 1 and not row.get("in_flight", 0) + row.get("pending", 0):
            cells["limit"] = ""  # it is 1 also if none is set
        cells["aggregation"] = Text(escape(str(row.get("aggr_id", ""))))
        cells["state"] = Text(_state(row), "yellow")
        _add(table, cells)
    if more := len(aggregations) - len(shown) + state.get("more_aggregations", 0):
        table.add_row(Text(f"and {more:,} more", "dim"))
    return table


def _state(aggregation: Mapping[str, Any]) -> str:
    if aggregation.get("paused"):
        return "paused"
    until = aggregation.get("cooling_until")
    if not isinstance(until, str):
        pending, in_flight = aggregation.get("pending", 0), aggregation.get("in_flight", 0)
        return STATES["at_limit"] if pending and in_flight >= aggregation.get("limit", 1) else ""
    return f"cooling {max(0, round(datetime.fromisoformat(until).timestamp() - time.time()))} s"


def _since(started_ms: float) -> str:
    seconds = max(0, int(time.time() - started_ms / 1000))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"
