"""Inspection of files: the MIME type by the first bytes, patterns of types, the size of a picture."""

from __future__ import annotations

from downloader.content.images import image_size
from downloader.content.media_types import MAX_PATTERN_CHARS, MimePatterns
from downloader.content.mime import SNIFF_BYTES, sniff_mime
