"""The HTTP API: `Api` is the ASGI application, `serve` runs it on sockets."""

from __future__ import annotations

from downloader.api.app import Api, serve
from downloader.api.deps import ApiDeps
from downloader.api.globs import text_globs
from downloader.api.server import tls_context

__all__ = ["Api", "ApiDeps", "serve", "text_globs", "tls_context"]
