"""What a body's first bytes tell: its type, whether the job accepts it, the size of a picture."""

from downloader.fetch._images import image_size
from downloader.fetch._mime import SNIFF_BYTES, sniff_mime
from downloader.media_types import MimePatterns

__all__ = ["SNIFF_BYTES", "MimePatterns", "image_size", "sniff_mime"]
