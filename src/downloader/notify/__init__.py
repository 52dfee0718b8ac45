"""Callbacks: the interface of notifier plugins, and the code that opens and calls notifiers."""

from __future__ import annotations

from downloader.globs import text_globs
from downloader.groupcommit import CommitAbandoned, GroupCommit
from downloader.model import describe_status, is_reserved
from downloader.net import EgressRefused, TlsFailed
from downloader.notify.bulkhead import Bulkhead, Deferred
from downloader.notify.notifier import (
    Checkable,
    Delivered,
    Host,
    Notifier,
    Payload,
    Rejected,
    Result,
    RetryLater,
)
from downloader.notify.send import send_callback
from downloader.notify.supervisor import open_notifiers
from downloader.plugins import parse_section
from downloader.tasks import background

__all__ = [
    "Bulkhead",
    "Checkable",
    "CommitAbandoned",
    "Deferred",
    "Delivered",
    "EgressRefused",
    "GroupCommit",
    "Host",
    "Notifier",
    "Payload",
    "Rejected",
    "Result",
    "RetryLater",
    "TlsFailed",
    "background",
    "describe_status",
    "is_reserved",
    "open_notifiers",
    "parse_section",
    "send_callback",
    "text_globs",
]
