"""The command line: `main`, and which module holds which command.

A command's module is imported only when it is asked for, so that `downloader version` and shell completion
do not wait for the network libraries; inside those modules, so are the parts that only some commands need.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence

from cyclopts import App, CycloptsError, Group, Parameter

from downloader.cli.help import COMMANDS, EPILOGUE, SUMMARY
from downloader.errors import ConfigError, DownloaderError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: 130 is what shells expect of a program ended by Ctrl-C."""


def make_app() -> App:
    """The command line's grammar."""
    app = App(
        name="downloader",
        help=SUMMARY,
        help_epilogue=EPILOGUE,
        help_format="plaintext",
        version_flags=[],
        default_parameter=Parameter(negative=()),
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    headings = {
        name: Group(name, sort_key=place)
        for place, name in enumerate(dict.fromkeys(command.heading for command in COMMANDS))
    }
    for place, command in enumerate(COMMANDS):
        app.command(
            f"downloader.cli.{command.place}",
            name=command.name,
            help=command.summary,
            usage=f"Usage: downloader {command.name} {command.usage}".rstrip(),
            help_epilogue=command.epilogue,
            group=headings[command.heading],
            sort_key=place,
        )
    app["--help"].show = False
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and answer the exit status; every expected failure is one line on stderr.

    Args:
        arguments: without the program's name; `None` takes the process's.
    """
    if os.getpid() == 1:
        _be_stoppable()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = make_app()(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _complain(f"{error} (see downloader --help)", USAGE)
    except (DownloaderError, BrokenPipeError, KeyboardInterrupt, BaseExceptionGroup) as error:
        return _failed(error)
    return status if isinstance(status, int) else DONE


def _be_stoppable() -> None:
    """Let SIGTERM end this process, as it ends any other until it has its own handlers.

    The kernel keeps from process 1 of a container every signal that it has no handler for. A stop that comes
    while modules are being imported would be lost, and the container killed when patience is over.
    """
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


def _failed(error: BaseException) -> int:
    """The exit status for an error that is expected; raises any other one again."""
    leaves = list(_leaves(error))
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return INTERRUPTED
    if all(isinstance(leaf, BrokenPipeError) for leaf in leaves):
        sys.stdout = None  # else the interpreter complains while it flushes it
        return FAILED
    if not all(isinstance(leaf, DownloaderError) for leaf in leaves):
        raise error
    return _complain(str(leaves[0]), USAGE if isinstance(leaves[0], ConfigError) else FAILED)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """What nurseries have wrapped."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _complain(message: str, status: int) -> int:
    line = " ".join(message.split())
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
    sys.stderr.write(f"downloader: {shown}\n")
    return status
