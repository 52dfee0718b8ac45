"""The HTTP API: `create_app` makes it, `serve` puts it on sockets."""

from __future__ import annotations

from downloader.api.app import Api, create_app, serve
from downloader.api.deps import ApiDeps

__all__ = ["Api", "ApiDeps", "create_app", "serve"]
