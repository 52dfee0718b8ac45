"""How errors that come out of a command become an exit status and one line."""

import errno
import io
import os
import sys
from typing import get_args

import pytest

from downloader.cli import _failed, command_first, main
from downloader.errors import ConfigError, PluginError, StoreUnavailable
from downloader.model import ErrorCode, ErrorName, State, StateName


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("key is wrong"), 2, "downloader: key is wrong\n"),
        (PluginError("no plugin"), 2, "downloader: no plugin\n"),
        (StoreUnavailable("gone\nfor \x1b good"), 1, "downloader: gone for \\x1b good\n"),
        (ExceptionGroup("n", [ExceptionGroup("n", [ConfigError("deep")])]), 2, "downloader: deep\n"),
        (ExceptionGroup("n", [StoreUnavailable("a"), ConfigError("b")]), 1, "downloader: a\n"),
        (BaseExceptionGroup("n", [KeyboardInterrupt(), StoreUnavailable("a")]), 130, ""),
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.EPIPE, "Broken pipe"), 1, ""),
        (OSError(errno.ENOSPC, "No space left"), 1, "downloader: No space left on device\n"),
    ],
)
def test_expected_errors(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    assert _failed(error) == status
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(("command", "status"), [("version", 0), ("plugins", 0), ("fetch", 1)])
def test_output_that_is_cut_off(monkeypatch: pytest.MonkeyPatch, command: str, status: int) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("downloader.cli.make_app", lambda: cut_off)
    assert main([command]) == status


@pytest.mark.parametrize(
    ("given", "arranged"),
    [
        ([], []),
        (["--json", "jobs", "-n", "1"], ["jobs", "-n", "1", "--json"]),
        (["-c", "x", "--api=y", "config", "check"], ["config", "check", "-c", "x", "--api=y"]),
        (["--api", "y", "job", "--", "-x"], ["job", "--api", "y", "--", "-x"]),
        (["--help"], ["--help"]),
        (["--api"], ["--api"]),
    ],
)
def test_flags_in_front_of_the_command(given: list[str], arranged: list[str]) -> None:
    assert command_first(given) == arranged


def test_the_choices_are_the_codes() -> None:
    assert {*get_args(ErrorName), ""} == {*ErrorCode}
    assert {*get_args(StateName)} == {*State}


@pytest.mark.parametrize(
    "error", [ExceptionGroup("n", [ConfigError("a"), ValueError("a bug")]), ExceptionGroup("n", [OSError()])]
)
def test_a_bug_is_no_expected_error(error: BaseException) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        _failed(error)
    assert caught.value is error


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_stream_that_the_parent_has_closed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, name, None)
    assert main(["version"]) == 0
    assert main(["no-such-command"]) == 2
    getattr(sys, name).close()


def test_a_full_disk_under_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(
        sys, "stdout", io.TextIOWrapper(io.FileIO(full, "w", closefd=False), line_buffering=False)
    )
    assert main(["version"]) == 1
    os.close(full)
    assert capsys.readouterr().err == "downloader: No space left on device\n"
