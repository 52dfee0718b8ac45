"""What of a URL people may see in logs, pages and printed settings."""

from __future__ import annotations

import re

HIDDEN = "***"
"""Stands where a secret stood."""

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:)?//(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?")
_VALUE = re.compile(r"=[^&;]*")


def redact_url(url: str, *, userinfo: str = "") -> str:
    """The URL without user and password, its query's values and fragment replaced by `***`.

    A presigned URL's query is as good as a password; the parameters' names stay, to be recognised by.
    Works on the text, since what is logged need not be a valid URL.

    Args:
        url: any text; one without `//` is answered with only its query redacted.
        userinfo: put in place of a user and password, where there are some.
    """
    match = _URL.fullmatch(url)
    scheme, authority, rest = match.group("scheme", "authority", "rest") if match else ("", "", url)
    if "@" in authority:
        host = authority.rpartition("@")[2]
        authority = f"{userinfo}@{host}" if userinfo else host
    elif not _HOST_AND_PORT.fullmatch(authority):  # a password with "/", "?" or "#" in it, left unquoted
        authority, rest = HIDDEN, ""
    rest, hash_sign, fragment = rest.partition("#")
    path, question, query = rest.partition("?")
    if query:
        query = _VALUE.sub(f"={HIDDEN}", query) if "=" in query else HIDDEN
    start = f"{scheme or ''}//" if match else ""
    return f"{start}{authority}{path}{question}{query}{hash_sign}{HIDDEN if fragment else ''}"
