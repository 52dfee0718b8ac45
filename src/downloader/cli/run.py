"""`downloader run`, `api`, `processor`, `notifier`: the service, whole or one role of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.cli.flags import Config, Host, Port
from downloader.cli.settings import load
from downloader.config import Settings, allow_also, with_default_backend
from downloader.observe import Event, configure, get_logger


def run(
    *,
    config: Config = None,
    host: Host = None,
    port: Port = None,
    data_dir: Annotated[Path | None, Parameter(name="--data-dir")] = None,
    processes: Annotated[int, Parameter(name="--processes", validator=Number(gte=1))] = 1,
    allow: Annotated[
        tuple[str, ...], Parameter(name="--allow", consume_multiple=True, show_default=False)
    ] = (),
) -> None:
    """Run everything: API, processor and notifier.

    With no configuration and no Redis it starts its embedded Valkey under the data folder. SIGTERM and
    Ctrl-C let downloads in flight finish for a while; a second one stops at once.

    Args:
        config: Configuration file (TOML). Without one: defaults, and HTTP callbacks.
        host: Address to listen on. Default: 127.0.0.1.
        port: Port to listen on; 0 takes any free one. Default: 8000.
        data_dir: Folder of the embedded store and the files. Default: downloader-data.
        processes: How many processes share the work.
        allow: Addresses (CIDR) or hosts, beyond public ones, that downloads and callbacks may reach.
    """
    settings = load(config, {"api.host": host, "api.port": port, "data_dir": data_dir})
    if allow:
        settings = allow_also(settings, allow)
    if config is None:
        settings = with_default_backend(settings)
    _serve(settings, "api", "processor", "notifier", processes=processes)


def api(*, config: Config = None, host: Host = None, port: Port = None) -> None:
    """Run the HTTP API alone; several may run against one Redis.

    Args:
        config: Configuration file (TOML).
        host: Address to listen on. Default: 127.0.0.1.
        port: Port to listen on; 0 takes any free one. Default: 8000.
    """
    _serve(load(config, {"api.host": host, "api.port": port}), "api")


def processor(*, config: Config = None) -> None:
    """Run a processor alone: it downloads. Several may run against one Redis.

    Args:
        config: Configuration file (TOML).
    """
    _serve(load(config), "processor")


def notifier(*, config: Config = None) -> None:
    """Run a notifier alone: it delivers callbacks and deletes delivered files. Several may run.

    Args:
        config: Configuration file (TOML), with a section for each backend.
    """
    _serve(load(config), "notifier")


def _serve(settings: Settings, *roles: str, processes: int = 1) -> None:
    """Run until a signal ends it."""
    from downloader.service import run_service  # noqa: PLC0415 - after the settings: a wrong key needs no network

    configure(form=settings.log.format, level=settings.log.level)
    log = get_logger()
    for line in settings.deprecations:
        log.warning(Event.CONFIG_DEPRECATED, message=line)
    run_service(settings, roles=frozenset(roles), processes=processes)
