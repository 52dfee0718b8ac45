"""Finding plugins, including the built-in plugins, by entry point.

Only plugins that the configuration names are imported, so a broken plugin that is not used does no harm.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, TypeVar

import trio
from pydantic import BaseModel, ValidationError

from downloader.errors import PluginError, first_leaf, leaves

Model = TypeVar("Model", bound=BaseModel)

NOTIFIERS = "downloader.notifiers.v1"
"""Entry-point group of notifiers; the number is the version of the interface."""

STORAGES = "downloader.storages.v1"
"""Entry-point group of storages."""

BUCKETS = "downloader.buckets.v1"
"""Entry-point group of plugins that store files in the buckets that jobs name."""

OPENING_S = 20.0
"""Time limit for opening a plugin."""

CLOSING_S = 5.0
"""Time limit for closing a plugin; then the close is cancelled."""

REASON_CHARS = 500
"""Most characters of a plugin's text that are kept in the store and shown to clients."""

KINDS = {NOTIFIERS: "notifier", STORAGES: "storage", BUCKETS: "buckets"}

_PACKAGES: Mapping[tuple[str, str], tuple[str, str]] = {
    (NOTIFIERS, "kafka"): ("confluent_kafka", "kafka"),
    (NOTIFIERS, "sqs"): ("boto3", "aws"),
    (STORAGES, "s3"): ("boto3", "aws"),
    (BUCKETS, "s3"): ("boto3", "aws"),
    (STORAGES, "cloud"): ("obstore", "cloud"),
    (BUCKETS, "cloud"): ("obstore", "cloud"),
}
"""For each built-in plugin, the needed package and the extra of `downloader-service` with that package."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PluginInfo:
    """Metadata of an installed plugin, read without an import."""

    kind: str
    """A value of `KINDS`."""
    name: str
    """The name in `[backends.NAME]`, `processor.filestorage.type` or `[processor.NAME]`."""
    version: str
    """The distribution's version; empty if unknown."""
    distribution: str
    """The distribution's name; empty if unknown."""


def installed(group: str) -> list[PluginInfo]:
    """The installed plugins of a group, sorted by name; imports no plugin."""
    return sorted(_info(group, point) for point in entry_points(group=group))


def _info(group: str, point: EntryPoint) -> PluginInfo:
    version = distribution = ""
    # The metadata of a third party's distribution may be missing or not readable.
    with suppress(OSError, TypeError, ValueError):
        if point.dist is not None:
            metadata = point.dist.metadata
            fields = {key: metadata[key] for key in ("Name", "Version") if key in metadata}
            distribution, version = fields.get("Name", ""), fields.get("Version", "")
    return PluginInfo(
        kind=KINDS.get(group, group), name=point.name, version=version, distribution=distribution
    )


def find(group: str, name: str) -> EntryPoint:
    """The entry point of the plugin `name`; imports nothing.

    Raises:
        PluginError: no such plugin is installed, or several are.
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


def missing_package(group: str, name: str) -> str:
    """How to install the missing package of a built-in plugin; `""` if none is missing. Imports nothing."""
    package, extra = _PACKAGES.get((group, name), ("", ""))
    if not package or find_spec(package) is not None:
        return ""
    return f"needs the package {package}: pip install 'downloader-service[{extra}]'"


def load_factory(group: str, name: str) -> Callable[..., Any]:
    """Import the plugin's factory.

    Raises:
        PluginError: as for `find`; or a package that the plugin needs is missing, the plugin cannot be
            imported, or the entry point names something that is not callable.
    """
    kind = KINDS.get(group, group)
    point = find(group, name)
    # The plugin for buckets is opened without being configured, so it imports boto3 only when it is used.
    if group != BUCKETS and (problem := missing_package(group, name)):
        raise PluginError(problem)
    try:
        factory = point.load()
    except BaseException as error:  # a plugin's import can raise anything, SystemExit too
        if isinstance(error, KeyboardInterrupt):
            raise
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
    """Check that the object of a plugin's context manager has coroutine `methods` and `plain` methods.

    Raises:
        PluginError: a method is missing, or is a coroutine function where a plain one is needed, or the
            reverse; the text begins with `name`.
    """
    coroutines = tuple(methods)
    for method in (*coroutines, *plain):
        bound = getattr(obj, method, None)
        if bound is None or not callable(bound):
            raise PluginError(f"{name} gives a {type(obj).__name__}, which has no method {method}()")
        function = inspect.unwrap(getattr(bound, "__func__", bound))
        if not inspect.isfunction(function):
            continue
        if inspect.iscoroutinefunction(function) != (method in coroutines):
            wrong = "is no coroutine function" if method in coroutines else "is a coroutine function"
            raise PluginError(f"{name} gives a {type(obj).__name__}, whose {method}() {wrong}")


def find_cancel(error: BaseException) -> BaseException | None:
    """The cancel or keyboard interrupt in a plugin's error or group, for the caller to raise again."""
    return next(
        (leaf for leaf in leaves(error) if isinstance(leaf, (trio.Cancelled, KeyboardInterrupt))), None
    )


def one_line(text: str) -> str:
    """A plugin's text on one line of at most `REASON_CHARS` that can be encoded as UTF-8."""
    # A lone surrogate, which UTF-8 cannot encode, becomes a question mark.
    return " ".join(text.split())[:REASON_CHARS].encode("utf-8", "replace").decode()


def describe(error: BaseException) -> str:
    """The type and the text of a plugin's exception, on one line."""
    text = one_line(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def opening_failed(error: BaseException) -> str:
    """Why a plugin could not be opened, on one line; for an exception group, the first error."""
    cause = first_leaf(error)
    if isinstance(cause, PluginError):
        return one_line(str(cause))
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
    """Parse a plugin's section with a pydantic model; for use in plugins.

    The model should forbid extra keys (`extra="forbid"`) and keep values, which may be secrets, out of
    messages (`hide_input_in_errors=True`).

    Raises:
        PluginError: one line that names the wrong key, and for an unknown key the nearest known one.
    """
    try:
        return model.model_validate(dict(section))
    except ValidationError as exc:
        error = exc.errors()[0]
        key = ".".join(str(part) for part in error["loc"])
        if error["type"] != "extra_forbidden":
            where = f"{key}: " if key else ""  # a rule about several keys has no key
            raise PluginError(f"{where}{error['msg'].removeprefix('Value error, ')}") from exc
        near = difflib.get_close_matches(key, model.model_fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PluginError(f"{key}: there is no such key{hint}") from exc
