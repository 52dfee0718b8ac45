"""One file of 10 GiB whose download is cut after 30% and stalls after 60%: time, CPU, memory, and the digest.

`python -m bench.huge_file [--gib 10] [--dir FOLDER]`. The folder holds the whole file. The script ends with
status 1 if the digest is wrong, or if the service did not resume, so that the origin sent a byte twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

from bench.processes import peak_bytes, sink, usage
from bench.service import Build, service
from downloader.client import Client

BLOCK = Random(10).randbytes(1 << 20)
"""The file repeats this; its length is a multiple of the block's."""

CUT, STALL = 0.3, 0.6
"""At which part of the file the first response ends, and the second one stops sending."""

WAIT_S = 600.0


@dataclass(slots=True)
class Sent:
    """The origin's file, and what it has sent of it."""

    total: int
    responses: list[int] = field(default_factory=list)
    """The first byte of each response."""
    bytes_sent: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    """Ends the response that has stalled."""

    def end(self) -> int:
        """The byte at which the newest response stops."""
        parts = (CUT, STALL, 1.0)
        return int(parts[min(len(self.responses), len(parts)) - 1] * self.total)


def origin(sent: Sent) -> type[BaseHTTPRequestHandler]:
    """A handler of GET, with `Range` and a strong `ETag`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            begin = int(wanted[1]) if wanted else 0
            sent.responses.append(begin)
            end, number = sent.end(), len(sent.responses)
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(sent.total - begin))
            self.send_header("Content-Range", f"bytes {begin}-{sent.total - 1}/{sent.total}")
            self.send_header("ETag", '"one"')
            self.end_headers()
            at = begin
            while at < end:
                offset = at % len(BLOCK)
                piece = memoryview(BLOCK)[offset : offset + min(end - at, len(BLOCK) - offset)]
                self.wfile.write(piece)
                at += len(piece)
            sent.bytes_sent += end - begin
            if number == 2:
                sent.over.wait(WAIT_S)
            self.close_connection = end < sent.total

        def log_message(self, *args: object) -> None:
            """Print nothing."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=10.0)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    blocks = int(options.gib * 1024)
    digest = hashlib.sha256()
    for _ in range(blocks):
        digest.update(BLOCK)
    sent = Sent(blocks * len(BLOCK))
    server = ThreadingHTTPServer(("127.0.0.1", 0), origin(sent))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with (
        tempfile.TemporaryDirectory(dir=options.dir) as folder,
        sink() as callbacks,
        service(Path(folder, "service"), Build(label="", python=sys.executable)) as running,
        Client(f"http://127.0.0.1:{running.port}") as client,
    ):
        before, memory, begun = usage(running.pid), peak_bytes(running.pid), time.monotonic()
        client.submit(
            aggr_id="huge",
            aggr_limit=1,
            url=f"http://127.0.0.1:{server.server_port}/file",
            callback_type="http",
            callback_dst=f"http://127.0.0.1:{callbacks.port}/",
            max_size=sent.total,
        )
        if not callbacks.wait(1, silence_s=WAIT_S):
            raise SystemExit("no callback came")
        seconds, used = time.monotonic() - begun, usage(running.pid).since(before)
        grown = peak_bytes(running.pid) - memory
        callback = json.loads(callbacks.records[0][1])
    sent.over.set()
    for name, value in {
        "seconds, the stall included": f"{seconds:.1f}",
        "CPU ms a GiB": f"{1000 * used.cpu_s / options.gib:.0f}",
        "memory grew by MiB": f"{grown / 2**20:.1f}",
        "responses began at byte": ", ".join(f"{begin:,}" for begin in sent.responses),
        "bytes sent, of the file's": f"{sent.bytes_sent / sent.total:.2f}",
        "size and digest": "right" if callback["sha256"] == digest.hexdigest() else f"wrong: {callback}",
    }.items():
        print(f"{name:30} {value}")
    if callback["sha256"] != digest.hexdigest() or sent.bytes_sent != sent.total:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
