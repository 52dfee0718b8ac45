"""Leased work: takes leases as long as there is room, keeps them, does the work, settles.

The same loop runs downloads and callbacks; a `Workload` says what differs.
"""

from __future__ import annotations

from downloader.scheduler.loop import Workload, run_workload
from downloader.scheduler.reaper import run_reaper
from downloader.scheduler.settle import End, callback_settler, download_settler
from downloader.scheduler.stop import Stop
from downloader.scheduler.wake import Wake

__all__ = [
    "End",
    "Stop",
    "Wake",
    "Workload",
    "callback_settler",
    "download_settler",
    "run_reaper",
    "run_workload",
]
