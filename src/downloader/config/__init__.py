"""The settings: models, reading from file, environment and flags, and printing."""

from __future__ import annotations

from downloader.config.api import ApiSettings, Scope, TokenSettings
from downloader.config.checks import EMBEDDED
from downloader.config.imported import import_config, read_old_config
from downloader.config.models import (
    RENEWALS_PER_LEASE,
    HostSettings,
    ProcessorSettings,
    RedisSettings,
    Settings,
    with_default_backend,
)
from downloader.config.read import allow_also, load_settings
from downloader.config.redact import redacted
