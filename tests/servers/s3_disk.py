"""A least S3 that keeps objects on disk at flat memory, for one that is too large for moto.

Moto's server was measured to need 4.8 GB for an object of 1 GiB. This one takes objects whole or in
parts, checks `Content-MD5`, and answers `GET`.
As a process: `python -m servers.s3_disk FOLDER` prints its port first.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

START_S = 40.0
BLOCK_BYTES = 1024 * 1024


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    folder: Path
    numbers = itertools.count(1)

    def do_GET(self) -> None:
        if "uploads" in self.query():
            going = "".join(
                f"<Upload><Key>{path.read_text()}</Key><UploadId>{path.parent.name}</UploadId></Upload>"
                for path in self.folder.glob("upload-*/key")
            )
            self.answer(200, f"<ListMultipartUploadsResult>{going}</ListMultipartUploadsResult>")
            return
        parts = self.parts(self.stored())
        self.send_response(200)
        self.send_header("Content-Length", str(sum(part.stat().st_size for part in parts)))
        self.end_headers()
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, self.wfile, BLOCK_BYTES)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        query = self.query()
        if "uploads" in query:
            upload = f"upload-{next(self.numbers)}"
            (self.folder / upload).mkdir()
            (self.folder / upload / "key").write_text(self.key())
            self.answer(200, f"<R><UploadId>{upload}</UploadId></R>")
            return
        going = self.folder / query["uploadId"][0]
        etags = [part.with_suffix(".etag").read_text() for part in self.parts(going)]
        named = re.findall(r"<ETag>(?:&quot;|\")?([0-9a-f]+)", body)
        if not etags or etags != named:
            self.answer(400, "<Error><Code>InvalidPart</Code></Error>")
            return
        (going / "key").unlink()
        going.rename(self.stored())
        self.answer(200, f"<R><ETag>{'0' * 32}-{len(etags)}</ETag></R>")

    def do_PUT(self) -> None:
        query = self.query()
        whole = "uploadId" not in query
        folder = self.stored() if whole else self.folder / query["uploadId"][0]
        if whole:
            folder.mkdir(exist_ok=True)
        part = folder / f"{int(query.get('partNumber', ['1'])[0]):05}"
        md5, left = hashlib.md5(), int(self.headers["Content-Length"])
        with part.open("wb") as file:
            while left:
                block = self.rfile.read(min(left, BLOCK_BYTES))
                md5.update(block)
                file.write(block)
                left -= len(block)
        if base64.b64encode(md5.digest()).decode() != self.headers["Content-MD5"]:
            self.answer(400, "<Error><Code>BadDigest</Code></Error>")
            return
        part.with_suffix(".etag").write_text(md5.hexdigest())
        self.answer(200, ETag=f'"{md5.hexdigest()}"')

    def do_DELETE(self) -> None:
        for upload in self.query().get("uploadId", []):
            shutil.rmtree(self.folder / upload, ignore_errors=True)
        self.answer(204)

    def answer(self, status: int, body: str = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    def key(self) -> str:
        return urlsplit(self.path).path.split("/", 2)[2]

    def stored(self) -> Path:
        return self.folder / ("object-" + self.key().replace("/", "%"))

    def parts(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("[0-9]????"))

    def log_message(self, *_: object) -> None:
        return


if __name__ == "__main__":
    Handler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)  # noqa: T201 - the parent reads it
    server.serve_forever()
