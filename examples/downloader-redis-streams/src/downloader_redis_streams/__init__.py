"""Callbacks of downloader as entries of Redis or Valkey streams: an entry for each, by XADD.

redis-py's client is asyncio's. The service keeps an asyncio loop open around everything, so
`trio_asyncio.aio_as_trio` is all that it takes to call it from Trio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any
from urllib.parse import urlsplit

import trio
from downloader.notify import Delivered, Host, Notifier, Payload, Rejected, Result, RetryLater, parse_section
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from trio_asyncio import aio_as_trio

CLOSE_S = 2.0
"""For closing the connections, also while everything is being cancelled."""


def _without_password(url: str) -> str:
    parts = urlsplit(url)  # raises ValueError, which names this key, for what is no URL
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must be a redis://, rediss:// or unix:// URL")
    if parts.password is not None:
        raise ValueError("must not hold a password: it has a key of its own")
    return url


class Settings(BaseModel):
    """`[backends.redis-streams]`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: Annotated[str, AfterValidator(_without_password)] = "redis://localhost:6379"
    password: SecretStr | None = None
    timeout: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """Seconds for a whole delivery."""
    connections: int = Field(default=16, ge=1)
    """To the server, hence deliveries at once."""
    maxlen: int | None = Field(default=None, ge=1)
    """Entries to which a stream is trimmed, about."""
    streams: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of the streams that clients may name."""


@asynccontextmanager
async def open_redis_streams(section: Mapping[str, Any], host: Host) -> AsyncIterator[Notifier]:
    """Open the notifier; it connects when there is something to deliver, and disconnects when it is closed.

    Raises:
        PluginError: the section is at fault.
    """
    settings = parse_section(Settings, section)
    client = Redis.from_url(
        settings.url,
        password=settings.password.get_secret_value() if settings.password is not None else None,
        max_connections=settings.connections,
        # Deliveries have a deadline. For one of its own redis-py 8.1 uses `asyncio.wait_for`, which on
        # Python 3.11 loses a cancel that comes when the waiting has just ended.
        socket_timeout=None,
        # The service tries again, on its schedule: here each delivery is one XADD.
        retry=Retry(NoBackoff(), 0),
    )
    try:
        yield RedisStreams(settings, client, trio.CapacityLimiter(settings.connections))
    finally:
        with trio.move_on_after(CLOSE_S, shield=True):
            await aio_as_trio(client.aclose)()


@dataclass(frozen=True, slots=True)
class RedisStreams:
    """The notifier."""

    settings: Settings
    client: Redis
    room: trio.CapacityLimiter
    """A connection for each that is in it."""

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """Add one entry to the stream named by the destination."""
        if not destination or not any(fnmatchcase(destination, glob) for glob in self.settings.streams):
            return Rejected("[backends.redis-streams] allows no stream of this name")
        try:
            stream = destination.encode()
        except UnicodeEncodeError:
            return Rejected("the stream's name is no text")
        entry = {"job_id": payload.job_id, "aggr_id": payload.aggr_id, "payload": payload.body}
        try:
            with trio.fail_after(self.settings.timeout):
                async with self.room:
                    await aio_as_trio(self.client.xadd)(stream, entry, maxlen=self.settings.maxlen)
        except trio.TooSlowError:
            return RetryLater(f"the server has not answered within {self.settings.timeout:g} s")
        except (RedisError, OSError) as error:
            return _failed(error)
        return Delivered()

    async def check(self) -> str:
        """Look up what the server is; raises what redis-py raises when there is none."""
        with trio.fail_after(self.settings.timeout):
            facts = await aio_as_trio(self.client.info)("server")
        name = facts.get("server_name", "redis")
        version = facts.get(f"{name}_version", facts["redis_version"])
        return f"{self.settings.url} is {name} {version}"


def _failed(error: Exception) -> Result:
    """What an error means, in words that hold neither the server's address nor anything secret."""
    # While it connects, redis-py wraps what AUTH was answered.
    if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
        return RetryLater("the server does not take the configured password")
    if not isinstance(error, ResponseError):
        return RetryLater(f"the server cannot be reached: {type(error).__name__}")
    code = str(error).partition(" ")[0]  # of the error reply; the rest may quote us
    if code == "WRONGTYPE":
        return Rejected("the destination is a key that is no stream")
    return RetryLater(f"the server refuses it now: {code}")
