"""User metadata of S3 objects: names, values and limits.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.charset import BASE64, Charset
from email.header import Header

from downloader.net import is_token

MAX_METADATA_BYTES = 2048
"""S3's limit of names and values together."""

_PLAIN = re.compile(r"(?!.*=\?)(?! )(?!.* $)(?!.*  )[\x20-\x7e]*")
"""Values that S3 returns as they were sent: HTTP strips spaces at the ends, signing folds repeated ones, and
S3 decodes encoded words (RFC 2047)."""

_UTF8 = Charset("utf-8")
_UTF8.header_encoding = BASE64


def user_metadata(given: Mapping[str, str]) -> dict[str, str]:
    """Convert metadata to the form that S3 accepts; never raises.

    Names become lower-case; of two equal ones the first is kept. Values that are not plain ASCII are encoded
    as RFC 2047 says, in UTF-8, which S3 decodes. Left out are invalid header names, values with control
    characters or a lone surrogate, and what exceeds 2 KB.
    """
    kept: dict[str, str] = {}
    room = MAX_METADATA_BYTES
    for given_name, given_value in given.items():
        name, value = given_name.lower(), _encoded(given_value)
        if value is None or name in kept or not is_token(given_name):
            continue
        size = len(name) + len(value)
        if size <= room:
            kept[name] = value
            room -= size
    return kept


def _encoded(value: str) -> str | None:
    if len(value) > MAX_METADATA_BYTES or any(_is_control(character) for character in value):
        return None
    if _PLAIN.fullmatch(value):
        return value
    try:
        return Header(value, charset=_UTF8).encode(linesep="")
    except UnicodeEncodeError:
        return None


def _is_control(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f"
