"""Names of media types: which of them mean the same type."""

from __future__ import annotations

ALIAS_GROUPS: tuple[tuple[str, ...], ...] = (
    ("application/bzip2", "application/x-bzip2", "application/x-bzip"),
    ("application/epub+zip", "application/x-epub+zip"),
    ("application/gzip", "application/x-gzip", "application/gzip-compressed"),
    ("application/java-vm", "application/x-java-vm", "application/x-java-applet"),
    (
        "application/javascript",
        "text/javascript",
        "application/x-javascript",
        "application/ecmascript",
        "text/ecmascript",
    ),
    ("application/json", "text/json", "application/x-json"),
    ("application/lz4", "application/x-lz4"),
    ("application/msword", "application/vnd.ms-word", "application/x-msword"),
    ("application/octet-stream", "binary/octet-stream"),
    ("application/pdf", "application/x-pdf"),
    ("application/postscript", "application/ps"),
    ("application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl", "audio/x-mpegurl"),
    ("application/vnd.debian.binary-package", "application/x-debian-package", "application/x-deb"),
    ("application/vnd.ms-cab-compressed", "application/x-cab"),
    ("application/vnd.ms-excel", "application/msexcel", "application/x-msexcel"),
    ("application/vnd.ms-powerpoint", "application/mspowerpoint", "application/x-mspowerpoint"),
    (
        "application/vnd.microsoft.portable-executable",
        "application/x-dosexec",
        "application/x-msdownload",
        "application/x-ms-dos-executable",
    ),
    ("application/vnd.rar", "application/x-rar", "application/x-rar-compressed"),
    ("application/vnd.sqlite3", "application/x-sqlite3"),
    ("application/x-empty", "inode/x-empty"),
    ("application/x-7z-compressed", "application/7z"),
    ("application/x-executable", "application/x-pie-executable"),
    ("application/x-sharedlib", "application/x-pie-executable"),
    ("application/x-iso9660-image", "application/vnd.efi.iso"),
    ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"),
    ("application/x-ole-storage", "application/cdfv2"),
    ("application/x-rpm", "application/x-redhat-package-manager"),
    ("application/x-shockwave-flash", "application/vnd.adobe.flash.movie"),
    ("application/x-tar", "application/tar"),
    ("application/x-xz", "application/xz"),
    ("application/zip", "application/x-zip", "application/x-zip-compressed"),
    ("application/zstd", "application/x-zstd"),
    ("audio/aac", "audio/x-aac", "audio/aacp", "audio/x-hx-aac-adts"),
    ("audio/aiff", "audio/x-aiff"),
    ("audio/amr", "audio/x-amr"),
    ("audio/basic", "audio/x-basic"),
    ("audio/flac", "audio/x-flac"),
    ("audio/midi", "audio/x-midi", "audio/mid"),
    ("audio/mp4", "audio/x-m4a", "audio/m4a"),
    ("audio/mpeg", "audio/mp3", "audio/x-mp3", "audio/x-mpeg", "audio/mpeg3"),
    ("audio/ogg", "application/ogg", "audio/x-ogg"),
    ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"),
    ("font/otf", "application/vnd.ms-opentype", "application/x-font-otf"),
    ("font/sfnt", "font/ttf", "application/x-font-ttf", "application/font-sfnt"),
    ("font/woff", "application/font-woff", "application/x-font-woff"),
    ("font/woff2", "application/font-woff2"),
    ("image/bmp", "image/x-ms-bmp", "image/x-bmp"),
    ("image/jpeg", "image/jpg", "image/pjpeg"),
    ("image/jp2", "image/jpeg2000", "image/x-jp2"),
    ("image/png", "image/x-png"),
    ("image/svg+xml", "image/svg"),
    ("image/tiff", "image/x-tiff"),
    ("image/vnd.adobe.photoshop", "image/x-photoshop", "application/x-photoshop", "image/psd"),
    ("image/vnd.zbrush.pcx", "image/x-pcx"),
    ("image/vnd.microsoft.icon", "image/x-icon", "image/ico"),
    ("image/x-portable-greymap", "image/x-portable-graymap"),
    ("image/x-sgi", "image/sgi", "image/x-rgb"),
    ("text/calendar", "text/x-vcalendar"),
    ("text/csv", "application/csv", "text/x-csv"),
    ("text/rtf", "application/rtf"),
    ("text/markdown", "text/x-markdown"),
    ("text/vcard", "text/x-vcard"),
    ("text/xml", "application/xml"),
    ("video/mp2p", "video/mpeg"),
    ("video/mp2t", "video/x-mpegts"),
    ("video/mp4", "video/x-m4v"),
    ("video/ogg", "application/ogg", "video/x-ogg"),
    ("video/quicktime", "video/x-quicktime"),
    ("video/vnd.avi", "video/x-msvideo", "video/avi", "video/msvideo"),
    ("video/x-flv", "video/flv"),
    ("video/x-matroska", "video/matroska"),
    ("video/x-ms-asf", "video/x-ms-wmv", "application/vnd.ms-asf"),
)
"""Names in one group mean the same type; the first is the registered or usual one. A name may be in
several groups (`application/ogg` holds sound or film); such groups are not merged."""

_SAME = {
    name: frozenset(other for group in ALIAS_GROUPS if name in group for other in group)
    for name in {name for group in ALIAS_GROUPS for name in group}
}


def same_types(mime: str) -> frozenset[str]:
    """Every name of a type, in lower case, the given one among them."""
    name = mime.lower()
    return _SAME.get(name, frozenset((name,)))
