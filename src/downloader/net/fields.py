"""Header fields that more than one part of the service reads or writes."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from downloader.model import FIELD_NAME

FORBIDDEN_FIELDS = frozenset(
    {
        *("host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer"),
        *("upgrade", "expect", "range"),
    }
)
"""Request fields that frame or route the message, which the transport writes, and the one that makes a whole
file impossible (`Range`); lower case. So is every name that begins with `proxy-`."""

_TOKEN = re.compile(FIELD_NAME)

_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\U0010ffff]*")
"""RFC 9110, 5.5: no control characters; characters that are not ASCII are sent as UTF-8."""

MAX_RETRY_AFTER_S = 86400.0
"""Longest delay that a peer may ask for: a day."""

_DELTA_DIGITS = 12
"""Longer numbers of seconds are not parsed, because that may take long."""


def is_token(name: str) -> bool:
    """Whether a field may have this name."""
    return _TOKEN.fullmatch(name) is not None


def is_field_value(value: str) -> bool:
    """Whether a field may have this value."""
    return _FIELD_VALUE.fullmatch(value) is not None


def is_forbidden(name: str) -> bool:
    """Whether a request's header of this name may not be set from outside."""
    lower = name.lower()
    return lower in FORBIDDEN_FIELDS or lower.startswith("proxy-")


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Seconds that a `Retry-After` field asks for: delta-seconds or an HTTP-date (RFC 9110, 10.2.3).

    Never negative, at most a day; `None` for anything else.
    """
    text = value.strip()
    if text.isascii() and text.isdigit():
        if len(text) > _DELTA_DIGITS:
            return MAX_RETRY_AFTER_S
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for an offset of many digits
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # "-0000", which RFC 9110 has no other meaning for
    return min(max(math.ceil((moment - now).total_seconds()), 0.0), MAX_RETRY_AFTER_S)
