"""The command line: `main`, and a module per command or group of commands.

These modules import little, so that `downloader version`, `--help` and shell completion start fast. Each
command imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cyclopts import App, CycloptsError, Group, Parameter, UnusedCliTokensError

from downloader import __version__
from downloader.cli.aggregations import aggregations, pause, resume
from downloader.cli.audit import audit
from downloader.cli.fetch import fetch
from downloader.cli.groups import groups, wait
from downloader.cli.inspect import config, doctor, health, import_config, plugins, version
from downloader.cli.job import cancel, job, retry
from downloader.cli.jobs import backlog, events, failures, jobs
from downloader.cli.receive import receive
from downloader.cli.roles import api, notifier, processor, run
from downloader.cli.setting_up import completion, config_check, config_init, new_plugin, token_new
from downloader.cli.sizing import size
from downloader.cli.submit import submit
from downloader.cli.top import top
from downloader.errors import ConfigError, DownloaderError, leaves

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses; shells expect 130 of a program ended by Ctrl-C."""

COMMANDS: Mapping[str, Sequence[Callable[..., int | None]]] = {
    "Serve": (run, api, processor, notifier),
    "Try out": (fetch, receive),
    "Operate a running service": (
        submit,
        job,
        jobs,
        failures,
        retry,
        cancel,
        groups,
        wait,
        aggregations,
        pause,
        resume,
        top,
        backlog,
        events,
        audit,
    ),
    "Inspect": (doctor, health, plugins, new_plugin, config, import_config, size, completion, version),
}
"""The commands under the headings of `downloader --help`. The name of a function is the command's, the
docstring is the help."""

SUMMARY = """\
Download files politely: jobs over HTTP, limits per aggregation over a whole fleet,
callbacks when done."""

EPILOGUE = """\
For example:
  downloader fetch https://example.org/a.png https://example.org/b.png -o pics
  downloader run
  downloader submit --wait https://example.org/a.png
  downloader COMMAND --help

Exit status: 0 done, 1 the work failed, 2 wrong usage or configuration."""


def make_app() -> App:
    """The command line's grammar."""
    app = App(
        name="downloader",
        help=SUMMARY,
        help_epilogue=EPILOGUE,
        help_format="plaintext",
        version=__version__,
        default_parameter=Parameter(negative=()),
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for place, (heading, commands) in enumerate(COMMANDS.items()):
        group = Group(heading, sort_key=place)
        for number, command in enumerate(commands):
            app.command(command, group=group, sort_key=number, help_epilogue="")
    app["config"].command(config_init, name="init", help_epilogue="")
    app["config"].command(config_check, name="check", help_epilogue="")
    tokens = App(
        name="token",
        help="Make tokens of the API.",
        help_epilogue="",
        group=app["config"].group,
        sort_key=len(COMMANDS["Inspect"]),
    )
    tokens.command(token_new, name="new", help_epilogue="")
    app.command(tokens)
    app["--help"].show = app["--version"].show = False
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; an expected failure is one line on stderr.

    An invalid configuration gives one line per error.

    Args:
        arguments: without the program's name; `None`: those of the process.
    """
    if os.getpid() == 1:
        _end_at_sigterm()
    _open_streams()
    tokens = command_first(sys.argv[1:] if arguments is None else arguments)
    try:
        status = make_app()(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        return _complain(_wrong_usage(error), USAGE)
    except (DownloaderError, OSError, KeyboardInterrupt, BaseExceptionGroup) as error:
        return _failed(error, cut_off=FAILED if _WORKING.intersection(tokens[:1]) else DONE)
    return status if isinstance(status, int) else DONE


_ANYWHERE = {"--api": 1, "--token": 1, "--config": 1, "-c": 1, "--json": 0}
"""Flags of many commands, which may stand in front of the command, and how many values they have."""

_WORKING = frozenset({"fetch", "submit"})
"""Commands whose work is not done if their output is cut off, for example by `head`."""


def command_first(arguments: Sequence[str]) -> list[str]:
    """Move flags in front of the command to the end, where the command's own flags are."""
    front, rest = list[str](), list(arguments)
    while rest and (name := rest[0].partition("=")[0]) in _ANYWHERE:
        size = 1 + (_ANYWHERE[name] if rest[0] == name else 0)
        front, rest = [*front, *rest[:size]], rest[size:]
    end = rest.index("--") if "--" in rest else len(rest)
    return [*rest[:end], *front, *rest[end:]]


def _open_streams() -> None:
    """Open standard streams closed by the parent process on /dev/null; Python leaves `None`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # for good


def _wrong_usage(error: CycloptsError) -> str:
    """One line for the user: the error in the command line, and the command for help."""
    text = str(error)
    if isinstance(error, UnusedCliTokensError):
        text = f"Unexpected argument: {' '.join(error.unused_tokens or ())}."
    command = " ".join(["downloader", *(error.command_chain or ())])
    return f"{text.rstrip('.')} (see {command} --help)"


def _end_at_sigterm() -> None:
    """Let SIGTERM end process 1 of a container until the service sets handlers.

    The kernel drops signals to process 1 that have no handler. A SIGTERM during imports would be lost, and
    the container would be killed after the grace period.
    """
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


def _failed(error: BaseException, *, cut_off: int = FAILED) -> int:
    """The exit status for an expected error; raises any other error again.

    `cut_off` is the status when the reader of the output has gone.
    """
    errors = list(leaves(error))
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in errors):
        return INTERRUPTED
    if all(isinstance(leaf, OSError) and leaf.errno in (errno.EPIPE, errno.ENOSPC) for leaf in errors):
        sys.stdout = None  # otherwise the interpreter prints another error when flushing at exit
        full = any(leaf.errno == errno.ENOSPC for leaf in errors if isinstance(leaf, OSError))
        return _complain(os.strerror(errno.ENOSPC), FAILED) if full else cut_off
    if not all(isinstance(leaf, DownloaderError) for leaf in errors):
        raise error
    if not isinstance(errors[0], ConfigError):
        return _complain(str(errors[0]), FAILED)
    for line in (str(errors[0]), *errors[0].others):
        _complain(line, USAGE)
    return USAGE


def _complain(message: str, status: int) -> int:
    line = " ".join(message.split())
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
    sys.stderr.write(f"downloader: {shown}\n")
    return status
