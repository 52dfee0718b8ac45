"""Leased work: takes leases while there is room, renews them, does the work, settles.

The same loop runs downloads and callbacks; a `Workload` says what differs.
"""

from __future__ import annotations

from downloader.scheduler.ends import End, Ended, settle
from downloader.scheduler.leases import Held, revoke
from downloader.scheduler.loop import Wake, Workload, run_workload
from downloader.scheduler.reaper import delete_file, run_reaper
from downloader.scheduler.stop import Stop
