"""The HTTP API: `Api` is the ASGI application, `serve` runs an `Api` on sockets."""

from __future__ import annotations

from downloader.api.app import Api, serve
from downloader.api.deps import ApiDeps

__all__ = ["Api", "ApiDeps", "serve"]
