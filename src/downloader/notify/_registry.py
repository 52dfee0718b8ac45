"""Opening the notifiers that the configuration names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from downloader.errors import PluginError
from downloader.notify import Notifier
from downloader.registry import NOTIFIERS, check_interface, load_factory, opening_failed


@asynccontextmanager
async def open_notifiers(backends: Mapping[str, Mapping[str, Any]]) -> AsyncIterator[dict[str, Notifier]]:
    """Open each backend with its section; all that were opened are closed, in reverse, whatever happens.

    Args:
        backends: the sections by name, from `[backends]`.

    Raises:
        PluginError: on entering, a plugin is missing, cannot be imported, refuses its section or yields
            something that is no notifier; the text begins with `backends.NAME`.
    """
    factories = {name: _factory(name) for name in backends}
    notifiers: dict[str, Notifier] = {}
    # Raised only when all are closed: on its way through a plugin's nursery it would become a group.
    problem: PluginError | None = None
    async with AsyncExitStack() as stack:
        for name, section in backends.items():
            try:
                notifiers[name] = await stack.enter_async_context(factories[name](section))
                check_interface(notifiers[name], ("deliver",), "the plugin")
            except Exception as error:  # noqa: BLE001 - a stranger's code can raise anything
                problem = PluginError(f"backends.{name}: {opening_failed(error)}")
                problem.__cause__ = error
                break
        else:
            yield notifiers
    if problem is not None:
        raise problem


def _factory(name: str) -> Any:
    try:
        return load_factory(NOTIFIERS, name)
    except PluginError as error:
        raise PluginError(f"backends.{name}: {error}") from error
