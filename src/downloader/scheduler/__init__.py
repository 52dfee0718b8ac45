"""Leased work: takes leases while there is room, renews them, does the work, settles.

The same loop runs downloads and callbacks; `Work` says what differs.
"""

from __future__ import annotations

from downloader.scheduler.events import Stop, Wake
from downloader.scheduler.leases import Held, revoke
from downloader.scheduler.loop import run_work
from downloader.scheduler.reaper import delete_file, run_reaper
from downloader.scheduler.work import LeaseEnd, StillOurs, Work
