"""The dashboard and the alert rules name metrics and labels that `GET /metrics` has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from downloader.api.problems import CODES
from downloader.api.routes import ROUTES
from downloader.observe import KINDS, METRICS, TROUBLES

ROOT = Path(__file__).parents[2]

LABELS = {
    f"{metric.name}{ending}": {*metric.labels, *more}
    for metric in METRICS
    for ending, more in (
        {"_bucket": ["le"], "_sum": [], "_count": []} if metric.type == "histogram" else {"": []}
    ).items()
}
"""Labels by name of a sample."""


def dashboard() -> Iterator[tuple[str, str]]:
    """Title and query of each line that is drawn."""
    for panel in json.loads((ROOT / "deploy/grafana-dashboard.json").read_text("utf-8"))["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def rules() -> Iterator[tuple[str, str]]:
    """Name and query of each alert."""
    [group] = yaml.safe_load((ROOT / "deploy/prometheus-rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]:
        assert {"alert", "expr", "labels", "annotations"} <= rule.keys() <= {*rule, "for"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook_url"].endswith(f"/howto/alerts.html#{rule['alert'].lower()}")
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("title", "query"), [*dashboard(), *rules()])
def test_a_query_names_what_is_there(title: str, query: str) -> None:
    names = re.findall(r"\b(?:downloader_\w+|up)\b", query)
    assert names, title
    assert set(names) <= {*LABELS, "up"}
    used = {
        label
        for matchers in re.findall(r"\{(.*?)\}", query)
        for label in re.findall(r"(\w+)(?:=|!~)", matchers)
    }
    used |= {label for grouped in re.findall(r"\bby \((.*?)\)", query) for label in grouped.split(", ")}
    known = LABELS | {"up": {"job"}}
    assert used <= set.union(*(known[name] for name in names))
    # All instances tell the fleet's numbers: whoever adds those of several counts everything twice.
    assert query.count("max without (instance) (") == query.count("downloader_")


VALUES = {
    "code": {*CODES},
    "job": {"downloader"},
    "kind": {*KINDS.values()},
    "outcome": {"succeeded", "delivered", "failed", "retried", "released", "throttled"},
    "role": {"api", *KINDS},
    "route": {route.rule for route in ROUTES},
    "status": {"2xx", "4xx", "5xx"},
    "trouble": {*TROUBLES},
}
"""What the labels that queries compare can be."""


@pytest.mark.parametrize(("title", "query"), [*dashboard(), *rules()])
def test_a_query_compares_labels_with_values_that_come(title: str, query: str) -> None:
    for label, values in re.findall(r"(\w+)(?:=~?|!~)\"(.*?)\"", query):
        assert set(values.split("|")) <= VALUES[label], title


@pytest.mark.parametrize(("name", "query"), [*rules()])
def test_an_alert_is_for_nobody_there_or_for_too_much(name: str, query: str) -> None:
    compared = re.findall(r"[<>=!]+ [\d.]+", re.sub(r"\{.*?\}", "", query))
    nobody = ["== 0"] if "up{" in query else ["== 0", "> 0"]
    if name in ("DownloaderUnreachable", "DownloaderNoProcessor", "DownloaderNoNotifier"):
        assert compared == nobody
    else:
        assert {comparison[0] for comparison in compared} == {">"}


def test_each_metric_is_drawn() -> None:
    names = re.findall(r"downloader_\w+", " ".join(query for _, query in dashboard()))
    drawn = {name.removesuffix("_bucket") for name in names}
    assert drawn | {"downloader_next_due_seconds"} == {metric.name for metric in METRICS}


def test_panels_do_not_overlap() -> None:
    panels = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_each_alert_has_a_runbook() -> None:
    page = (ROOT / "docs/howto/alerts.md").read_text("utf-8")
    _, *parts = re.split(r"^## (Downloader\w+)$", page, flags=re.MULTILINE)
    assert parts[::2] == [name for name, _ in rules()]
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        assert re.search(r"`(downloader [a-z]|redis-cli |df |GET /)", text), f"{name} has no command"
