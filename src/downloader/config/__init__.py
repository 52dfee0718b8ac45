"""The settings: their models, reading them from file, environment and flags, and printing them."""

from __future__ import annotations

from downloader.config.checks import EMBEDDED
from downloader.config.imported import import_config
from downloader.config.models import (
    RENEWALS_PER_LEASE,
    ApiSettings,
    EgressList,
    HostSettings,
    ProcessorSettings,
    RedisSettings,
    Scope,
    Settings,
    TokenSettings,
    with_default_backend,
)
from downloader.config.read import allow_also, load_settings
from downloader.config.redact import redacted
