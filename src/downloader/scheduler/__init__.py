"""Leased work: take leases while slots are free, renew leases, do the work, settle.

The same loop runs downloads and callbacks; `Work` has the differences.
"""

from __future__ import annotations

from downloader.scheduler.events import Stop, Wake
from downloader.scheduler.leases import Clock, Held, boottime, revoke
from downloader.scheduler.loop import run_work
from downloader.scheduler.reaper import Delete, delete_file, run_reaper
from downloader.scheduler.work import LeaseEnd, StillOurs, Work
