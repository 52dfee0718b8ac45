"""`downloader config init`, `config check`, `token new`, `new-plugin` and `completion`: for setting up."""

from __future__ import annotations

import errno
import os
import re
import secrets
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from downloader.cli.options import Config, load
from downloader.cli.output import write
from downloader.errors import ConfigError
from downloader.printable import escape

TOKEN_BYTES = 32
"""Random bytes of a token, enough that it cannot be guessed."""

TEMPLATE_NAME = "hook"
"""Name of the plugin in `downloader/template`."""

INSTALLED = "config/example.toml"
"""The example in an installed package; a clone has it as `config.toml.example`."""


def config_init(file: Annotated[Path | None, Parameter(name="FILE")] = None, /) -> None:
    """Write a configuration file with all keys, their defaults and comments.

    For example:
      downloader config init config.toml
      downloader config init

    Args:
        file: The file; it must not be there yet. Without one: standard output.
    """
    package = Path(__file__).parents[1]
    example = package / INSTALLED
    if not example.exists():
        example = package.parents[1] / "config.toml.example"
    text = example.read_text("utf-8")
    if file is None:
        sys.stdout.write(text)
        return
    _write_new(file, text)


def config_check(*, config: Config = None) -> None:
    """Check a configuration without starting or connecting to anything.

    Keys, values and the installed plugins are checked; "downloader doctor" also
    tries them. The exit status is 2 if anything is wrong, with a line for each error.

    For example:
      downloader config check -c config.toml

    Args:
        config: Configuration file (TOML).
    """
    from downloader.cli.inspect import list_plugins

    settings = load(config)
    _, problem = list_plugins(settings)
    if problem is not None:
        raise problem
    for line in settings.deprecations:
        write(f"note: {escape(line)}")
    write(f"{escape(str(config or 'the environment'))}: ok")


def token_new(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    scope: Annotated[
        tuple[Literal["submit", "read", "retry", "admin"], ...], Parameter(name="--scope", show_default=False)
    ] = ("submit", "read"),
) -> None:
    """Make a random token of the API, and print its table for the configuration.

    For example:
      downloader token new shop --scope submit --scope read >> config.toml

    Args:
        name: Name of the token, for logs.
        scope: What the token may do; may be repeated. Default: submit and read.
    """
    import tomli_w
    from pydantic import ValidationError

    from downloader.config import TokenSettings

    table = {"name": name, "token": secrets.token_urlsafe(TOKEN_BYTES), "scopes": list(scope)}
    try:
        TokenSettings.model_validate(table)
    except ValidationError:
        raise ConfigError("NAME must be 1 to 64 printable ASCII characters without blanks") from None
    sys.stdout.write(f"\n[[api.tokens]]\n{tomli_w.dumps(table)}")


def new_plugin(
    name: Annotated[str, Parameter(name="NAME")],
    folder: Annotated[Path, Parameter(name="FOLDER")] = Path(),
    /,
) -> None:
    """Write the package of a notifier plugin: a webhook that requires a token, with its tests.

    It writes three files, and replaces none that is there already.

    For example:
      downloader new-plugin hook

    Args:
        name: Name of the backend: lower-case letters, digits and underscores.
        folder: Where the files are written. Default: here.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
        raise ConfigError("NAME must be lower-case letters, digits and underscores, beginning with a letter")
    texts = {
        folder / path.name.replace(TEMPLATE_NAME, name): path.read_text("utf-8")
        for path in sorted((Path(__file__).parents[1] / "template").iterdir())
        if path.is_file()
    }
    if (taken := next(filter(Path.exists, texts), None)) is not None:
        raise ConfigError(f"{taken}: {os.strerror(errno.EEXIST)}")
    for file, text in texts.items():
        # The name is also in the name of the class, as `Hook`.
        written = text.replace(TEMPLATE_NAME.title(), name.title()).replace(TEMPLATE_NAME, name)
        _write_new(file, written)
        write(str(file))


def _write_new(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(name="SHELL")], /) -> None:
    """Print the script for the completion of commands, flags and values.

    Each shell loads such scripts from a folder, see below.

    For example:
      downloader completion bash > /etc/bash_completion.d/downloader
      downloader completion zsh > /usr/local/share/zsh/site-functions/_downloader
      downloader completion fish > ~/.config/fish/completions/downloader.fish

    Args:
        shell: The shell.
    """
    from downloader.cli import make_app

    write(make_app().generate_completion(prog_name="downloader", shell=shell))
