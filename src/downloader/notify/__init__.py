"""Callbacks: what a notifier plugin is, and how the service opens, asks and judges them."""

from __future__ import annotations

from downloader.model import describe_status
from downloader.net import EgressRefused, NameNotResolved, TlsFailed
from downloader.notify.delivery import deliver
from downloader.notify.egress import network_backend, use_egress
from downloader.notify.health import Gate, HandBack
from downloader.notify.opening import open_notifiers
from downloader.notify.protocol import (
    Checkable,
    Delivered,
    Notifier,
    NotifierFactory,
    Payload,
    Rejected,
    Result,
    RetryLater,
)
from downloader.plugins import parse_section

__all__ = [
    "Checkable",
    "Delivered",
    "EgressRefused",
    "Gate",
    "HandBack",
    "NameNotResolved",
    "Notifier",
    "NotifierFactory",
    "Payload",
    "Rejected",
    "Result",
    "RetryLater",
    "TlsFailed",
    "deliver",
    "describe_status",
    "network_backend",
    "open_notifiers",
    "parse_section",
    "use_egress",
]
