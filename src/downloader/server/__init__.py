"""An HTTP/1.1 server for an ASGI application: `serve_http`. Independent of jobs."""

from __future__ import annotations

from downloader.server.asgi import (
    ENDLESS,
    RESERVED,
    STREAMED,
    AsgiApp,
    Gone,
    Headers,
    HttpError,
    Message,
    Receive,
    Send,
    client_of,
    send_response,
)
from downloader.server.limits import PIECE_BYTES, Limits, client_address
from downloader.server.serve import serve_http, tls_context
