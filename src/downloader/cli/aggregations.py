"""`downloader aggregations`, `pause` and `resume`: show and change aggregations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from downloader.cli.options import LOCAL, Json, Service, connect, for_each
from downloader.cli.output import Cell, details, local_time, show_table, write_json, write_result
from downloader.errors import ConfigError

if TYPE_CHECKING:
    from downloader.client import Aggregation, Client

COLUMNS: Mapping[str, Callable[[Aggregation], Cell]] = {
    "aggregation": lambda row: (row.aggr_id, "bold"),
    "in flight": lambda row: str(row.in_flight),
    "pending": lambda row: str(row.pending),
    "limit": lambda row: str(row.limit) if _has_limit(row) else "",
    "rate": lambda row: "" if row.rate is None else f"{row.rate:g}",
    "delay": lambda row: "" if row.delay is None else f"{row.delay:g}",
    "state": lambda row: (_state(row), "yellow"),
}
"""The cells of the table by column."""

STATES = {
    "at_limit": "at its limit",
    "at_rate": "at its rate",
    "disk_full": "waits: the disk of each processor is full",
    "no_processor": "waits: no processor runs",
}
"""Texts about states of an aggregation; `_state` has the texts with a number or time."""

UNITS = {
    "limit": "",
    "rate": " starts per second",
    "delay": " s between starts",
    "pace": " starts per second, after a cooldown",
}
"""The bounds of an aggregation, each with the unit."""

SETTABLE = ("limit", "rate", "delay", "cooling")
"""What `--set` changes; `pause` and `resume` change the rest."""

All = Annotated[bool, Parameter(name="--all", show_default=False)]
AggrIds = Annotated[str, Parameter(name="AGGREGATION", show_default=False)]


def aggregations(
    *aggr_ids: AggrIds,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", show_default=False)] = (),
    json_: Json = False,
    service: Service = LOCAL,
) -> int:
    """Show the aggregations that have unfinished downloads, or change some.

    Without a name it lists all, the busiest first. --set changes them at once,
    over the fleet: limit (downloads at once), rate (starts per second), delay
    (seconds between starts). A value stays, also while the aggregation has no job
    or has never had one; null restores what the jobs ask for, and cooling=null
    ends a cooldown.
    The exit status is 1 if one to be shown has no unfinished downloads.

    For example:
      downloader aggregations
      downloader aggregations example.org
      downloader aggregations example.org --set limit=2 --set rate=null
      downloader aggregations example.org --set cooling=null

    Args:
        aggr_ids: Names of aggregations.
        set_: A new value, as NAME=VALUE; NAME is limit, rate, delay or cooling.
        json_: Write a JSON object for each.
    """
    changes = dict(map(_change, set_))
    if aggr_ids:

        def show(client: Client, aggr_id: str) -> None:
            aggregation = client.adjust(aggr_id, **changes) if changes else client.aggregation(aggr_id)
            write_result(aggregation, aggregation.aggr_id, _rows(aggregation), as_json=json_)

        return for_each(aggr_ids, show, service)
    if changes:
        raise ConfigError("--set needs the names of aggregations")
    with connect(service) as client:
        rows = sorted(client.aggregations(), key=lambda row: (-row.in_flight - row.pending, row.aggr_id))
    if json_:
        for row in rows:
            write_json(row)
    else:
        empty = "no aggregation has unfinished downloads"
        cells = [[cell(row) for cell in COLUMNS.values()] for row in rows]
        show_table(list(COLUMNS), cells, right=list(COLUMNS)[1:-1], empty=empty)
    return 0


def pause(*aggr_ids: AggrIds, all_: All = False, json_: Json = False, service: Service = LOCAL) -> int:
    """Pause aggregations: no download of the aggregations starts, over the fleet.

    Downloads in flight go on, and jobs are still accepted.

    For example:
      downloader pause example.org
      downloader pause --all

    Args:
        aggr_ids: Names of aggregations.
        all_: Pause all, also those that come later.
        json_: Write a JSON object for each.
    """
    return _set_paused(aggr_ids, paused=True, everything=all_, as_json=json_, service=service)


def resume(*aggr_ids: AggrIds, all_: All = False, json_: Json = False, service: Service = LOCAL) -> int:
    """Resume paused aggregations.

    For example:
      downloader resume example.org
      downloader resume --all

    Args:
        aggr_ids: Names of aggregations.
        all_: End the pause of all; those that are paused by name stay so.
        json_: Write a JSON object for each.
    """
    return _set_paused(aggr_ids, paused=False, everything=all_, as_json=json_, service=service)


def _set_paused(
    aggr_ids: Sequence[str], *, paused: bool, everything: bool, as_json: bool, service: Service
) -> int:
    if everything == bool(aggr_ids):
        raise ConfigError("give an id or a name, or --all")
    if everything:
        with connect(service) as client:
            client.pause_all(paused=paused)
        line = "all aggregations are paused" if paused else "the pause of all aggregations has ended"
        write_result({"paused": paused}, line, as_json=as_json)
        return 0

    def change(client: Client, aggr_id: str) -> None:
        aggregation = client.adjust(aggr_id, paused=paused)
        line = f"{aggr_id} {'is paused' if aggregation.paused else 'goes on'}: {aggregation.pending} pending"
        write_result(aggregation, line, as_json=as_json)

    return for_each(aggr_ids, change, service)


def _change(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        if name in SETTABLE:
            return name, json.loads(value)
    except ValueError:
        pass
    names = ", ".join(SETTABLE)
    raise ConfigError(f"--set {text}: must be NAME=NUMBER or NAME=null, where NAME is one of {names}")


def _has_limit(aggregation: Aggregation) -> bool:
    """Whether a job or an operator has named the limit; the service says 1 until then."""
    return aggregation.in_flight + aggregation.pending > 0 or "limit" in aggregation.overridden


def described(aggregation: Aggregation) -> str:
    """The state of an aggregation, with the reason of a cooldown; empty if there is nothing to tell."""
    return f"{_state(aggregation)} {aggregation.cooling_reason}".strip()


def _state(aggregation: Aggregation) -> str:
    if aggregation.paused:
        return "paused"
    if aggregation.cooling_until is not None:
        return f"cooling until {local_time(aggregation.cooling_until)}"
    pace = aggregation.pace
    if aggregation.state == "at_rate" and pace and pace * (aggregation.delay or 0) < 1:
        return f"at its pace, {pace:g}/s, after a cooldown"
    if aggregation.state == "scheduled" and aggregation.next_due_at is not None:
        return f"waits until {local_time(aggregation.next_due_at)} for a retry or a start time"
    return STATES.get(aggregation.state, "")


def _rows(aggregation: Aggregation) -> Iterator[tuple[str, str]]:
    if state := described(aggregation):
        yield "state", state
    yield "in flight", str(aggregation.in_flight)
    yield "pending", str(aggregation.pending)
    for name, unit in UNITS.items():
        value = getattr(aggregation, name)
        if value is not None and (name != "limit" or _has_limit(aggregation)):
            value_of_jobs = aggregation.overridden.get(name)
            shown = "none" if value_of_jobs is None else f"{value_of_jobs:g}"
            note = f" (the jobs ask for {shown})" if name in aggregation.overridden else ""
            yield name, f"{value:g}{unit}{note}"
    yield from details(aggregation, proxy="proxy", next_due_at="next due")
