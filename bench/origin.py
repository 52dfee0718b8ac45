"""The origin: serves each GET a file. `python -m bench.origin [BYTES [CERTIFICATE [close [DELAY_MS]]]]`.

`BYTES` is the size of each file, or `0`: the size depends on the number in the path, as in a real feed. With
a `CERTIFICATE`, a PEM file, it speaks HTTPS. With `close` each response ends its connection. It begins each
response after `DELAY_MS`. An empty word stands for one that is not there.
"""

from __future__ import annotations

import math
import random
import re
import ssl
import struct
import sys
import zlib

from bench.server import serve

FEED = 0
"""In place of a size: sizes as in a feed of pictures."""

_MEDIAN_BYTES = 60_000
_SIGMA = 1.21
"""With this, one file in a hundred is larger than 1 MB."""

_PATH = re.compile(r"/file/(\d+)\.png")


def size_of(size: int, url: str) -> int:
    """Bytes of the file at a URL, or in a request; `size` is the origin's."""
    found = _PATH.search(url)
    if size != FEED or found is None:
        return size
    # Seeded by the number, so that all who ask know the size.
    return int(random.Random(int(found[1])).lognormvariate(math.log(_MEDIAN_BYTES), _SIGMA)) + 64


def content(size: int) -> bytes:
    """What the origin serves: `size` bytes that begin like a PNG, as most files on the web are pictures."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 100, 100, 8, 2, 0, 0, 0)
    head = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(ihdr) - 4) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    )
    return (head + bytes(range(256)) * (size // 256 + 1))[:size]


def main() -> None:
    bytes_, certificate, closes, delay_ms = (*sys.argv[1:], *[""] * 4)[:4]
    size = int(bytes_ or 10240)
    tls = None
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    close = b"Connection: close\r\n" * (closes == "close")
    whole = _response(size, close) if size != FEED else b""

    def handle(buffer: bytearray) -> bytes:
        heads = bytes(buffer).split(b"\r\n\r\n")
        del buffer[: len(buffer) - len(heads.pop())]
        return b"".join(whole or _response(size_of(size, head.decode()), close) for head in heads)

    serve(handle, tls=tls, delay_s=int(delay_ms or 0) / 1000)


def _response(size: int, fields: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %d\r\n%b\r\n" % (size, fields)
    return head + content(size)


if __name__ == "__main__":
    main()
