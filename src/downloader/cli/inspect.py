"""The commands that inspect an installation: `doctor`, `health`, `plugins`, `config` and the like."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from downloader import __version__
from downloader.cli.options import Config, Json, load, name_of, read_text
from downloader.cli.output import Cell, show_table, write
from downloader.cli.roles import api, run
from downloader.errors import ConfigError, DownloaderError, PluginError
from downloader.printable import escape

if TYPE_CHECKING:
    from downloader.config import Settings
    from downloader.service import Finding

_STYLES = {"ok": "green", "failed": "bold red", "note": "yellow"}
"""Colours by state of a finding."""

Row = dict[str, Any]
"""A plugin's `kind`, `name`, `version` and `distribution`; whether `configured`; and why a configured plugin
cannot be used, as `problem`, else empty."""

COLUMNS = ("name", "kind", "version", "distribution", "configured")


def doctor(*, config: Config = None, json_: Json = False) -> int:
    """Try all that is configured, and say what is wrong.

    Writes to the store and to the storage and deletes it again, asks the peer of
    each backend, and looks at folders and ports. It may run beside a service.
    The exit status is 1 if any part failed.

    For example:
      downloader doctor
      downloader doctor -c config.toml --json

    Args:
        config: Configuration file (TOML). Without one: defaults, and HTTP callbacks.
        json_: Print a JSON array.
    """
    from rich.console import Console

    from downloader.config import with_default_backend
    from downloader.observe import configure
    from downloader.service import diagnose

    settings = load(config)
    if config is None:
        settings = with_default_backend(settings)

    def show(findings: Sequence[Finding]) -> None:
        if json_:
            write(json.dumps([asdict(finding) for finding in findings], indent=2))
        elif sys.stdout.isatty():
            show_table(("", "", ""), [_finding_cells(finding) for finding in findings])
        else:
            for finding in findings:
                write(f"{finding.state:<6} {finding.part}: {escape(finding.text)}")

    # A finding has the error of its part; the part's own logs are not shown.
    configure(form="json", level="error", stream=io.StringIO())
    with Console(stderr=True).status("trying all that is configured"):
        findings = diagnose(settings, show=show)
    show(findings)
    return 1 if any(finding.state == "failed" for finding in findings) else 0


def _finding_cells(finding: Finding) -> Sequence[Cell]:
    return (finding.state.value, _STYLES[finding.state]), (finding.part, "bold"), finding.text


def health(*, pid: Annotated[int, Parameter(name="--pid")] = 1) -> None:
    """Tell by the exit status whether the service in this container is healthy.

    Asks the API of a running service GET /health/live, at the address that
    the arguments of its process and its configuration give. A processor or
    notifier has no port: it counts as healthy while its process runs. The
    image uses it as its health check. Linux only.

    For example:
      downloader health
      downloader health --pid 4711

    Args:
        pid: Process id of the service; 1 in a container.
    """
    from downloader.cli import command_first, make_app

    try:
        words = Path(f"/proc/{pid}/cmdline").read_text("utf-8").split("\0")[:-1]
    except OSError as error:
        raise DownloaderError(f"process {pid}: {error.strerror}") from error
    arguments = command_first(list(dropwhile(lambda word: Path(word).name != "downloader", words))[1:])
    command, bound, _ = make_app().parse_args(arguments, exit_on_error=False, print_error=False)
    if command in (run, api):
        from httpx2 import HTTPTransport

        from downloader.client import Client

        flags = {f"api.{name}": bound.arguments.get(name) for name in ("host", "port")}
        settings = load(bound.arguments.get("config"), flags).api
        # The certificate is not checked: the connection stays on this machine.
        with Client(settings.local_url, retries=0, transport=HTTPTransport(verify=False)) as client:
            client.ping()


def plugins(*, config: Config = None, json_: Json = False) -> None:
    """List the installed backends and storages.

    Says which of them the configuration uses, and imports none. The exit status
    is 2 if a configured one is not installed, is installed twice, or lacks a
    package.

    For example:
      downloader plugins
      downloader plugins -c config.toml --json

    Args:
        config: Configuration file (TOML).
        json_: Print a JSON array instead of a table.
    """
    rows, problem = list_plugins(load(config))
    if json_:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        show_table(COLUMNS, [_cells(row) for row in rows])
    sys.stdout.flush()
    if problem is not None:
        raise problem


def list_plugins(settings: Settings) -> tuple[Sequence[Row], PluginError | None]:
    """Rows for installed or configured plugins, and the first problem; imports no plugin."""
    from downloader.plugins import (
        BUCKETS,
        KINDS,
        NOTIFIERS,
        STORAGES,
        PluginInfo,
        installed,
        missing_package,
    )
    from downloader.storage import CLOUD_BUCKETS, OWN_BUCKETS

    buckets = (
        [OWN_BUCKETS] if settings.processor.s3.is_set or not missing_package(BUCKETS, OWN_BUCKETS) else []
    )
    buckets += [CLOUD_BUCKETS] if settings.processor.cloud.buckets else []
    used = {
        NOTIFIERS: {name: f"backends.{name}" for name in settings.backends},
        STORAGES: {settings.storage_name: "processor.filestorage"},
        BUCKETS: {name: f"processor.{name}" for name in buckets},
    }
    rows: list[Row] = []
    first: PluginError | None = None
    for group, places in used.items():
        problems = {name: _problem(group, name) for name in places}
        for name, problem in problems.items():
            if problem and first is None:
                first = PluginError(f"{places[name]}: {problem}")
        listed = installed(group)
        missing = places.keys() - {plugin.name for plugin in listed}
        listed += [
            PluginInfo(kind=KINDS[group], name=name, version="", distribution="") for name in sorted(missing)
        ]
        for plugin in listed:
            state = {"configured": plugin.name in places, "problem": problems.get(plugin.name, "")}
            rows.append({**asdict(plugin), **state})
    return rows, first


def _problem(group: str, name: str) -> str:
    """Why a configured plugin cannot be used; empty for a usable plugin."""
    from downloader.plugins import find, missing_package

    try:
        find(group, name)
    except PluginError as error:
        return str(error)
    return missing_package(group, name)


def _use(row: Row) -> str:
    if not row["problem"]:
        return "yes" if row["configured"] else ""
    if not row["distribution"] and not row["version"]:
        return "yes, but not installed"
    return f"yes, but {row['problem']}" if row["problem"].startswith("needs ") else "yes, but installed twice"


def _cells(row: Row) -> Sequence[Cell]:
    name, *texts = (row[column] for column in COLUMNS[:-1])
    return (
        (name, "bold" if row["configured"] else ""),
        *texts,
        (_use(row), "red" if row["problem"] else "green"),
    )


def config(*, config: Config = None, json_: Json = False) -> None:
    """Print the effective configuration, without secrets.

    It is the result of file, environment and defaults, as TOML.

    For example:
      downloader config -c config.toml
      DOWNLOADER_REDIS__URL=redis://localhost downloader config

    Args:
        config: Configuration file (TOML).
        json_: Print a JSON object instead.
    """
    import tomli_w

    from downloader.config import redacted

    effective = redacted(load(config))
    # A plugin's table may have TOML's dates and times, which JSON lacks.
    sys.stdout.write(
        f"{json.dumps(effective, indent=2, default=str)}\n" if json_ else tomli_w.dumps(effective)
    )


def version(*, json_: Json = False) -> None:
    """Print the version.

    For example:
      downloader version

    Args:
        json_: Print a JSON object.
    """
    sys.stdout.write(f'{{"version": "{__version__}"}}\n' if json_ else f"{__version__}\n")


def import_config(
    file: Annotated[Path, Parameter(name="FILE", allow_leading_hyphen=True)],
    /,
    *more: Annotated[Path, Parameter(name="FILE", show_default=False)],
) -> None:
    """Print the predecessor's configuration as a TOML file for this service.

    What has changed, and what has no counterpart, has a comment there. If each
    role of the predecessor has a file of its own, name them all: here one file is
    for all roles. The page docs/migration.md tells what else differs, and how to
    change over.

    For example:
      downloader import-config config.json > config.toml
      downloader import-config api.json processor.json notifier.json > config.toml
      downloader config -c config.toml

    Args:
        file: The predecessor's configuration (JSON), or - for standard input.
        more: Further files of the predecessor.
    """
    from downloader.config import import_config as convert
    from downloader.config import load_settings

    sources = [str(path) for path in (file, *more)]
    name = ", ".join(map(name_of, sources))
    files = [_read_old_config(source) for source in sources]
    try:
        converted = convert(*files)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as copy:
        copy.write(converted)
        copy.flush()
        try:
            load_settings(Path(copy.name), environ={}, overrides={})
        except ConfigError as error:
            lines = (str(error), *error.others)
            raise ConfigError(*(line.replace(copy.name, f"{name}, converted", 1) for line in lines)) from None
    sys.stdout.write(converted)


def _read_old_config(source: str) -> dict[str, Any]:
    from downloader.config import read_old_config

    text = "".join(read_text(source))
    try:
        return read_old_config(text)
    except ConfigError as error:
        raise ConfigError(f"{name_of(source)}: {error}") from None
