"""Functions that distinguish types with the same signature.

The argument is the first bytes of a file that has one of the signatures in `downloader.content.signatures`,
where each function is named. The result is a type, or `None` if the file only looks like the signature's
types. No function raises, and each reads a bounded number of bytes.
"""

# ruff: noqa: PLR2004 - offsets, masks and field values of file formats; the functions say which

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from struct import unpack_from

_OOXML = "application/vnd.openxmlformats-officedocument"
_ZIP_ENTRY = b"PK\x03\x04"
_ZIP_NAME_AT = 30
_ZIP_ENTRIES = 64
"""Most entries of an archive that are examined; libmagic stops at the sixth."""


def _be16(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 2], "big")


def _be32(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 4], "big")


def _le32(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 4], "little")


def zip_archive(head: bytes) -> str:
    """The type of a ZIP archive by the names of the first entries."""
    names = list(_zip_names(head))
    if names[0].startswith(b"mimetype") and head[26:30] == b"\x08\0\0\0":
        declared = re.match(rb"application/(?:vnd\.oasis\.opendocument\.[a-z-]+|epub\+zip)(?=PK)", head[38:])
        return declared[0].decode() if declared else "application/zip"
    if names[0].startswith((b"[Content_Types].xml", b"_rels/.rels", b"docProps", b"customXml")):
        for name in names:
            for folder, kind in _OFFICE_FOLDERS.items():
                if name.startswith(folder):
                    return kind
    if names[0].startswith((b"AndroidManifest.xml", b"classes.dex")):
        return "application/vnd.android.package-archive"
    extra_at = _ZIP_NAME_AT + int.from_bytes(head[26:28], "little")
    if head.startswith(b"\xfe\xca", extra_at):
        return "application/java-archive"
    return "application/zip"


_OFFICE_FOLDERS = {
    b"word/": f"{_OOXML}.wordprocessingml.document",
    b"xl/": f"{_OOXML}.spreadsheetml.sheet",
    b"ppt/": f"{_OOXML}.presentationml.presentation",
    b"visio/": "application/vnd.ms-visio.drawing.main+xml",
}


def _zip_names(head: bytes) -> Iterator[bytes]:
    at = 0
    for _ in range(_ZIP_ENTRIES):
        yield head[at + _ZIP_NAME_AT : at + _ZIP_NAME_AT + 32]
        at = head.find(_ZIP_ENTRY, at + len(_ZIP_ENTRY))
        if at < 0:
            return


def compound_file(head: bytes) -> str:
    """The kind of an OLE file by names of streams, else by the start of the first stream."""
    for stream, kind in _OLE_STREAMS.items():
        if stream in head:
            return kind
    for start, kind in _OLE_STARTS.items():
        if head.startswith(start, 512):
            return kind
    return "application/x-ole-storage"


_OLE_STREAMS = {
    "WordDocument".encode("utf-16-le"): "application/msword",
    "Workbook".encode("utf-16-le"): "application/vnd.ms-excel",
    "PowerPoint Document".encode("utf-16-le"): "application/vnd.ms-powerpoint",
    "__properties_version1.0".encode("utf-16-le"): "application/vnd.ms-outlook",
}
_OLE_STARTS = {
    b"\xec\xa5\xc1\0": "application/msword",
    b"\x09\x08\x10\0\0\x06\x05\0": "application/vnd.ms-excel",
    b"\xa0\x46\x1d\xf0": "application/vnd.ms-powerpoint",
    b"\0\x6e\x1e\xf0": "application/vnd.ms-powerpoint",
    b"\x0f\0\xe8\x03": "application/vnd.ms-powerpoint",
}


def iso_media(head: bytes) -> str | None:
    brand = head[8:12]
    return _BRANDS.get(brand) or _BRANDS.get(brand[:3])


_BRANDS: Mapping[bytes, str] = {
    **dict.fromkeys(
        (b"iso", b"mp41", b"mp42", b"avc1", b"dash", b"mmp4", b"XAVC", b"NDS", b"NDX"), "video/mp4"
    ),
    **dict.fromkeys((b"F4V", b"F4P", b"M4P", b"isml", b"mobi", b"ARRI"), "video/mp4"),
    b"M4V": "video/x-m4v",
    b"M4A": "audio/x-m4a",
    **dict.fromkeys((b"M4B", b"F4A", b"F4B", b"NDAS", b"MSNV"), "audio/mp4"),
    **dict.fromkeys((b"3gp", b"3ge", b"3gg", b"3gh", b"3gm", b"3gr", b"3gs", b"3gt"), "video/3gpp"),
    **dict.fromkeys((b"3g2", b"KDD"), "video/3gpp2"),
    **dict.fromkeys((b"qt ", b"mqt"), "video/quicktime"),
    **dict.fromkeys((b"heic", b"heix"), "image/heic"),
    **dict.fromkeys((b"hevc", b"hevx"), "image/heic-sequence"),
    **dict.fromkeys((b"mif1", b"heim", b"heis", b"avic"), "image/heif"),
    **dict.fromkeys((b"msf1", b"hevm", b"hevs", b"avcs"), "image/heif-sequence"),
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    b"jp2": "image/jp2",
    b"jpx": "image/jpx",
    b"jpm": "image/jpm",
    b"mj2": "video/mj2",
}
"""Types of ISO media by major brand, four characters or three."""


def jpeg_2000(head: bytes) -> str:
    return {b"jpx ": "image/jpx", b"jpm ": "image/jpm", b"mjp2": "video/mj2"}.get(head[20:24], "image/jp2")


def riff(head: bytes) -> str | None:
    return {
        b"WEBP": "image/webp",
        b"WAVE": "audio/wav",
        b"AVI ": "video/x-msvideo",
        b"RMID": "audio/midi",
        b"ACON": "application/x-navi-animation",
    }.get(head[8:12])


def matroska(head: bytes) -> str | None:
    at = head.find(b"\x42\x82", 4, 4100)  # the element DocType; one byte of length follows
    if at >= 0 and head.startswith(b"webm", at + 3):
        return "video/webm"
    return "video/x-matroska" if at >= 0 and head.startswith(b"matroska", at + 3) else None


def ogg(head: bytes) -> str:
    first = head[28:40]
    if first.startswith((b"\x80theora", b"fishead\0", b"\x01video\0")):
        return "video/ogg"
    if first.startswith((b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")):
        return "audio/ogg"
    return "application/ogg"


def mpeg_audio(head: bytes) -> str | None:
    """A frame header of MPEG audio (ISO 11172-3) or of AAC in ADTS (ISO 13818-7), with rates that exist."""
    if len(head) < 4:
        return None
    kind, rates = head[1], head[2]
    if kind & 0xF6 == 0xF0:
        return "audio/aac" if rates >> 2 & 0xF < 13 else None
    bits, sampling = rates >> 4, rates >> 2 & 3
    return "audio/mpeg" if kind & 0xFE in _MPEG_AUDIO_KINDS and 0 < bits < 15 and sampling < 3 else None


_MPEG_AUDIO_KINDS = frozenset((0xFA, 0xFC, 0xF2, 0xF4, 0xF6, 0xE2))
"""Second byte without the lowest bit, for the versions and layers that libmagic knows."""


def transport_stream(head: bytes) -> str | None:
    """Five packets of MPEG-TS (ISO 13818-1), each with a sync byte."""
    return "video/mp2t" if head[:753:188] == b"GGGGG" else None


def timed_transport_stream(head: bytes) -> str | None:
    """MPEG-TS with four bytes of time before each packet, as on Blu-ray."""
    return "video/mp2t" if head[4:773:192] == b"GGGGG" else None


def id3(head: bytes) -> str | None:
    """Tags of version 2.2 to 2.4, at the start of an MP3; a text may begin with the same letters."""
    return "audio/mpeg" if head[3:4] in (b"\2", b"\3", b"\4") else None


def jpeg(head: bytes) -> str | None:
    """Three bytes are the signature; the name of the next marker must follow."""
    return "image/jpeg" if len(head) > 3 else None


def flash(head: bytes) -> str | None:
    """A plausible version, and the four bytes of the file's length."""
    return "application/x-shockwave-flash" if len(head) > 8 and 0 < head[3] < 0x30 else None


def png(head: bytes) -> str | None:
    return "image/png" if head[12:16] in (b"IHDR", b"CgBI") else None


def bmp(head: bytes) -> str | None:
    return "image/bmp" if _le32(head, 14) in _BMP_HEADERS else None


_BMP_HEADERS = frozenset((12, 40, 48, 52, 56, 64, 108, 124))
"""Lengths of bitmap headers; the two letters alone also match texts."""


def icon(head: bytes) -> str | None:
    """A list of 1 to 255 pictures with a plausible first entry."""
    if len(head) < 22 or not head[4] or head[5] or head[9]:
        return None
    return "image/vnd.microsoft.icon" if head[2] == 1 else "image/x-win-bitmap"


def netpbm(head: bytes) -> str | None:
    """P1 to P6, comments, and a number: the width."""
    match = re.match(rb"P([1-6])\s(?:#[^\n]*+\n|\s++)*+\d++\s", head)
    return _NETPBM_KINDS[int(match[1]) % 3] if match else None


_NETPBM_KINDS = ("image/x-portable-pixmap", "image/x-portable-bitmap", "image/x-portable-greymap")


def sfnt(head: bytes) -> str | None:
    """Up to 46 tables; the first has a name."""
    tag = re.match(rb"[A-Za-z]{2}[A-Za-z/][A-Za-z2 ]", head[12:16])
    return "font/sfnt" if tag and _be16(head, 4) < 47 else None


def font_collection(head: bytes) -> str:
    return "font/otf" if head.startswith(b"OTTO", _be32(head, 12)) else "font/ttf"


def elf(head: bytes) -> str | None:
    if len(head) < 18:
        return None
    kind = unpack_from(">H" if head[5] == 2 else "<H", head, 16)[0]
    return _ELF_KINDS.get(kind, "application/octet-stream")


_ELF_KINDS = {
    1: "application/x-object",
    2: "application/x-executable",
    3: "application/x-sharedlib",
    4: "application/x-coredump",
}


def exe(head: bytes) -> str | None:
    """A DOS header, which has zeros, unlike a text with the same two letters."""
    if len(head) < 64 or b"\0" not in head[:64]:
        return None
    portable = head.startswith(b"PE\0\0", _le32(head, 60))
    return "application/vnd.microsoft.portable-executable" if portable else "application/x-dosexec"


def cafe_babe(head: bytes) -> str | None:
    """A Java class (version above 30), or a Mach-O file for several machines (number up to 30)."""
    if len(head) < 8:
        return None
    return "application/x-java-applet" if _be32(head, 4) > 30 else "application/x-mach-binary"


def lzma(head: bytes) -> str | None:
    """LZMA without a container, which has no signature: usual properties, an unknown or plausible size."""
    return "application/x-lzma" if head[12:14] in (b"\0\0", b"\xff\0") else None


def embedded_opentype(head: bytes) -> str | None:
    """EOT, which has a magic number at 34 and sixteen reserved bytes at 64."""
    return "application/vnd.ms-fontobject" if head[64:80] == bytes(16) else None


def tar(head: bytes) -> str | None:
    """A tar archive of any kind, with the right checksum in the first header (POSIX.1 ustar, and older)."""
    field = re.match(rb" *([0-7]+)[ \0]", head[148:156])
    if not field or len(head) < 512:
        return None
    total = sum(head[:148]) + 8 * 0x20 + sum(head[156:512])
    return "application/x-tar" if total == int(field[1], 8) else None


def only_if(kind: str, at: int, *values: bytes) -> Callable[[bytes], str | None]:
    """A function that returns `kind` if one of the values stands at the offset."""
    return lambda head: kind if any(head.startswith(value, at) for value in values) else None
