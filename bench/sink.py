"""The callback sink: answers every POST with 200 and prints when it came, and what.

`python -m bench.sink [HOSTS]` listens on so many addresses and prints its port, then one line a callback:
`<CLOCK_MONOTONIC in ns> <body>`, also where several come as an array in one POST.
"""

from __future__ import annotations

import json
import re
import sys
import time

from bench.server import serve

_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


def main() -> None:
    lines: list[bytes] = []

    def handle(buffer: bytearray) -> bytes:
        now = time.monotonic_ns()
        answers = 0
        while (head := buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(buffer, 0, head)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(buffer) < end:
                break
            body = bytes(buffer[head + 4 : end])
            bodies = [json.dumps(each).encode() for each in json.loads(body)] if body[:1] == b"[" else [body]
            lines.extend(b"%d %b\n" % (now, each.replace(b"\n", b" ")) for each in bodies)
            del buffer[:end]
            answers += 1
        return _RESPONSE * answers

    def flush() -> None:
        if lines:
            sys.stdout.buffer.write(b"".join(lines))
            sys.stdout.buffer.flush()
            lines.clear()

    serve(handle, after_round=flush, hosts=int(sys.argv[1]) if len(sys.argv) > 1 else 1)


if __name__ == "__main__":
    main()
