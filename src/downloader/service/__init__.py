"""The composition root: opens resources, nests nurseries, handles signals. It alone imports all parts."""

from __future__ import annotations

from downloader.service.doctor import Finding, diagnose
from downloader.service.start import run_service

__all__ = ["Finding", "diagnose", "run_service"]
