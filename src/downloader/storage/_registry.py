"""Opening the storage that the configuration names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from downloader.errors import PluginError
from downloader.registry import STORAGES, check_interface, load_factory, opening_failed
from downloader.storage import Storage

_WHERE = "processor.filestorage"


@asynccontextmanager
async def open_storage(
    name: str, section: Mapping[str, Any], *, where: str = _WHERE
) -> AsyncIterator[Storage]:
    """Open the storage plugin `name` with its section, and close it at the end.

    Args:
        name: of the plugin.
        section: what its factory gets.
        where: the configuration's table, for messages.

    Raises:
        PluginError: on entering, the plugin is missing, cannot be imported, refuses its section or yields
            something that is no storage; the text begins with `where`.
    """
    # Raised only when it is closed: on its way through the plugin's nursery it would become a group.
    problem: PluginError | None = None
    async with AsyncExitStack() as stack:
        try:
            factory = load_factory(STORAGES, name)
            storage: Storage = await stack.enter_async_context(factory(section))
            check_interface(storage, ("put", "delete", "local"), "the plugin")
        except Exception as error:  # noqa: BLE001 - a stranger's code can raise anything
            problem = PluginError(f"{where}: {opening_failed(error)}")
            problem.__cause__ = error
        else:
            yield storage
    if problem is not None:
        raise problem
