"""How errors that come out of a command become an exit status and one line."""

import pytest

from downloader.cli import _failed
from downloader.errors import ConfigError, PluginError, StoreUnavailable


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
    ],
)
def test_expected_errors(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    assert _failed(error) == status
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    "error", [ExceptionGroup("n", [ConfigError("a"), ValueError("a bug")]), ExceptionGroup("n", [OSError()])]
)
def test_a_bug_is_no_expected_error(error: BaseException) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        _failed(error)
    assert caught.value is error
