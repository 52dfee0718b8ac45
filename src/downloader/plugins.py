"""Finding plugins by entry point: each built-in one comes the way a stranger's does.

Only the plugins that a configuration names are imported, so that a broken one harms nobody else.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import trio
from pydantic import BaseModel, ValidationError

from downloader.errors import PluginError, first_leaf, leaves

Model = TypeVar("Model", bound=BaseModel)

NOTIFIERS = "downloader.notifiers.v1"
"""Entry-point group of notifiers; the number is that of the interface."""

STORAGES = "downloader.storages.v1"
"""Entry-point group of storages."""

BUCKETS = "downloader.buckets.v1"
"""Entry-point group of what stores in the buckets that jobs bring."""

OPENING_S = 20.0
"""For a plugin to open; one that takes longer hangs."""

CLOSING_S = 5.0
"""For a plugin to close; it is then cancelled."""

KINDS = {NOTIFIERS: "notifier", STORAGES: "storage", BUCKETS: "buckets"}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PluginInfo:
    """An installed plugin, as known without importing it."""

    kind: str
    """One of `KINDS`."""
    name: str
    """What `[backends.NAME]`, `processor.filestorage.type` or `[processor.NAME]` calls it."""
    version: str
    """Of the distribution."""
    distribution: str
    """Empty, like the version, where its metadata do not say it."""


def installed(group: str) -> list[PluginInfo]:
    """The plugins of a group that are installed, by name; imports none of them."""
    return sorted(_info(group, point) for point in entry_points(group=group))


def _info(group: str, point: EntryPoint) -> PluginInfo:
    version = distribution = ""
    # Of a stranger's distribution the metadata may be missing or no text at all.
    with suppress(OSError, TypeError, ValueError):
        if point.dist is not None:
            metadata = point.dist.metadata
            fields = {key: metadata[key] for key in ("Name", "Version") if key in metadata}
            distribution, version = fields.get("Name", ""), fields.get("Version", "")
    return PluginInfo(
        kind=KINDS.get(group, group), name=point.name, version=version, distribution=distribution
    )


def find(group: str, name: str) -> EntryPoint:
    """The one plugin of that name; imports nothing.

    Raises:
        PluginError: none is installed, or several are.
    """
    kind = KINDS.get(group, group)
    points = entry_points(group=group, name=name)
    values = {point.value for point in points}
    if not values:
        raise PluginError(_missing(group, kind, name))
    if len(values) > 1:
        sources = ", ".join(sorted(_source(point) for point in points))
        raise PluginError(
            f"{kind} plugin {name!r} is installed more than once ({sources}): uninstall all but one"
        )
    return next(iter(points))


def load_factory(group: str, name: str) -> Callable[..., Any]:
    """Import the plugin's factory.

    Raises:
        PluginError: no plugin of that name is installed, several are, it cannot be imported, or what
            the entry point names cannot be called.
    """
    kind = KINDS.get(group, group)
    point = find(group, name)
    try:
        factory = point.load()
    except Exception as error:  # importing a stranger's code can raise anything
        raise PluginError(
            f"{kind} plugin {name!r} ({_source(point)}) cannot be imported: {describe(error)}"
        ) from error
    if not callable(factory):
        raise PluginError(
            f"{kind} plugin {name!r} ({_source(point)}): {point.value} is not a factory: not callable"
        )
    checked: Callable[..., Any] = factory
    return checked


def check_interface(obj: object, methods: Iterable[str], name: str, *, plain: Iterable[str] = ()) -> None:
    """Refuse what a plugin opened when one of the methods is missing, or a coroutine method is none.

    Args:
        obj: what the plugin's context manager gave.
        methods: names of coroutine methods that it must have.
        name: how to call the plugin in the message.
        plain: names of ordinary methods that it must have.

    Raises:
        PluginError: the interface is a different one.
    """
    coroutines = tuple(methods)
    for method in (*coroutines, *plain):
        found = getattr(obj, method, None)
        if found is None or not callable(found):
            raise PluginError(f"{name} gives a {type(obj).__name__}, which has no method {method}()")
        function = inspect.unwrap(getattr(found, "__func__", found))
        if not inspect.isfunction(function):
            continue
        if inspect.iscoroutinefunction(function) != (method in coroutines):
            wrong = "is no coroutine function" if method in coroutines else "is a coroutine function"
            raise PluginError(f"{name} gives a {type(obj).__name__}, whose {method}() {wrong}")


def find_cancel(error: BaseException) -> BaseException | None:
    """The cancel or keyboard interrupt that a plugin raised, also in a group; the caller raises it again."""
    return next(
        (leaf for leaf in leaves(error) if isinstance(leaf, (trio.Cancelled, KeyboardInterrupt))), None
    )


def describe(error: BaseException) -> str:
    """The type and the text of a plugin's exception, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def opening_failed(error: Exception) -> str:
    """Why a plugin could not be opened, on one line; also when it raised in a nursery of its own."""
    cause = first_leaf(error)
    if isinstance(cause, PluginError):
        return " ".join(str(cause).split())
    return f"cannot be opened: {describe(cause)}"


def _missing(group: str, kind: str, name: str) -> str:
    names = sorted({plugin.name for plugin in installed(group)})
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"no {kind} plugin {name!r} is installed (installed: {', '.join(names) or 'none'}){hint}"


def _source(point: EntryPoint) -> str:
    info = _info("", point)
    return f"{info.distribution} {info.version}".strip() or point.value


def parse_section(model: type[Model], section: Mapping[str, Any]) -> Model:
    """A plugin's section as its pydantic model, for plugins to use.

    The model should forbid extra keys (`extra="forbid"`) and keep its values out of messages
    (`hide_input_in_errors=True`), for they may be secrets.

    Raises:
        PluginError: one line that names the key at fault, and for an unknown one the nearest known.
    """
    try:
        return model.model_validate(dict(section))
    except ValidationError as exc:
        error = exc.errors()[0]
        key = ".".join(str(part) for part in error["loc"])
        if error["type"] != "extra_forbidden":
            raise PluginError(f"{key}: {error['msg'].removeprefix('Value error, ')}") from exc
        near = difflib.get_close_matches(key, model.model_fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PluginError(f"{key}: there is no such key{hint}") from exc
