"""The engine of `downloader doctor`: tries each part of a configuration and reports what it found."""

from __future__ import annotations

from downloader.service.doctor.diagnose import Finding, FindingState, diagnose

__all__ = ["Finding", "FindingState", "diagnose"]
