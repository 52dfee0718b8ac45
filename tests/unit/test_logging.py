import io
import json
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal

import pytest

from downloader.observe import Event, configure, get_logger
from downloader.printable import escape

Lines = Callable[[], list[str]]
Configure = Callable[..., Lines]


@pytest.fixture
def configured() -> Configure:
    """Configures logging into memory."""

    def setup(
        form: Literal["auto", "console", "json"], stream: io.StringIO | None = None, **kw: Any
    ) -> Lines:
        out = stream if stream is not None else io.StringIO()
        configure(form=form, stream=out, **kw)
        return lambda: out.getvalue().splitlines()

    return setup


def fail(why: str) -> None:
    raise OSError(why)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_has_event_level_time_and_fields(configured: Configure) -> None:
    lines = configured("json")
    get_logger(role="api").info(Event.JOB_FAILED, job="J", error="no\x1b[31m\n\u202e")
    [line] = lines()
    assert line.isascii()
    entry = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "event": "job.failed",
        "level": "info",
        "job": "J",
        "role": "api",
        "error": "no\x1b[31m\n\u202e",
    }


@pytest.mark.row("H14")
def test_console_escapes_what_a_client_sent(configured: Configure) -> None:
    lines = configured("console")
    log = get_logger()
    log.info(
        Event.JOB_FAILED,
        error='a b" level=x',
        esc="\x1b[0m",
        bidi="\u202e",
        many=["\x1b"],
        nl="x\nlevel=error",
    )
    log.info("bad\x1bevent\nline")
    [first, second] = lines()
    assert "\x1b" not in first + second
    assert "\u202e" not in first
    assert r'error="a b\" level=x"' in first
    assert r'esc="\x1b[0m"' in first
    assert r'nl="x\nlevel=error"' in first
    assert r"bad\x1bevent\nline" in second


def test_auto_is_console_on_a_terminal_and_json_elsewhere(configured: Configure) -> None:
    lines = configured("auto")
    get_logger().info(Event.API_OPEN)
    assert json.loads(lines()[0])["event"] == "api.open"
    lines = configured("auto", Terminal())
    get_logger().info(Event.API_OPEN, job="J")
    assert "job" in lines()[0]
    assert not lines()[0].startswith("{")


def test_level_applies_to_loggers_made_before(configured: Configure) -> None:
    log = get_logger()
    lines = configured("json", level="warning")
    log.info(Event.JOB_ACCEPTED)
    log.warning(Event.JOB_RETRY)
    assert [json.loads(line)["event"] for line in lines()] == ["job.retry"]


def test_libraries_and_warnings_come_out_alike(configured: Configure) -> None:
    lines = configured("json")
    logging.getLogger("hypercorn.error").warning("port %s\n", 80)
    logging.getLogger("hypercorn.error").info("chatter")
    try:
        fail("gone")
    except OSError:
        logging.getLogger("redis").exception("lost")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)
    first, second, third = map(json.loads, lines())
    assert (first["event"], first["logger"], first["message"]) == ("library", "hypercorn.error", "port 80\n")
    assert (second["logger"], second["message"], second["level"]) == ("redis", "lost", "error")
    assert "OSError: gone" in second["exception"]
    assert third["logger"] == "py.warnings"


def test_an_exception_keeps_its_lines_and_loses_its_escapes(configured: Configure) -> None:
    lines = configured("console")
    try:
        fail("gone \x1b[31m")
    except OSError:
        get_logger().exception(Event.SERVICE_FAILED)
    assert lines()[-1] == r"OSError: gone \x1b[31m"
    assert len(lines()) > 2


def test_long_values_are_cut(configured: Configure) -> None:
    for form in ("json", "console"):
        lines = configured(form)
        get_logger().info(Event.JOB_FAILED, error="x" * 10_000)
        assert len(lines()[0]) < 3000
        assert "(10000 characters)" in lines()[0]
    assert escape("a\x00b") == r"a\x00b"
    assert escape("\ud800") == r"\ud800"


def test_a_closed_stream_loses_lines_only(configured: Configure) -> None:
    stream = io.StringIO()
    configured("json", stream)
    stream.close()
    get_logger().info(Event.JOB_ACCEPTED)


def test_default_stream_is_standard_error(configured: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    configure(form="json", stream=sys.stderr)
    get_logger().info(Event.JOB_ACCEPTED)
    captured = capsys.readouterr()
    assert (captured.out, json.loads(captured.err)["event"]) == ("", "job.accepted")


def test_events_are_named_alike() -> None:
    for event in Event:
        assert event.value == event.name.lower().replace("_", ".", 1)
