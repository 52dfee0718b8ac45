"""The routes, a module for each subject."""

from __future__ import annotations

from collections.abc import Sequence

from downloader.api.routes import (
    aggregations,
    downloads,
    events,
    failures,
    files,
    groups,
    jobs,
    monitoring,
    page,
)
from downloader.api.routing import Route

_MODULES = (downloads, jobs, failures, aggregations, groups, monitoring, files, events, page)

ROUTES: Sequence[Route] = [
    value for module in _MODULES for value in vars(module).values() if isinstance(value, Route)
]
"""All routes, in the order of the documentation."""
