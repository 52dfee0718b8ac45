"""The origin: answers every GET with the same file. `python -m bench.origin [BYTES]`."""

from __future__ import annotations

import struct
import sys
import zlib

from bench.server import serve


def content(size: int) -> bytes:
    """What the origin serves: `size` bytes that begin like a PNG, as most files on the web are pictures."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 100, 100, 8, 2, 0, 0, 0)
    head = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(ihdr) - 4) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    )
    return (head + bytes(range(256)) * (size // 256 + 1))[:size]


def main() -> None:
    body = content(int(sys.argv[1]) if len(sys.argv) > 1 else 10240)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    response = head.encode() + body

    def handle(buffer: bytearray) -> bytes:
        requests = buffer.count(b"\r\n\r\n")
        if requests:
            del buffer[: buffer.rindex(b"\r\n\r\n") + 4]
        return response * requests

    serve(handle)


if __name__ == "__main__":
    main()
