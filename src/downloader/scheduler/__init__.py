"""Leased work: takes leases as long as there is room, keeps them, does the work, settles.

The same loop runs downloads and callbacks; a `Workload` says what differs.
"""

from downloader.scheduler._loop import Workload, run_workload
from downloader.scheduler._reap import run_reaper
from downloader.scheduler._settle import callback_settler, download_settler
from downloader.scheduler._stop import Stop
from downloader.scheduler._wake import Wake

__all__ = [
    "Stop",
    "Wake",
    "Workload",
    "callback_settler",
    "download_settler",
    "run_reaper",
    "run_workload",
]
