"""Leased work: takes leases while there is room, renews them, does the work, settles.

The same loop runs downloads and callbacks; a `Workload` says what differs.
"""

from __future__ import annotations

from downloader.scheduler.leases import Held, revoke
from downloader.scheduler.loop import Wake, Workload, run_workload
from downloader.scheduler.reaper import delete_file, run_reaper
from downloader.scheduler.settle import End, Ended, settle_callbacks, settle_downloads
from downloader.scheduler.stop import Stop
