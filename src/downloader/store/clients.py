"""redis-py's clients for the configured store: one server, a Sentinel's primary, or a Cluster."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialWithJitterBackoff

from downloader.config import RedisSettings
from downloader.store.cluster import Servers

RETRIES = 3
"""How often a call is repeated after a lost reply or connection. Every script may be repeated."""

RETRY_BASE_S, RETRY_CAP_S = 0.02, 0.5


def servers_for(settings: RedisSettings) -> Servers:
    """Clients for the servers of the settings; they connect when they are used.

    Raises:
        ValueError, redis.RedisError: the URL cannot be read.
    """
    options, open_node = _options(settings), partial(_node_client, settings)
    if settings.sentinel is not None:
        nodes = [_host_port(node) for node in settings.sentinel.nodes]
        password = settings.sentinel.password
        sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has not annotated it
            nodes,
            sentinel_kwargs={
                "password": password.get_secret_value() if password else None,
                "socket_connect_timeout": settings.timeout,
                "socket_timeout": settings.timeout,
            },
            **(_url_options(settings.url) | options),
        )
        return Servers(sentinel.master_for(settings.sentinel.master), open_node, sentinel)
    return Servers(aioredis.Redis.from_url(settings.url, **options), open_node)


def _node_client(settings: RedisSettings, host: str, port: int) -> Any:
    """A client of another node of the Cluster that `settings` name."""
    parts = urlsplit(settings.url)
    userinfo, at, _ = parts.netloc.rpartition("@")
    name = host or parts.hostname or "localhost"
    name = f"[{name}]" if ":" in name else name
    url = parts._replace(netloc=f"{userinfo}{at}{name}:{port}").geturl()
    return aioredis.Redis.from_url(url, **_options(settings))


def _options(settings: RedisSettings) -> dict[str, Any]:
    return {
        "decode_responses": True,
        # `StoreClient.call` has a deadline; a timer of the client for each read and write would cost CPU.
        "socket_timeout": None,
        "socket_connect_timeout": settings.timeout,
        "retry": Retry(ExponentialWithJitterBackoff(base=RETRY_BASE_S, cap=RETRY_CAP_S), RETRIES),
        # Nothing here needs RESP3, and its maintenance notifications cost a round trip per connection.
        "protocol": 2,
    }


def _url_options(url: str) -> dict[str, Any]:
    """User, password, database and TLS from the URL; Sentinel gives the primary's address."""
    if not url.startswith(("redis://", "rediss://")):
        return {}
    options: dict[str, Any] = dict(aioredis.ConnectionPool.from_url(url).connection_kwargs)
    kept: dict[str, Any] = {name: options[name] for name in ("username", "password", "db") if name in options}
    if url.startswith("rediss://"):
        kept["ssl"] = True
    return kept


def _host_port(node: str) -> tuple[str, int]:
    host, _, port = node.rpartition(":")
    return host.strip("[]"), int(port)
