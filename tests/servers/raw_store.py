"""The server of a store as a test sees the server: keys and commands that no instance shows or uses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import redis

from downloader.config import RedisSettings
from downloader.store import Keys, load_library


class RawStore:
    """A store with one shard."""

    def __init__(self, settings: RedisSettings) -> None:
        self.keys = Keys(prefix=settings.key_prefix, shards=1)
        self._redis = redis.Redis.from_url(settings.url, decode_responses=True, socket_timeout=60)

    def key(self, name: str, *parameters: str) -> str:
        return self.keys.key(0, name, *parameters)

    def command(self, *words: str | float) -> Any:
        return self._redis.execute_command(*words)  # type: ignore[no-untyped-call]  # as the client is

    def run(self, script: str, call: Mapping[str, Any], rows: Iterable[Mapping[str, Any]] = ()) -> Any:
        """Run a transition with the arguments of any version."""
        arguments = [json.dumps(call), *map(json.dumps, rows)]
        library = load_library()
        if not self.command("FUNCTION", "LIST", "LIBRARYNAME", library.name):
            self.command("FUNCTION", "LOAD", library.text)
        return self.command("FCALL", library.function(script), 1, self.keys.base(0), *arguments)

    def close(self) -> None:
        self._redis.close()
