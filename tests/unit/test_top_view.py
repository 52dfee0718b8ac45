"""The screen of `downloader top`, from snapshots as `GET /events` has them."""

from __future__ import annotations

import io
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from downloader.cli.top_view import WINDOW_S, Rates, view


def snapshot(**changes: Any) -> dict[str, Any]:
    instances = [
        {
            "role": role,
            "host": "h\x1b[31m",
            "version": "1",
            "started_ms": (time.time() - 3700) * 1000,
            "in_flight": 7,
            "unhealthy": [{"backend": "kafka", "error": "no broker"}] if role == "notifier" else [],
        }
        for role in ("processor", "notifier")
    ]
    state = {
        "store": True,
        "instances": instances,
        "more_instances": 0,
        "aggregations": [
            {"aggr_id": f"a{number}", "in_flight": 1, "limit": 2, "pending": 1234, "paused": number == 0}
            for number in range(30)
        ],
        "more_aggregations": 5,
        "in_flight": {"downloads": 40, "callbacks": 2},
        "waiting": {"downloads": {"pending": 37020}, "callbacks": {"pending": 3}},
        "counters": {"processor": {"downloads_succeeded": 1000, "bytes": 5_000_000}},
    }
    return state | changes


def shown(
    state: dict[str, Any],
    rates: Rates | None = None,
    *,
    height: int | None = 24,
    width: int = 80,
    **more: str,
) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None)
    console.print(view(state, rates or Rates(), title="http://h", height=height, width=width, **more))
    return out.getvalue().splitlines()


def test_it_fits_the_screen() -> None:
    lines = shown(snapshot())
    assert len(lines) <= 24
    text = "\n".join(lines)
    for part in ("store ok", "1h 1m", "kafka: no broker", "h\\x1b[31m", "1,234  paused", "more", "37,020"):
        assert part in text
    assert "a29" not in text
    head, *rest = shown(snapshot(), height=None)
    assert "a29" in "\n".join(rest)
    assert ("q quits" in lines[0], "q quits" in head) == (True, False)


def test_a_long_name_leaves_room_for_the_numbers() -> None:
    rows = [{"aggr_id": "x" * 128, "in_flight": 3, "limit": 4, "pending": 1234567, "paused": True}]
    [row] = [line for line in shown(snapshot(aggregations=rows)) if line.startswith("xxx")]
    assert row.split()[1:] == ["3", "4", "1,234,567", "paused"]


def test_an_aggregation_without_jobs_has_no_limit() -> None:
    rows = [{"aggr_id": "xxx", "in_flight": 0, "limit": 1, "pending": 0, "paused": True}]
    [row] = [line for line in shown(snapshot(aggregations=rows)) if line.startswith("xxx")]
    assert row.split()[1:] == ["0", "0", "paused"]


def test_a_limit_that_an_operator_has_set_is_shown_without_jobs() -> None:
    [row] = [line for line in shown(snapshot(aggregations=[{"aggr_id": "xxx", "limit": 7}])) if "xxx" in line]
    assert row.split() == ["xxx", "0", "7", "0"]


def test_destinations_whose_callbacks_wait_are_named() -> None:
    due = datetime.fromtimestamp(time.time() + 90.4, UTC).isoformat()
    destinations = [
        {"destination": "http http://a\x1b", "pending": 1234, "in_flight": 0, "limit": 1, "due_at": due},
        *({"destination": f"kafka {topic}", "pending": 3, "due_at": None} for topic in "bcd"),
    ]
    lines = shown(snapshot(waiting={"callbacks": {"pending": 1243, "destinations": destinations}}))
    assert [line for line in lines if "callbacks wait" in line] == [
        "1,234 callbacks wait for http http://a\\x1b, next attempt in 90 s",
        "3 callbacks wait for kafka b",
        "3 callbacks wait for kafka c",
    ]
    assert len(lines) <= 24


def test_the_rows_that_are_left_out_are_counted() -> None:
    lines = shown(snapshot())
    rows = [line for line in lines if line.startswith("a") and "1,234" in line]
    assert f"and {30 - len(rows) + 5} more" in [line.strip() for line in lines]


def test_rates_are_of_the_last_seconds() -> None:
    rates = Rates()
    for second in range(0, 100, 5):
        rates.add({"counters": {"processor": {"downloads_succeeded": second * 2}}}, float(second))
    assert rates.of("processor", "downloads_succeeded") == 2.0
    rates.add({"counters": {"processor": {"downloads_succeeded": 190}}}, 95 + WINDOW_S + 1)
    assert rates.of("processor", "downloads_succeeded") < 0.1
    rates.add({"counters": {}}, 95 + WINDOW_S + 2)  # its instances have gone
    assert rates.of("processor", "downloads_succeeded") == 0.0
    assert rates.of("notifier", "callbacks_delivered") == 0.0


def test_a_cooling_aggregation_says_for_how_long() -> None:
    until = datetime.fromtimestamp(time.time() + 90.2, UTC).isoformat().replace("+00:00", "Z")
    row = {"aggr_id": "a", "cooling_until": until}
    assert any(
        line.rstrip().endswith(("cooling 90 s", "cooling 89 s"))
        for line in shown(snapshot(aggregations=[row]))
    )


def test_errors_are_shown() -> None:
    assert "the store does not answer" in shown(snapshot(store=False))[0]
    assert "cannot reach" in shown(snapshot(), problem="cannot reach http://h")[0]
    assert "no jobs wait or run" in shown(snapshot(aggregations=[], more_aggregations=0))


def test_missing_fields_of_another_version_do_no_harm() -> None:
    assert shown({})
    assert shown({"store": True, "instances": [{}], "aggregations": [{}]})


def test_troubles_of_instances_are_at_the_head() -> None:
    state = snapshot()
    for row, name in zip(state["instances"], ("disk", "of a newer version"), strict=True):
        row["troubles"] = {name: "x"}
    lines = shown(state)
    assert lines[1:3] == ["of a newer version: h\\x1b[31m", "the disk of the spool is full: h\\x1b[31m"]
    assert len(lines) <= 24


def test_the_oldest_download_and_the_end_of_the_backlog() -> None:
    due = datetime.fromtimestamp(time.time() - 125, UTC).isoformat()
    waiting: dict[str, dict[str, Any]] = {
        "downloads": {"pending": 600, "oldest_due_at": due},
        "callbacks": {"pending": 3},
    }
    rates = Rates()
    rates.add({"counters": {"processor": {"downloads_succeeded": 0}}}, 0)
    rates.add({"counters": {"processor": {"downloads_succeeded": 100}}}, 10)
    assert "oldest due for 2m 5s, at least 1m 0s left at 10.00/s" in shown(snapshot(waiting=waiting), rates)
    waiting["downloads"]["held"] = 400
    lines = shown(snapshot(waiting=waiting), rates)
    assert "oldest due for 2m 5s, at least 20s left at 10.00/s, 400 more paused or cooling" in lines
    waiting["downloads"]["held"] = 600
    assert "oldest due for 2m 5s, 600 paused or cooling" in shown(snapshot(waiting=waiting), rates)


@pytest.mark.parametrize(("in_flight", "pending", "text"), [(4, 5, "at its limit"), (3, 5, ""), (4, 0, "")])
def test_an_aggregation_says_that_it_is_at_its_limit(in_flight: int, pending: int, text: str) -> None:
    rows = [{"aggr_id": "xxx", "in_flight": in_flight, "limit": 4, "pending": pending}]
    [row] = [line for line in shown(snapshot(aggregations=rows)) if line.startswith("xxx")]
    assert row.split()[4:] == text.split()


def test_a_token_of_some_aggregations_sees_only_its_own() -> None:
    own = {"waiting": {"downloads": {"pending": 4}, "callbacks": None}, "in_flight": {"downloads": 2}}
    lines = shown(snapshot(counters={}, instances=[], paused=True, **own))
    assert [line.split() for line in lines if line.startswith(("downloads", "callbacks"))] == [
        ["downloads", "4", "2"],
        ["callbacks"],
    ]
    assert "all aggregations are paused" in lines[0]


@pytest.mark.parametrize("width", [40, 59, 60, 79])
def test_a_narrow_terminal_has_fewer_columns_and_whole_numbers(width: int) -> None:
    lines = shown(snapshot(), width=width)
    assert max(map(len, lines)) <= width
    downloads = next(line.split() for line in lines if line.startswith("downloads"))
    assert downloads[:4] == ["downloads", "37,020", "40", "0.0"]
    head = next(line for line in lines if "pending" in line)
    assert ("done" in head, "retried" in head) == (width >= 60, False)
    assert any("1,234  paused" in line for line in lines)
    assert any(line.split()[:2] == ["processor", "h\\x1b[31m"] for line in lines)


def test_downloads_that_do_not_progress_are_told() -> None:
    assert any("do not progress" in line for line in shown(snapshot(stalled=True)))
    assert not any("do not progress" in line for line in shown(snapshot(stalled=False)))
