"""Google Cloud Storage on loopback: the part of its XML API that obstore uses.

The emulators on PyPI and npm do not have this API. Written after Google's reference
(https://docs.cloud.google.com/storage/docs/xml-api/reference-methods): objects with headers and metadata,
`x-goog-if-generation-match: 0`, and uploads in parts. A test may replace the next responses.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

KEPT = re.compile(r"content-type|content-disposition|x-goog-meta-.*")
TOKEN = "ya29.a-bearer-token"


@dataclass(slots=True)
class Stored:
    """An object."""

    data: bytes
    headers: Mapping[str, str]

    def response(self) -> Response:
        more = {"etag": etag(self.data), "last-modified": "Fri, 27 Nov 2026 21:00:00 GMT"}
        return Response(200, {**self.headers, **more}, self.data)


@dataclass(slots=True)
class Upload:
    """An upload in parts."""

    key: str
    headers: Mapping[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


class Request:
    """A request, with names of headers in lower case."""

    def __init__(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> None:
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        self.method, self.headers, self.body = method, headers, body
        self.query = {name: values[0] for name, values in query.items()}
        self.bucket, _, self.key = unquote(parts.path).removeprefix("/").partition("/")
        self.kept = {name: value for name, value in headers.items() if KEPT.fullmatch(name)}
        self.label = f"{method} {self.query['partNumber']}" if "partNumber" in self.query else method


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""


def error(status: int, code: str) -> Response:
    """A response in Google's form."""
    return Response(status, body=f"<Error><Code>{code}</Code></Error>".encode())


class Gcs:
    """The server's buckets."""

    def __init__(self) -> None:
        self.port = 0
        self.buckets: defaultdict[str, dict[str, Stored]] = defaultdict(dict)
        self.uploads: dict[str, Upload] = {}
        self.missing: set[str] = set()
        """Buckets that do not exist; every other one does."""
        self.scripted: dict[str, list[tuple[int, bool]]] = defaultdict(list)
        """By method and part number, such as `PUT` and `PUT 2`: the next statuses, and whether it is done."""
        self.requests: list[str] = []
        self.lock = Lock()
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def handle(self, request: Request) -> Response:
        """The response to a request."""
        with self.lock:
            self.requests.append(request.label)
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                return error(401, "InvalidAuthentication")
            if request.bucket in self.missing:
                return error(404, "NoSuchBucket")
            if not self.scripted[request.label]:
                return self._carry_out(request)
            status, done = self.scripted[request.label].pop(0)
            if done:
                self._carry_out(request)
            return error(status, "Scripted")

    def _carry_out(self, request: Request) -> Response:
        if "uploads" in request.query:
            upload = f"upload-{next(self._numbers)}"
            self.uploads[upload] = Upload(request.key, request.kept)
            names = f"<Bucket>{request.bucket}</Bucket><Key>k</Key><UploadId>{upload}</UploadId>"
            text = f"<InitiateMultipartUploadResult>{names}</InitiateMultipartUploadResult>"
            return Response(200, {}, text.encode())
        objects = self.buckets[request.bucket]
        if "uploadId" in request.query:
            return self._upload(request, request.query["uploadId"], objects)
        if request.method == "PUT":
            return self._put(request, objects)
        if request.key not in objects:
            return error(404, "NoSuchKey")
        if request.method == "DELETE":
            del objects[request.key]
            return Response(204)
        return objects[request.key].response()

    def _put(self, request: Request, objects: dict[str, Stored]) -> Response:
        if request.headers.get("x-goog-if-generation-match") == "0" and request.key in objects:
            return error(412, "PreconditionFailed")
        objects[request.key] = Stored(request.body, request.kept)
        return Response(200, {"etag": etag(request.body), "x-goog-generation": str(next(self._numbers))})

    def _upload(self, request: Request, upload: str, objects: dict[str, Stored]) -> Response:
        if upload not in self.uploads:
            return error(404, "NoSuchUpload")
        if request.method == "PUT":
            self.uploads[upload].parts[int(request.query["partNumber"])] = request.body
            return Response(200, {"etag": etag(request.body)})
        finished = self.uploads.pop(upload)
        if request.method == "DELETE":
            return Response(204)
        numbers = map(int, re.findall(r"<PartNumber>(\d+)</PartNumber>", request.body.decode()))
        data = b"".join(finished.parts[number] for number in numbers)
        objects[request.key] = Stored(data, finished.headers)
        text = f"<CompleteMultipartUploadResult><ETag>{etag(data)}</ETag></CompleteMultipartUploadResult>"
        return Response(200, {"etag": etag(data)}, text.encode())


def etag(data: bytes) -> str:
    """The ETag of an object."""
    return f'"{hashlib.md5(data).hexdigest()}"'


@contextmanager
def open_gcs() -> Iterator[Gcs]:
    """A server in threads of this process."""
    gcs = Gcs()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            status, more, content = gcs.handle(Request(self.command, self.path, headers, body))
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - names of the base class

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError):  # the client has gone
                super().handle()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        gcs.port = server.server_port
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield gcs
        finally:
            server.shutdown()
            thread.join()
