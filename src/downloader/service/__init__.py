"""The composition root: opens resources, nests nurseries, handles signals. The only part that imports all.

`downloader.service.run` is the service, whole or some roles of it; `downloader.service.fetch` is the engine
of `downloader fetch`. Each is imported by who needs it, because the API alone takes a second to import.
"""

from __future__ import annotations

from downloader.service.doctor import Finding, State, diagnose
from downloader.service.fetch import fetch_files
from downloader.service.run import run_service

__all__ = ["Finding", "State", "diagnose", "fetch_files", "run_service"]
