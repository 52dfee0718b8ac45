"""The screen of `downloader top`: a snapshot of `GET /events` as text."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from downloader.printable import escape

WINDOW_S = 20.0
"""Rates are averages over this time, because instances report only every few seconds."""

INSTANCES = 8
"""Most instances shown where the screen is small."""

_FIXED_LINES = 9
"""Lines besides the rows of the two tables."""


class Rates:
    """Growth of counters per second, over the last snapshots."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Mapping[str, Mapping[str, float]]]] = deque()

    def add(self, state: Mapping[str, Any], now_s: float) -> None:
        """Note the counters of a snapshot."""
        self._seen.append((now_s, state.get("counters", {})))
        while now_s - self._seen[0][0] > WINDOW_S and len(self._seen) > 2:  # noqa: PLR2004  # two for a rate
            self._seen.popleft()

    def of(self, role: str, name: str) -> float:
        """How much a counter grows per second; 0 when that is not known yet."""
        if len(self._seen) < 2:  # noqa: PLR2004  # as above
            return 0.0
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        grown = _count(last, role, name) - _count(first, role, name)
        return max(grown, 0.0) / (ended - began)


def _count(counters: Mapping[str, Any], role: str, name: str) -> float:
    return float(counters.get(role, {}).get(name, 0))


def view(
    state: Mapping[str, Any], rates: Rates, *, title: str, height: int | None, problem: str = ""
) -> RenderableType:
    """The screen.

    Args:
        state: a snapshot of `GET /events`.
        rates: of its counters.
        title: the service's address.
        height: lines of the terminal; `None` shows all there is.
        problem: why the snapshot is not the present one; empty if it is.
    """
    instances = state.get("instances", [])
    shown = instances if height is None else instances[:INSTANCES]
    room = None if height is None else max(1, height - _FIXED_LINES - len(shown))
    return Group(
        _head(state, title, problem),
        _flow(state, rates),
        Text(),
        _instances(shown, more=len(instances) - len(shown) + state.get("more_instances", 0)),
        Text(),
        _aggregations(state, room),
    )


def _head(state: Mapping[str, Any], title: str, problem: str) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("downloader ", "bold").append(title)
    if problem:
        line.append(f"  {escape(problem)}", "bold red")
    elif not state.get("store"):
        line.append("  the store does not answer", "bold red")
    else:
        line.append("  store ok", "green")
    return line.append("  q quits", "dim")


def _flow(state: Mapping[str, Any], rates: Rates) -> Table:
    counters, flying = state.get("counters", {}), state.get("in_flight", {})
    waiting = state.get("waiting") or {}  # a token that may not see all aggregations gets none
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for name in ("pending", "in flight", "per s", "bytes per s", "done", "failed", "retried"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = (
        ("downloads", "processor", "downloads_succeeded", "downloads_failed", "downloads_retried"),
        ("callbacks", "notifier", "callbacks_delivered", "callbacks_failed", "callbacks_retried"),
    )
    for label, role, good, bad, again in rows:
        numbers = [int(_count(counters, role, name)) for name in (good, bad, again)]
        volume = decimal(int(rates.of(role, "bytes"))) if role == "processor" else ""
        table.add_row(
            Text(label, "bold"),
            f"{waiting[label].get('pending', 0):,}" if label in waiting else "",
            f"{flying.get(label, 0):,}",
            f"{rates.of(role, good) + rates.of(role, bad):.1f}",
            volume,
            f"{numbers[0]:,}",
            Text(f"{numbers[1]:,}", "red" if numbers[1] else ""),
            f"{numbers[2]:,}",
        )
    return table


def _instances(instances: list[Mapping[str, Any]], *, more: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("role", "host", "version", "up", "in flight", "unhealthy"):
        table.add_column(name, justify="right" if name in ("up", "in flight") else "left", no_wrap=True)
    for one in instances:
        bad = ", ".join(f"{each.get('backend')}: {each.get('error')}" for each in one.get("unhealthy", ()))
        flying = one.get("in_flight")
        table.add_row(
            Text(escape(str(one.get("role", ""))), "bold"),
            Text(escape(str(one.get("host", "")))),
            Text(escape(str(one.get("version", "")))),
            _since(one.get("started_ms", 0)),
            "" if flying is None else f"{flying:,}",
            Text(escape(bad), "red", overflow="ellipsis"),
        )
    if more:
        table.add_row(Text(f"and {more} more", "dim"))
    return table


def _aggregations(state: Mapping[str, Any], room: int | None) -> RenderableType:
    found = state.get("aggregations", [])
    shown = found if room is None or len(found) <= room else found[: room - 1]
    if not found:
        return Text("no jobs wait or run", "dim")
    # Only with `expand` do the numbers keep their room beside a long name.
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0), expand=True)
    table.add_column("aggregation", overflow="ellipsis", no_wrap=True, ratio=1)
    for name in ("in flight", "limit", "pending"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=15)
    for one in shown:
        table.add_row(
            Text(escape(str(one.get("aggr_id", "")))),
            f"{one.get('in_flight', 0):,}",
            f"{one.get('limit', 0):,}",
            f"{one.get('pending', 0):,}",
            Text(_state(one), "yellow"),
        )
    if more := len(found) - len(shown) + state.get("more_aggregations", 0):
        table.add_row(Text(f"and {more:,} more", "dim"))
    return table


def _state(aggregation: Mapping[str, Any]) -> str:
    if aggregation.get("paused"):
        return "paused"
    until = aggregation.get("cooling_until")
    if not isinstance(until, str):
        return ""
    return f"cooling {max(0, round(datetime.fromisoformat(until).timestamp() - time.time()))} s"


def _since(started_ms: float) -> str:
    seconds = max(0, int(time.time() - started_ms / 1000))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"
