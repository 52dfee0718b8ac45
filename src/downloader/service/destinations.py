"""The limits of single destinations of callbacks, from `[[backends.http.destinations]]`."""

from __future__ import annotations

from collections.abc import Mapping

from downloader.config import Settings
from downloader.model import callback_group
from downloader.store import limit_of_shard


def own_limits(settings: Settings) -> Mapping[str, int]:
    """By group of callbacks, the `concurrency` of the destination, as each shard of the store holds it.

    The plugin checks the section; an instance without the role `notifier` ignores what is malformed.
    """
    limits = {}
    destinations = settings.backends.get("http", {}).get("destinations")
    for destination in destinations if isinstance(destinations, list) else ():
        match destination:
            case {"match": str(url), "concurrency": int(concurrency)} if concurrency > 0:
                limits[callback_group("http", url)] = limit_of_shard(concurrency, settings.redis)
    return limits
