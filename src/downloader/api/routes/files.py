"""`GET /files/<path>`: a stored file, as an attachment that browsers do not render."""

from __future__ import annotations

import re
from http import HTTPStatus
from urllib.parse import quote

import trio
from quart import Request, Response, request
from quart_trio.wrappers.response import TrioFileBody
from werkzeug.http import parse_range_header

from downloader.api.auth import named_keys, sees_all
from downloader.api.deps import Context
from downloader.api.problems import refused
from downloader.api.routes.jobs import visible_job
from downloader.api.routing import ResponseSpec, route
from downloader.paths import has_job_file, is_safe_path
from downloader.storage import StoredFile
from downloader.store import JobStore

_READ_BYTES = 64 * 1024
"""Read per call of a thread: with Quart's 8 KiB the calls cost more than the reading. Each of possibly
thousands of slow readers keeps as much in memory."""

_PLAIN_NAME = re.compile(r"[0-9A-Za-z._-]+")

_HEADERS = {
    "Accept-Ranges": "bytes",
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Content-Type": "application/octet-stream",
}


_FILE = "application/octet-stream"


@route(
    "GET",
    "/files/<path:key>",
    scope="read",
    responses={
        HTTPStatus.OK: ResponseSpec("The file.", media_type=_FILE),
        HTTPStatus.PARTIAL_CONTENT: ResponseSpec("The range asked for.", media_type=_FILE),
        HTTPStatus.NOT_MODIFIED: ResponseSpec("The client has it.", media_type=""),
    },
    problems=["not_found", "range_not_satisfiable"],
)
async def show(context: Context, key: str) -> Response:
    """A stored file.

    As an attachment, for storages with local files. `Range` and conditional requests work.
    """
    stored, files = None, context.deps.files
    if files is not None and is_safe_path(key) and (sees_all() or await _is_visible(context.store, key)):
        stored = await files(key)
    response = await file_response(stored, request) if stored is not None else None
    if response is None:
        raise refused("not_found")
    return response


async def _is_visible(store: JobStore, key: str) -> bool:
    """Whether the file is of a job that the caller may see, or under a key that the caller's token names."""
    if not has_job_file(key):
        return named_keys()(key)
    view = await visible_job(store, key.rpartition("/")[2])
    return view is not None and view.spec.storage_key("") == key


async def file_response(stored: StoredFile, incoming: Request) -> Response | None:
    """The file or the requested range; `None` if the file no longer exists.

    As in RFC 9110: one range gets a 206, several the whole file (14.2), one past the end a 416.
    `If-Range` and `If-None-Match` are compared with the entity tag, made of modification time and size.

    Raises:
        Refused: 416.
    """
    try:
        metadata = await trio.Path(stored.path).stat()
    except FileNotFoundError:
        return None
    size = metadata.st_size
    etag = f'"{metadata.st_mtime_ns:x}-{size:x}"'
    headers = _HEADERS | {"ETag": etag, "Content-Disposition": _disposition(stored.path.name)}
    if etag in incoming.headers.get("If-None-Match", ""):
        return Response(b"", HTTPStatus.NOT_MODIFIED, headers)
    interval = _requested_range(incoming, size) if incoming.headers.get("If-Range", etag) == etag else None
    start, stop = interval or (0, size)
    if interval:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    response = Response(b"", HTTPStatus.PARTIAL_CONTENT if interval else HTTPStatus.OK, headers)
    if incoming.method != "HEAD":
        body = TrioFileBody(stored.path, buffer_size=_READ_BYTES)
        body.begin, body.end = start, stop
        response.response = body
    response.content_length = stop - start
    return response


def _requested_range(incoming: Request, size: int) -> tuple[int, int] | None:
    """The requested range as a half-open interval of offsets; `None` for the whole file.

    Raises:
        Refused: 416.
    """
    wanted = parse_range_header(incoming.headers.get("Range"))
    if wanted is None or wanted.units != "bytes" or len(wanted.ranges) != 1:
        return None
    first, end = wanted.ranges[0]
    start = max(0, size + first) if first < 0 else first
    if start >= size:
        raise refused("range_not_satisfiable", more_headers=((b"content-range", b"bytes */%d" % size),))
    return start, size if end is None else min(end, size)


def _disposition(name: str) -> str:
    if _PLAIN_NAME.fullmatch(name):
        return f"attachment; filename={name}"
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"  # RFC 8187
