"""The HTTP API: `create_app` makes it, `serve` puts it on sockets, with a `tls_context` if there is one."""

from __future__ import annotations

from downloader.api.app import Api, create_app, serve
from downloader.api.deps import ApiDeps
from downloader.api.server import tls_context

__all__ = ["Api", "ApiDeps", "create_app", "serve", "tls_context"]
