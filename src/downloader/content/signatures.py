"""The signatures of types that are common on the web, and corrections of puremagic's results.

A table of our own is used because of what was measured on the samples of `tests/unit/test_mime.py`
(puremagic 1.30, libmagic 5.46): puremagic alone agrees with libmagic on 115 of 261, and takes 0.2 ms or more
for each, because it compares a
thousand signatures one by one. Here one look-up by the first byte leaves a few comparisons. A comment beside
an entry tells what it corrects; entries without a comment are here for speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from downloader.content import formats

Verdict = str | Callable[[bytes], str | None]
"""A type, or a function that reads the first bytes and returns a type or `None`."""

_LEADING: Sequence[tuple[bytes, Verdict]] = (
    # pictures
    (b"\x89PNG\r\n\x1a\n", formats.png),
    (b"\xff\xd8\xff", formats.jpeg),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"RIFF", formats.riff),
    (b"BM", formats.bmp),  # puremagic claims texts that begin with BM
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"II+\0", "image/tiff"),
    (b"MM\0+", "image/tiff"),
    (b"II\xbc\x01", "image/jxr"),
    (b"\0\0\x01\0", formats.icon),  # puremagic claims any data with these four bytes
    (b"\0\0\x02\0", formats.icon),  # puremagic names no type
    (b"8BPS\0", "image/vnd.adobe.photoshop"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", formats.jpeg_2000),  # puremagic: image/jpeg
    (b"\xff\x4f\xff\x51\0", "image/x-jp2-codestream"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "image/jxl"),
    (b"\xff\x0a", "image/jxl"),
    (b"P", formats.netpbm),
    (b"icns", "image/x-icns"),
    (b"\x0a\x05\x01", "image/vnd.zbrush.pcx"),  # puremagic's signature is too short
    (b"\x01\xda\0", "image/x-sgi"),
    (b"\x01\xda\x01", "image/x-sgi"),
    (b"/* XPM */\n", "image/x-xpixmap"),
    # sound and film; ISO media is below
    (b"ID3", formats.id3),
    (b"\xff", formats.mpeg_audio),  # puremagic knows MPEG 1 layer 3 only
    (b"OggS\0", formats.ogg),  # puremagic: application/ogg for sound and film alike
    (b"fLaC", "audio/flac"),
    (b"MThd", "audio/midi"),
    (b"FORM", formats.only_if("audio/x-aiff", 8, b"AIFF", b"AIFC")),
    (b".snd\0", "audio/basic"),
    (b"#!AMR-WB", "audio/AMR-WB"),
    (b"#!AMR", "audio/AMR"),  # puremagic names no type
    (b"\x0bw", "audio/vnd.dolby.dd-raw"),
    (b".RMF\0\0\0", "application/vnd.rn-realmedia"),  # puremagic: a sound
    (b"\x1a\x45\xdf\xa3", formats.matroska),
    (b"FLV\x01", "video/x-flv"),
    (b"FWS", formats.flash),
    (b"CWS", formats.flash),
    (b"ZWS", formats.flash),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-asf"),
    (b"\0\0\x01\xba", "video/mpeg"),  # puremagic: video/dvd
    (b"\0\0\x01\xb3", "video/mpeg"),
    (b"\0\0\x01\xb0", "video/mpeg4-generic"),
    (b"G", formats.transport_stream),  # puremagic does not know it
    # documents
    (b"%PDF-", "application/pdf"),
    (b"\n%PDF-", "application/pdf"),  # puremagic does not know it
    (b"\xef\xbb\xbf%PDF-", "application/pdf"),  # puremagic does not know it either
    (b"{\\rtf", "text/rtf"),
    (b"%!PS", "application/postscript"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", formats.compound_file),  # puremagic names no type
    # archives
    (b"PK\x03\x04", formats.zip_archive),  # puremagic: a Word document, whatever is in it
    (b"PK\x05\x06", "application/zip"),
    (b"PK\x07\x08PK\x03\x04", "application/zip"),
    (b"\x1f\x8b\x08", "application/gzip"),
    *((b"BZh%d" % level, "application/x-bzip2") for level in range(1, 10)),
    (b"\xfd7zXZ\0", "application/x-xz"),
    (b"\x28\xb5\x2f\xfd", "application/zstd"),
    (b"\x04\x22\x4d\x18", "application/x-lz4"),
    (b"LZIP", formats.only_if("application/x-lzip", 4, b"\0", b"\1")),
    (b"]\0\0", formats.lzma),  # puremagic does not know it
    (b"\x1f\x9d", "application/x-compress"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"Rar!\x1a\x07\0", "application/vnd.rar"),
    (b"Rar!\x1a\x07\x01", "application/vnd.rar"),
    (b"MSCF\0\0\0\0", "application/vnd.ms-cab-compressed"),
    (b"!<arch>\ndebian", "application/vnd.debian.binary-package"),  # puremagic names no type
    (b"!<arch>\n", "application/x-archive"),
    (b"\xed\xab\xee\xdb", "application/x-rpm"),
    # fonts
    (b"wOFF", "font/woff"),
    (b"wOF2", "font/woff2"),
    (b"\0\x01\0\0", formats.sfnt),  # puremagic names no type
    (b"true\0", formats.sfnt),
    (b"OTTO", "font/otf"),
    (b"ttcf\0", formats.font_collection),  # puremagic does not know it
    # programs and data
    (b"\0asm", "application/wasm"),  # puremagic names no type for these, or not the one that libmagic does
    (b"\x7fELF", formats.elf),
    (b"MZ", formats.exe),
    *((magic, "application/x-mach-binary") for magic in (b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf")),
    *((magic, "application/x-mach-binary") for magic in (b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe")),
    (b"\xca\xfe\xba\xbe", formats.cafe_babe),
    (b"SQLite format 3\0", "application/vnd.sqlite3"),
    (b"bplist0", "application/x-bplist"),
    (b"d8:announce", "application/x-bittorrent"),
    (b"d13:announce-list", "application/x-bittorrent"),
    (b"d7:comment", "application/x-bittorrent"),
    (b"d4:info", "application/x-bittorrent"),
)
"""Signatures at the start of a file. A longer signature stands before one that is its prefix."""

LEADING_SIGNATURES = frozenset(magic for magic, _ in _LEADING)

_INNER: Sequence[tuple[int, bytes, Verdict]] = (
    (4, b"ftyp", formats.iso_media),  # puremagic knows few brands, and calls 3GP and M4A video/mp4
    (4, b"moov", "video/quicktime"),
    (4, b"mdat", "video/quicktime"),
    (4, b"wide", "video/quicktime"),
    (4, b"G", formats.timed_transport_stream),
    (34, b"LP", formats.embedded_opentype),  # puremagic does not know it
    (32769, b"CD001", "application/x-iso9660-image"),
)
"""Signatures at other offsets."""

_BY_FIRST_BYTE: Mapping[bytes, Sequence[tuple[bytes, Verdict]]] = {
    first: tuple(entry for entry in _LEADING if entry[0][:1] == first)
    for first in {magic[:1] for magic, _ in _LEADING}
}


def by_signature(head: bytes) -> str | None:
    """The type by the signature in the first bytes, or `None`; never raises."""
    for magic, verdict in _BY_FIRST_BYTE.get(head[:1], ()):
        if head.startswith(magic) and (mime := _settle(verdict, head)):
            return mime
    for at, magic, verdict in _INNER:
        if head.startswith(magic, at) and (mime := _settle(verdict, head)):
            return mime
    return formats.tar(head)


def _settle(verdict: Verdict, head: bytes) -> str | None:
    return verdict if isinstance(verdict, str) else verdict(head)
