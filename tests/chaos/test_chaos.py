"""A short run of `nox -s chaos`: a real fleet under load is broken at random, by a fixed seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.driver import run_chaos
from servers.fleet import say
from servers.fleet_fixtures import folder

__all__ = ["folder"]

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(300)]

SEED = 915
"""Chosen among the first thousand because it has each kind of fault within `SECONDS`."""
SECONDS = 20.0
"""How long faults are caused. Starting, recovering and stopping the fleet take further time."""


@pytest.mark.row("F1", "F5", "F7", "F8", "F9", "F31", "F38")
async def test_nothing_is_lost_whatever_breaks(folder: Path) -> None:
    report = await run_chaos(folder, seed=SEED, seconds=SECONDS, say=say)
    for line in report.lines():
        say(line)
    assert report.violations == []
    assert len(report.history.jobs) > 50
    assert report.done.total() > 8
