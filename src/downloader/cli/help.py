"""Which commands there are, in which module, and what they say of themselves before they are imported."""

from __future__ import annotations

from dataclasses import dataclass

SUMMARY = "Download files politely: jobs over HTTP, limits per group over a whole fleet, callbacks when done."

EPILOGUE = """\
Examples:
  downloader fetch https://example.org/a.png https://example.org/b.png -o pics
  downloader run
  downloader COMMAND --help

Exit status: 0 done, 1 the work failed, 2 wrong usage or configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of `downloader`."""

    name: str
    place: str
    """`module:function` inside `downloader.cli`."""
    heading: str
    """Of the list of commands."""
    summary: str
    """One line."""
    usage: str
    """What follows the name."""
    epilogue: str
    """Details and examples, printed as they stand."""


COMMANDS = (
    Command(
        name="run",
        place="run:run",
        heading="Serve",
        summary="Run everything: API, processor and notifier.",
        usage="[OPTIONS]",
        epilogue="""\
With no configuration and no Redis it starts its embedded Valkey under the data
folder. Ctrl-C and SIGTERM let downloads in flight finish for a while; a second
one stops at once.

Examples:
  downloader run
  downloader run --port 9000 --allow 10.0.0.0/8 media.internal
  downloader run -c config.toml --processes 4""",
    ),
    Command(
        name="api",
        place="run:api",
        heading="Serve",
        summary="Run the HTTP API alone.",
        usage="[OPTIONS]",
        epilogue="""\
Several may run against one Redis. It needs processors and notifiers beside it.

Example:
  downloader api -c config.toml --host 0.0.0.0""",
    ),
    Command(
        name="processor",
        place="run:processor",
        heading="Serve",
        summary="Run a processor alone: it downloads.",
        usage="[OPTIONS]",
        epilogue="""\
Several may run against one Redis; the limits hold over all of them.

Example:
  downloader processor -c config.toml""",
    ),
    Command(
        name="notifier",
        place="run:notifier",
        heading="Serve",
        summary="Run a notifier alone: it delivers callbacks.",
        usage="[OPTIONS]",
        epilogue="""\
The configuration needs a section [backends.NAME] for each backend. It deletes
delivered files too. Several may run against one Redis.

Example:
  downloader notifier -c config.toml""",
    ),
    Command(
        name="fetch",
        place="fetch:fetch",
        heading="Download now",
        summary="Fetch URLs into a folder, without a service.",
        usage="[OPTIONS] URL...",
        epilogue="""\
A file is named after its URL, "name (2).ext" if that is taken. Nothing is
overwritten, and what is not complete has no name. A terminal gets progress bars
and a table, a pipe a line for each file. Private addresses are allowed.
Exit status: 1 if any file failed, 130 after Ctrl-C.

Examples:
  downloader fetch https://example.org/a.png https://example.org/b.png
  downloader fetch --from-file urls.txt -o pictures --mime "image/*"
  list-urls | downloader fetch --from-file - --limit 8 --json""",
    ),
    Command(
        name="doctor",
        place="doctor:doctor",
        heading="Look",
        summary="Try all that is configured, and say what is wrong.",
        usage="[OPTIONS]",
        epilogue="""\
Writes to the store and the storage and deletes it again, asks each backend's
peer, and looks at folders and ports. It may run beside a service.
Exit status: 1 if any part failed.

Examples:
  downloader doctor
  downloader doctor -c config.toml --json""",
    ),
    Command(
        name="plugins",
        place="look:plugins",
        heading="Look",
        summary="List the installed backends and storages.",
        usage="[OPTIONS]",
        epilogue="""\
Examples:
  downloader plugins
  downloader plugins -c config.toml --json""",
    ),
    Command(
        name="config",
        place="look:config",
        heading="Look",
        summary="Print the effective configuration, without its secrets.",
        usage="[OPTIONS]",
        epilogue="""\
Shows what file, environment and defaults come to, as TOML.

Examples:
  downloader config -c config.toml
  DOWNLOADER_REDIS__URL=redis://localhost downloader config""",
    ),
    Command(
        name="version",
        place="look:version",
        heading="Look",
        summary="Print the version.",
        usage="",
        epilogue="""\
Example:
  downloader version""",
    ),
)
