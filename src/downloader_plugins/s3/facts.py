"""What S3 keeps beside the bytes: names, values and limits of user metadata.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.charset import BASE64, Charset
from email.header import Header

MAX_METADATA_BYTES = 2048
"""S3's limit: names and values together."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110, 5.6.2: what a header's name is made of."""

_PLAIN = re.compile(r"(?!.*=\?)(?! )(?!.* $)(?!.*  )[\x20-\x7e]*")
"""Values that come back as they were sent: HTTP strips blanks at the ends, signing folds those in between,
and S3 decodes what looks like an encoded word."""

_UTF8 = Charset("utf-8")
_UTF8.header_encoding = BASE64


def user_metadata(given: Mapping[str, str]) -> dict[str, str]:
    """Metadata as S3 takes it, and never an error.

    Names are lower-case on S3, and the first of two that become one stays. Values that are not plain ASCII
    are written in UTF-8 as RFC 2047 says, which is what S3 decodes. Left out are names that no header can
    have, values with control characters or half a surrogate pair, and what no longer fits into 2 KB.
    """
    kept: dict[str, str] = {}
    room = MAX_METADATA_BYTES
    for given_name, given_value in given.items():
        name, value = given_name.lower(), _encoded(given_value)
        if value is None or name in kept or not _NAME.fullmatch(given_name):
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
