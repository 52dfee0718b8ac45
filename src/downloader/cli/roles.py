"""`downloader run`, `api`, `processor`, `notifier`: the whole service, or one role."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.cli.options import Config, Host, Port, load

if TYPE_CHECKING:
    from downloader.config import Settings


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

    Without a configuration and without Redis it starts its embedded Valkey
    under the data folder. Without a section under [backends] it sends HTTP
    callbacks. Ctrl-C or SIGTERM lets downloads in flight finish for
    a while; a second signal stops at once.

    For example:
      downloader run
      downloader run --port 9000 --allow 10.0.0.0/8 media.internal
      downloader run -c config.toml --processes 4

    Args:
        config: Configuration file (TOML).
        host: Address to listen on. Default: 127.0.0.1.
        port: Port to listen on; 0 takes any free one. Default: 8000.
        data_dir: Folder of the embedded store and the files. Default: downloader-data.
        processes: How many processes share the work.
        allow: Addresses (CIDR) or hosts, beyond public ones, that downloads and callbacks may reach.
    """
    from downloader.config import allow_also, with_default_backend

    settings = load(config, {"api.host": host, "api.port": port, "data_dir": data_dir})
    if allow:
        settings = allow_also(settings, allow)
    _run_roles(with_default_backend(settings), "api", "processor", "notifier", processes=processes)


def api(*, config: Config = None, host: Host = None, port: Port = None) -> None:
    """Run the HTTP API alone.

    Several may run against one Redis. It needs processors and notifiers beside
    it.

    For example:
      downloader api -c config.toml --host 0.0.0.0

    Args:
        config: Configuration file (TOML).
        host: Address to listen on. Default: 127.0.0.1.
        port: Port to listen on; 0 takes any free one. Default: 8000.
    """
    _run_roles(load(config, {"api.host": host, "api.port": port}), "api")


def processor(*, config: Config = None) -> None:
    """Run a processor alone, which downloads.

    Several may run against one Redis; the limits hold over all of them.

    For example:
      downloader processor -c config.toml

    Args:
        config: Configuration file (TOML).
    """
    _run_roles(load(config), "processor")


def notifier(*, config: Config = None) -> None:
    """Run a notifier alone, which delivers callbacks.

    The configuration needs a section [backends.NAME] for each backend. A
    notifier also deletes the files of delivered jobs when their time is up.
    Several may run against one Redis.

    For example:
      downloader notifier -c config.toml

    Args:
        config: Configuration file (TOML), with a section for each backend.
    """
    _run_roles(load(config), "notifier")


def _run_roles(settings: Settings, *roles: str, processes: int = 1) -> None:
    """Run the service until a signal."""
    from downloader.observe import Event, configure, get_logger
    from downloader.service import run_service

    configure(form=settings.log.format, level=settings.log.level)
    log = get_logger()
    for line in settings.deprecations:
        log.warning(Event.CONFIG_DEPRECATED, message=line)
    run_service(settings, roles=frozenset(roles), processes=processes)
