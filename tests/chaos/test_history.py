"""`judge` finds each kind of broken promise, and a seed always makes the same schedule."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from chaos.history import (
    RULES,
    Closed,
    Completion,
    Delivery,
    File,
    GroupRecord,
    History,
    Job,
    JobGroup,
    Record,
    Resume,
    judge,
    losses,
)
from chaos.reading import kept_ends
from chaos.schedule import STORE, Kind, make_schedule

NO_COUNTS = {"jobs": 0, "succeeded": 0, "failed": 0, "cancelled": 0}
COUNTS = {"jobs": 2, "succeeded": 0, "failed": 1, "cancelled": 1}


def good() -> History:
    """A history without violations: one job succeeded, one failed and one was cancelled.

    The last two belong to a group of jobs that was reopened, in which the failed one was retried.
    """
    return History(
        jobs={
            "a": Job(id="a", group="g", succeeds=True, size=3, sha256="aa", attempts=2),
            "b": Job(id="b", group="g", succeeds=False, job_group="n", retries=1),
            "c": Job(id="c", group="g", succeeds=True, cancelled=True, job_group="n"),
        },
        records={
            "a": Record(
                state="succeeded", attempts=2, size=3, sha256="aa", callback="succeeded", started_s=5.0
            ),
            "b": Record(state="failed", attempts=1, callback="succeeded", started_s=5.1),
            "c": Record(state="cancelled", attempts=0, callback="succeeded"),
        },
        ends=Counter({"a": 1}),  # the instance that ended b was killed before it could log that
        files={"a": File(size=3, sha256="aa")},
        deliveries={
            "a": [Delivery(webhook_id="a", body=b"1", success=True)] * 2,
            "b": [Delivery(webhook_id=one, body=one.encode(), success=False) for one in ("b", "b2")],
            "c": [Delivery(webhook_id="c", body=b"3", success=False)],
        },
        job_groups={"n": JobGroup(name="n", seals=2, retried=1), "empty": JobGroup(name="empty", seals=1)},
        group_records={
            "n": GroupRecord(state="complete", callback="succeeded", counts=COUNTS),
            "empty": GroupRecord(state="complete", callback="succeeded", counts=NO_COUNTS),
        },
        completions={
            "n": [
                Completion(webhook_id="n1", body=b"n1", counts=COUNTS, told=2),
                Completion(webhook_id="n2", body=b"n2", counts=COUNTS, told=3),
                Completion(webhook_id="n1", body=b"n1", counts=COUNTS, told=3),
            ],
            "empty": [Completion(webhook_id="e", body=b"e", counts=NO_COUNTS, told=0)],
        },
        closed=[Closed(group="g", why="paused", after_s=3.0, until_s=5.0)],
        resumes=[
            Resume(group="g", sent_s=2.0, logged_s=2.9),  # of the pause before
            Resume(group="g", sent_s=5.0, logged_s=5.1),
            Resume(group="another", sent_s=2.0, logged_s=4.8),
        ],
        rates={"g": 1.0},
        limits={"g": 2},
        peaks={"g": 2},
        late=[("a", 0.9)],
        late_s=1.0,
    )


def record(history: History, job_id: str, **changes: Any) -> History:
    history.records[job_id] = dataclasses.replace(history.records[job_id], **changes)
    return history


def completed(history: History, number: int, **changes: Any) -> History:
    completions = history.completions["n"]
    completions[number] = dataclasses.replace(completions[number], **changes)
    return history


def test_a_correct_history_has_no_violations() -> None:
    assert judge(good()) == []


def test_late_repetitions_may_seal_and_reopen_a_group_once_more() -> None:
    history = completed(good(), 2, webhook_id="n3", body=b"n3")
    assert [one.rule for one in judge(history)] == ["group not told once"]
    history.job_groups["n"] = dataclasses.replace(history.job_groups["n"], most=3)
    assert judge(history) == []


def test_a_late_request_may_end_a_later_pause() -> None:
    history = record(good(), "b", started_s=4.9)
    assert [one.rule for one in judge(history)] == ["started too early"]
    history.resumes.append(Resume(group="g", sent_s=2.0, logged_s=4.91))
    assert judge(history) == []


BREAKS: dict[str, tuple[Callable[[History], object], set[str]]] = {
    "a lost job": (lambda h: h.records.pop("b"), {"lost", "group miscounted"}),
    "a lost job and its file": (lambda h: h.records.pop("a"), {"lost", "file of nobody"}),
    "a job accepted twice": (
        lambda h: h.jobs.pop("b"),
        {"accepted twice", "several ids", "group miscounted"},
    ),
    "a job that waits": (
        lambda h: record(h, "b", state="pending", callback=None),
        {"still queued", "not notified", "group miscounted"},
    ),
    "a job that runs": (
        lambda h: record(h, "b", state="running", callback=None),
        {"still queued", "not notified", "group miscounted"},
    ),
    "a double terminal": (lambda h: h.ends.update("a"), {"ended twice"}),
    "another outcome": (
        lambda h: record(h, "a", state="failed").files.clear(),
        {"wrong outcome", "several outcomes"},
    ),
    "an attempt for a crash": (lambda h: record(h, "a", attempts=3), {"attempts used up by us"}),
    "a lease": (lambda h: h.leases.append("a"), {"lease left"}),
    "a token": (lambda h: h.tokens.append("running:g"), {"token left"}),
    "a spool file": (lambda h: h.spool.append("x/y"), {"spool file left"}),
    "a lost file": (lambda h: h.files.clear(), {"file missing"}),
    "a file of a failed job": (
        lambda h: h.files.update(b=File(size=0, sha256="")),
        {"file of nobody"},
    ),
    "a truncated file": (lambda h: h.files.update(a=File(size=2, sha256="a")), {"wrong content"}),
    "a changed file": (lambda h: h.files.update(a=File(size=3, sha256="ab")), {"wrong content"}),
    "a record of other content": (lambda h: record(h, "a", size=2), {"wrong content"}),
    "an exceeded limit": (lambda h: h.peaks.update(g=3), {"limit exceeded"}),
    "no callback": (lambda h: h.deliveries.pop("b"), {"not notified"}),
    "a callback that failed": (lambda h: record(h, "b", callback="failed"), {"not notified"}),
    "two ids": (
        lambda h: h.deliveries["a"].append(Delivery(webhook_id="d", body=b"1", success=True)),
        {"several ids"},
    ),
    "no id": (
        lambda h: h.deliveries.update(a=[Delivery(webhook_id="", body=b"1", success=True)]),
        {"several ids"},
    ),
    "one id for two jobs": (
        lambda h: h.deliveries.update(b=[Delivery(webhook_id="a", body=b"2", success=False)]),
        {"several ids"},
    ),
    "two bodies": (
        lambda h: h.deliveries["a"].append(Delivery(webhook_id="a", body=b"3", success=True)),
        {"several outcomes"},
    ),
    "a false success": (
        lambda h: h.deliveries.update(b=[Delivery(webhook_id="b", body=b"2", success=True)]),
        {"several outcomes"},
    ),
    "a late recovery": (lambda h: h.late.append(("b", 1.1)), {"recovered late"}),
    "a job that is not cancelled": (
        lambda h: record(h, "c", state="failed"),
        {"wrong outcome", "group miscounted"},
    ),
    "a cancelled job that was finished": (
        lambda h: record(h, "a", state="cancelled"),
        {"wrong outcome", "several outcomes"},
    ),
    "a retry that ended twice": (lambda h: h.ends.update("bbb"), {"ended twice"}),
    "three ids after one retry": (
        lambda h: h.deliveries["b"].append(Delivery(webhook_id="b3", body=b"b3", success=False)),
        {"several ids"},
    ),
    "a group that is sealed": (
        lambda h: h.group_records.update(
            empty=GroupRecord(state="sealed", callback="succeeded", counts=NO_COUNTS)
        ),
        {"group not complete"},
    ),
    "a group that nobody knows": (lambda h: h.group_records.pop("n"), {"group not complete"}),
    "a group without its callback": (lambda h: h.completions.pop("empty"), {"group not told once"}),
    "a second callback of a group": (
        lambda h: completed(h, 2, webhook_id="n3", body=b"n3"),
        {"group not told once"},
    ),
    "another body of a group": (lambda h: completed(h, 2, body=b"n3"), {"group not told once"}),
    "a group of nobody": (
        lambda h: h.completions.update(m=[Completion(webhook_id="m", body=b"m", counts=NO_COUNTS, told=0)]),
        {"group not told once"},
    ),
    "a group before its job": (lambda h: completed(h, 0, told=1), {"group told early"}),
    "a group before its retry": (lambda h: completed(h, 1, told=2), {"group told early"}),
    "a group that counts too few": (
        lambda h: [completed(h, number, counts=NO_COUNTS) for number in range(3)],
        {"group miscounted"},
    ),
    "a group that shows too few": (
        lambda h: h.group_records.update(
            n=GroupRecord(state="complete", callback="succeeded", counts=NO_COUNTS)
        ),
        {"group miscounted"},
    ),
    "a start in a pause": (lambda h: record(h, "b", started_s=4.9), {"started too early"}),
    "too many starts": (lambda h: record(h, "c", started_s=5.2), {"rate exceeded"}),
    "a traceback": (lambda h: h.complaints.append("processor-1: Traceback"), {"misbehaved"}),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_promise_is_found(name: str) -> None:
    history = good()
    spoil, rules = BREAKS[name]
    spoil(history)
    violations = judge(history)
    assert {one.rule for one in violations} == rules
    assert losses(violations) == len(rules & {"lost", "still queued"})


def test_each_rule_is_broken_by_some_history() -> None:
    found = set().union(*(rules for _, rules in BREAKS.values()))
    for name in ("lost", "ended twice", "wrong content", "limit exceeded", "not notified", "recovered late"):
        assert name in found
    rules = {rule.__name__.removeprefix("_").replace("_", " ") for rule in RULES}
    assert found == rules


MEMBERS = {"processor-a": False, "run-b": True}


def test_a_seed_makes_one_schedule() -> None:
    first, again, other = (make_schedule(seed, seconds=60, members=MEMBERS) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    longer = make_schedule(7, seconds=600, members=MEMBERS)
    assert longer[: len(first)] == first
    assert {fault.kind for fault in longer} == set(Kind)


def test_no_target_is_hit_twice_at_once() -> None:
    faults = make_schedule(3, seconds=600, members=MEMBERS)
    for name in (*MEMBERS, STORE):
        own = [fault for fault in faults if fault.target == name]
        assert all(one.at_s + one.for_s < after.at_s for one, after in itertools.pairwise(own))
    assert all(fault.kind is not Kind.KILL_CHILD for fault in faults if fault.target == "processor-a")


def test_an_end_just_before_a_kill_of_the_store_may_come_again() -> None:
    lines = [
        {"job_id": name, "time": f"2026-01-01T00:00:{second}Z"}
        for name, second in zip("abc", (10, 14, 16), strict=True)
    ]
    assert list(kept_ends(lines, [])) == ["a", "b", "c"]
    killed_s = datetime(2026, 1, 1, 0, 0, 15, tzinfo=UTC).timestamp()
    assert list(kept_ends(lines, [killed_s])) == ["a", "c"]
