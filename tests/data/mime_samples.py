"""Files of the types that the web serves: made here, drawn by Pillow, or recorded heads of ffmpeg's."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import random
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from contextlib import closing
from functools import cache
from pathlib import Path

from PIL import Image

HEADS = Path(__file__).with_name("media_heads.json")
"""First 400 bytes of sound and film as ffmpeg 7.1 writes them (of MPEG-TS 800), base64 by name."""


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            stored = zipfile.ZIP_STORED if name == "mimetype" else method
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=stored)
    return out.getvalue()


def office(*parts: str) -> bytes:
    noise = random.Random(1).randbytes(400)  # so that entries have the size that they have in life
    return zipped(("[Content_Types].xml", noise), ("_rels/.rels", noise), *((part, noise) for part in parts))


def open_document(kind: str) -> bytes:
    return zipped(("mimetype", f"application/{kind}".encode()), ("content.xml", b"<a/>"))


def jar() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        folder = zipfile.ZipInfo("META-INF/")
        folder.extra = b"\xfe\xca\0\0"
        archive.writestr(folder, b"")
        archive.writestr("META-INF/MANIFEST.MF", b"Manifest-Version: 1.0\n")
    return out.getvalue()


def tarred(form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        member = tarfile.TarInfo("folder/a.txt")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
    return out.getvalue()


def compound(stream: str, *, start: bytes = b"") -> bytes:
    """A compound file (OLE): header, FAT, directory with one stream of 4,096 bytes."""
    free, end, fat = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD
    header = struct.pack(
        "<8s16x5H6x9I",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        *(0x3E, 3, 0xFFFE, 9, 6),
        *(0, 1, 9, 0, 4096, end, 0, end, 0),
    )
    header += struct.pack("<109I", 8, *[free] * 108)
    sectors = [*range(1, 8), end, fat, end]

    def entry(name: str, kind: int, child: int, first: int, size: int) -> bytes:
        text = name.encode("utf-16-le")
        body = struct.pack("<64sHBB3I36xIQ", text, len(text) + 2, kind, 1, free, free, child, first, size)
        return body.ljust(128, b"\0")

    directory = (
        entry("Root Entry", 5, 1, end, 0) + entry(stream, 2, free, 0, 4096) + entry("", 0, free, 0, 0) * 2
    )
    return header + start.ljust(4096, b"\x55") + struct.pack("<128I", *sectors, *[free] * 118) + directory


def iso_media(brand: bytes) -> bytes:
    return struct.pack(">I4s4sI4s4s", 24, b"ftyp", brand, 0, brand, b"mif1") + b"\0\0\0\x08free" + bytes(64)


def font(version: bytes) -> bytes:
    tables = b"".join(struct.pack(">4sIII", tag, 1, 200, 10) for tag in (b"OS/2", b"cmap", b"glyf", b"head"))
    return version + struct.pack(">4H", 4, 64, 2, 0) + tables + bytes(300)


@cache
def pictures() -> dict[str, bytes]:
    picture = Image.linear_gradient("L").resize((70, 45)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6

    def save(form: str, image: Image.Image = picture, **options: object) -> bytes:
        out = io.BytesIO()
        image.save(out, form, **options)
        return out.getvalue()

    second = picture.rotate(180)
    return {
        "jpeg baseline": save("JPEG"),
        "jpeg progressive": save("JPEG", progressive=True),
        "jpeg exif": save("JPEG", exif=exif),
        "jpeg cmyk": save("JPEG", picture.convert("CMYK")),
        "jpeg mpo": save("MPO", save_all=True, append_images=[second]),
        "png": save("PNG"),
        "png palette": save("PNG", picture.convert("P")),
        "apng": save("PNG", save_all=True, append_images=[second]),
        "gif87": save("GIF").replace(b"GIF89a", b"GIF87a"),
        "gif89": save("GIF", save_all=True, append_images=[second]).replace(b"GIF87a", b"GIF89a"),
        "webp lossy": save("WEBP"),
        "webp lossless": save("WEBP", lossless=True),
        "webp vp8x": save("WEBP", exif=exif),
        "webp animated": save("WEBP", save_all=True, append_images=[second]),
        "avif": save("AVIF"),
        "bmp": save("BMP"),
        "bmp 1 bit": save("BMP", picture.convert("1")),
        "tiff": save("TIFF"),
        "tiff big-endian": b"MM\0*\0\0\0\x08" + bytes(200),
        "ico": save("ICO", sizes=[(16, 16), (32, 32)]),
        "ico bmp": save("ICO", sizes=[(16, 16)], bitmap_format="bmp"),
        "jp2": save("JPEG2000"),
        "pdf": save("PDF"),
        "eps": save("EPS"),
        "pcx": save("PCX"),
        "ppm": save("PPM"),
        "pgm": save("PPM", picture.convert("L")),
        "icns": save("ICNS", picture.resize((64, 64))),
        "dds": save("DDS"),
        "sgi": save("SGI"),
        "tga": save("TGA"),
    }


def handmade() -> dict[str, bytes]:
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("create table a (b)")
        sqlite = database.serialize()
    return {
        "heic": iso_media(b"heic"),
        "heif": iso_media(b"mif1"),
        "avif brand": iso_media(b"avif"),
        "mp4 iso5": iso_media(b"iso5"),
        "m4v": iso_media(b"M4V "),
        "m4b": iso_media(b"M4B "),
        "f4v": iso_media(b"F4V "),
        "mov without ftyp": struct.pack(">I4sI4s", 200, b"moov", 108, b"mvhd") + bytes(200),
        "mov wide": struct.pack(">I4sI4s", 8, b"wide", 500, b"mdat") + bytes(200),
        "psd": b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 45, 70, 8, 3) + bytes(100),
        "jxl container": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40),
        "jpeg xr": b"II\xbc\x01 \0\0\0" + bytes(100),
        "cur": b"\0\0\x02\0\x01\0"
        + bytes([32, 32, 0, 0, 1, 0, 1, 0])
        + struct.pack("<II", 40, 22)
        + bytes(60),
        "midi": b"MThd\0\0\0\x06\0\x01\0\x02\0\x60MTrk\0\0\0\x04\0\xff\x2f\0",
        "amr": b"#!AMR\n" + bytes(40),
        "real media": b".RMF\0\0\0\x12\0\x01" + bytes(40),
        "ape": b"MAC \x96\x0f\0\0" + bytes(60),
        "rtf": rb"{\rtf1\ansi Hello}",
        "postscript": b"%!PS-Adobe-3.0\n%%Title: x\n",
        "pdf after a line": b"\n%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
        "doc": compound("WordDocument", start=b"\xec\xa5\xc1\0"),
        "xls": compound("Workbook", start=b"\x09\x08\x10\0\0\x06\x05\0"),
        "ppt": compound("PowerPoint Document", start=b"\xa0\x46\x1d\xf0"),
        "msg": compound("__properties_version1.0"),
        "docx": office("word/document.xml"),
        "docx late": office("docProps/app.xml", "docProps/core.xml", "word/document.xml"),
        "xlsx": office("xl/workbook.xml"),
        "pptx": office("ppt/presentation.xml"),
        "odt": open_document("vnd.oasis.opendocument.text"),
        "ods": open_document("vnd.oasis.opendocument.spreadsheet"),
        "odp": open_document("vnd.oasis.opendocument.presentation"),
        "odg": open_document("vnd.oasis.opendocument.graphics"),
        "epub": open_document("epub+zip"),
        "zip with a mimetype": open_document("x-of-nobody"),
        "zip": zipped(("a.txt", b"hello")),
        "zip stored": zipped(("a.txt", b"hello"), method=zipfile.ZIP_STORED),
        "zip empty": zipped(),
        "jar": zipped(("META-INF/MANIFEST.MF", b"Manifest-Version: 1.0\n"), ("a/B.class", b"")),
        "jar by the jar tool": jar(),
        "apk": zipped(("AndroidManifest.xml", b"x"), ("classes.dex", b"y")),
        "gzip": gzip.compress(b"hello"),
        "bzip2": bz2.compress(b"hello"),
        "xz": lzma.compress(b"hello"),
        "lzma": lzma.compress(b"hello", format=lzma.FORMAT_ALONE),
        "zlib": zlib.compress(b"hello" * 9),
        "zstd": b"\x28\xb5\x2f\xfd\x24\x05\x29\0\0hello\x8c\x4e\x8d\x2c",
        "lz4": b"\x04\x22\x4d\x18\x64\x40\xa7" + bytes(20),
        "7z": b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(40),
        "rar4": b"Rar!\x1a\x07\0\xcf\x90\x73\0\0\x0d\0\0\0" + bytes(20),
        "rar5": b"Rar!\x1a\x07\x01\0\x33\x92\xb5\xe5\x0a\x01\x05\x06" + bytes(20),
        "tar ustar": tarred(tarfile.USTAR_FORMAT),
        "tar gnu": tarred(tarfile.GNU_FORMAT),
        "tar pax": tarred(tarfile.PAX_FORMAT),
        "cab": b"MSCF\0\0\0\0" + struct.pack("<II", 100, 0) + bytes(60),
        "deb": b"!<arch>\ndebian-binary   1410122664  0     0     100644  4         `\n2.0\n",
        "rpm": b"\xed\xab\xee\xdb\x03\0\0\0\0\x01"
        + b"name-1.0".ljust(66, b"\0")
        + b"\0\x01\0\x05"
        + bytes(40),
        "dmg-like": bytes(2048),
        "woff": b"wOFF\0\x01\0\0" + bytes(60),
        "woff2": b"wOF2\0\x01\0\0" + bytes(60),
        "ttf": font(b"\0\x01\0\0"),
        "otf": font(b"OTTO"),
        "ttc": b"ttcf\0\x01\0\0\0\0\0\x01\0\0\0\x10" + font(b"\0\x01\0\0"),
        "eot": struct.pack("<IIII", 300, 200, 0x20001, 4)
        + bytes(18)
        + b"LP"
        + bytes(46)
        + b"\x08\0A\0r\0i\0" * 5,
        "wasm": b"\0asm\x01\0\0\0" + bytes(20),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 62, 1) + bytes(40),
        "elf shared": b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 3, 62, 1) + bytes(40),
        "exe": b"MZ\x90\0\x03\0\0\0" + bytes(52) + b"\x80\0\0\0" + bytes(64) + b"PE\0\0\x64\x86" + bytes(260),
        "mach-o": struct.pack("<7I", 0xFEEDFACF, 0x01000007, 3, 2, 16, 1368, 0x85) + bytes(40),
        "java class": b"\xca\xfe\xba\xbe\0\0\0\x3d\0\x10" + bytes(40),
        "dex": b"dex\n035\0" + bytes(100),
        "sqlite": sqlite,
        "bplist": b"bplist00\xd1\x01\x02",
        "torrent": b"d8:announce10:http://a/be",
        "random": random.Random(7).randbytes(4096),
        "zeros": bytes(5000),
        "one zero": b"\0",
        "empty": b"",
    }


def texts() -> dict[str, bytes]:
    prolog = '<?xml version="1.0" encoding="UTF-8"?>\n'
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="1"><style>a{}</style><title>x</title></svg>'
    page = "<!DOCTYPE html>\n<html lang=en><head><title>x</title></head><body>hi</body></html>"
    strict = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/x.dtd">\n'
    xhtml = '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title></head></html>'
    rows = "name,size,date\n" + "".join(f"file {n},{n * 7},2024-01-{n:02}\n" for n in range(1, 20))
    prose = "It was a bright cold day in April, and the clocks were striking thirteen.\n"
    samples = {
        "svg": svg,
        "svg with prolog": prolog + svg,
        "svg with doctype": f"{prolog}<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' 'svg11.dtd'>\n{svg}",
        "svg after a comment": "<!-- made by hand -->\n" + svg,
        "svg with a bom": "\ufeff" + svg,
        "html": page,
        "html lower case": page.lower(),
        "html after blanks": "\r\n\r\n   " + page,
        "html after a comment": "<!-- hello -->\n<html><body>x</body></html>",
        "html after a comment and doctype": "<!-- hello -->\n" + page,
        "html with a bom": "\ufeff" + page,
        "html with svg in it": page.replace("hi", svg),
        "html without head": '<body bgcolor=white>\n<p>x</p><a href="x">y</a></body>',
        "html fragment": "<div><p>Hello</p></div>",
        "html in capitals": "<HTML><HEAD><TITLE>Old</TITLE></HEAD></HTML>",
        "html far down": f"<!-- {'x' * 5000} -->\n{page}",
        "xhtml": prolog + strict + xhtml,
        "xhtml without doctype": prolog + xhtml,
        "xhtml without prolog": strict + xhtml,
        "xml": prolog + "<a><b/></a>",
        "xml single quotes": "<?xml version='1.0'?><a/>",
        "xml with a bom": "\ufeff" + prolog + "<a/>",
        "xml after blanks": "\n " + prolog + "<a/>",
        "xml without prolog": "<root><a/></root>",
        "rss": prolog + "<rss version='2.0'><channel><title>News</title><item/></channel></rss>",
        "rss without prolog": "<rss version='2.0'><channel><title>News</title></channel></rss>",
        "atom": prolog + '<feed xmlns="http://www.w3.org/2005/Atom"><title>Ex</title></feed>',
        "sitemap": prolog + '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"><url/></urlset>',
        "kml": prolog + '<kml xmlns="http://www.opengis.net/kml/2.2"></kml>',
        "json object": '{"a": [1, -2.5e3, true, {"b": null}], "c": "\\u00e9\\n"}',
        "json array": "[1,2,3]\n",
        "json indented": json.dumps({"list": [{"id": n, "name": f"n{n}"} for n in range(30)]}, indent=2),
        "json utf-8": '{"name": "Grüße", "x": "日本"}',
        "json empty object": "{}",
        "json empty array": " [ ] ",
        "json with a bom": '\ufeff{"a":1}',
        "json with junk behind": '{"a":1} x',
        "json cut short": '{"a":[1,2',
        "json string": '"abc"',
        "json number": "12",
        "json comma too many": "[1,2,]",
        "json single quotes": "{'a':1}",
        "json no comma": '{"a":1 "b":2}',
        "json nested to the limit": "[" * 251 + "]" * 251,
        "json nested too far": "[" * 252 + "]" * 252,
        "json values nested too far": "[" * 251 + "1" + "]" * 251,
        "json bad escape": r'["\x41"]',
        "json bad number": "[1.2.3]",
        "json bad constant": "[nul]",
        "json raw newline in a string": '["a\nb"]',
        "json lines": '{"a":1}\n{"a":2}\n{"a":3}\n',
        "json lines of arrays": "[1]\n[2]\n",
        "json lines mixed": '{"a":1}\n[1]\n',
        "json lines, junk third": '{"a":1}\n{"a":2}\njunk',
        "csv": rows,
        "csv quoted": 'a,b,c\n"x, y",2,3\n"z\n""q""",5,6\n',
        "csv two columns": "a,b\n1,2\n3,4\n",
        "csv one line": "a,b,c\n",
        "csv ragged": "a,b,c\n1,2\n",
        "csv ragged after ten lines": "1,2,3\n" * 10 + "1\n",
        "csv windows": rows.replace("\n", "\r\n"),
        "tsv": rows.replace(",", "\t"),
        "css": "body { color: red; margin: 0 }\n.a, .b { padding: 1px }\n",
        "css with charset": '@charset "utf-8";\n@import url("x.css");\nh1{color:#fff}\n',
        "js strict": "'use strict';\nfunction f(a){return a+1}\n",
        "js function": '(function(){var a=1;if(typeof a==="undefined"){}})();\n',
        "js module": 'import x from "./y.js";\nexport default x;\n',
        "js exports": "const a = require('a');\nmodule.exports = a;\n",
        "js bundle": '!function(e,t){"object"==typeof exports?module.exports=t():e.x=t()}(this,0);',
        "js plain": "var a=1;\nfunction foo(){ return a; }\nconsole.log(foo());\n",
        "js node": "#!/usr/bin/env node\nconsole.log(1)\n",
        "markdown": "# Title\n\nSome *text* with [link](http://a).\n\n- a\n- b\n",
        "markdown with html": '# Title\n\n<a href="x">y</a>\n',
        "ascii": prose,
        "long ascii": prose * 2000,
        "utf-8": prose + "Grüße, naïve 日本\n",
        "utf-8 with a bom": "\ufeff" + prose,
        "yaml": "---\na: 1\nb:\n  - c\n",
        "ini": "[section]\nkey=value\n",
        "sql": "CREATE TABLE a (b int);\nINSERT INTO a VALUES (1);\n",
        "robots": "User-agent: *\nDisallow: /\n",
        "log": "2024-01-01 00:00:00 INFO start\n2024-01-01 00:00:01 INFO stop\n",
        "shell": "#!/bin/sh\necho hi\n",
        "bash": "#!/usr/bin/env bash\necho hi\n",
        "python": "#!/usr/bin/env python3\nprint(1)\n",
        "perl": "#!/usr/bin/perl\nprint 1;\n",
        "php": "<?php\necho 1;\n",
        "diff": "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n",
        "git diff": "diff --git a/x b/x\nindex 1..2 100644\n--- a/x\n+++ b/x\n",
        "mail": "Received: from a by b; Mon, 1 Jan 2024\nFrom: a@b.c\nTo: x\n\nbody\n",
        "mhtml": "From: <Saved by Blink>\nSubject: x\nMIME-Version: 1.0\n\n",
        "vcard": "BEGIN:VCARD\r\nVERSION:3.0\r\nFN:A\r\nEND:VCARD\r\n",
        "calendar": "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nEND:VCALENDAR\r\n",
        "subtitles": "WEBVTT\n\n00:00.000 --> 00:01.000\nHi\n",
        "subrip": "1\n00:00:00,000 --> 00:00:01,000\nHi\n\n",
        "playlist": "#EXTM3U\n#EXTINF:1,a\na.mp3\n",
        "pem": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "two letters": "ab",
        "one letter": "a",
        "one brace": "{",
        "newlines": "\n\n",
        "control characters": "a\x01b\x02c",
        "escape sequences": "\x1b[1mbold\x1b[0m\n",
    }
    encoded = {
        "utf-16-le": ("\ufeff" + prose).encode("utf-16-le"),
        "utf-16-be": ("\ufeff" + prose).encode("utf-16-be"),
        "utf-16 without a bom": prose.encode("utf-16-le"),
        "utf-32": ("\ufeff" + prose).encode("utf-32-le"),
        "html utf-16": ("\ufeff" + page).encode("utf-16-le"),
        "xml utf-16": ("\ufeff" + prolog.replace("UTF-8", "UTF-16") + "<a/>").encode("utf-16-be"),
        "latin-1": "café au lait, s'il vous plaît\n".encode("latin-1"),
        "html latin-1": page.replace("hi", "café").encode("latin-1"),
        "windows-1252": "“quoted” text…\n".encode("cp1252"),
        "shift-jis": "こんにちは世界、今日は".encode("shift_jis"),
        "gbk": "你好世界".encode("gbk"),
        "euc-jp": "こんにちは世界".encode("euc_jp"),
    }
    return {name: text.encode() for name, text in samples.items()} | encoded


def recorded() -> dict[str, bytes]:
    return {name: base64.b64decode(text) for name, text in json.loads(HEADS.read_text()).items()}


@cache
def samples() -> dict[str, bytes]:
    """Contents by name; the name says the type."""
    return pictures() | handmade() | texts() | recorded()
