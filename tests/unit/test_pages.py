"""The pages in docs/ name what the code has: fields, codes, commands, counters."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from downloader.api import fields, parse
from downloader.api.problems import CODES
from downloader.config.read import known_keys
from downloader.model import ErrorCode, State
from downloader.observe import Event
from downloader.wire import Job, JobFile, JobResponse

ROOT = Path(__file__).parents[2]
API = Path(fields.__file__).parent

CODE = re.compile(
    r"(?:Problem\(\s*[^,\"]+,\s*|\bcode=|FieldError\(\s*|UrlError\(\s*|\b_?(?:problem|refused|refuse)\(\s*"
    r'|HttpError\([^,"]+, |fault_in\(\s*[^,"]+, |fault_in\(\s*"[a-z_]+", )"([a-z_]+)"'
)
"""How the API's modules spell a problem's code."""


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def problem_codes() -> set[str]:
    found = set(parse._CODES.values())
    for module in (*API.rglob("*.py"), *(API.parent / "server").glob("*.py"), API.parent / "net" / "url.py"):
        found.update(CODE.findall(module.read_text("utf-8")))
    return found - {"url"}  # answered with the code of the `UrlError`


def test_the_search_for_codes_finds_some_of_each_spelling() -> None:
    assert {
        *("required", "bad_json", "cross_site", "url_host", "unknown_backend", "store_unavailable"),
    } <= problem_codes()


def test_each_problem_code_has_a_meaning() -> None:
    assert problem_codes() - CODES.keys() == set()


def test_the_web_page_has_words_for_each_reason_of_a_failure() -> None:
    words = (API.parent / "web" / "words.js").read_text("utf-8")
    reasons = words.partition("REASONS = {")[2].partition("}")[0]
    assert set(re.findall(r"^ *(\w+):", reasons, re.MULTILINE)) == {*ErrorCode, "callback"} - {""}


def test_each_reason_of_a_failed_download_has_a_remedy() -> None:
    table = page("errors.md").partition("\n## Of a request")[0]
    rows = [re.split(r" *\| *", line)[1:-1] for line in table.splitlines() if line.startswith("| `")]
    codes = {code for row in rows for code in re.findall(r"`(\w+)`", row[0])}
    assert codes == {*ErrorCode, "error_code"} - {""}
    assert all(len(row) == 5 and all(row) for row in rows)


@pytest.mark.parametrize("state", State)
def test_each_state_is_on_the_api_page(state: str) -> None:
    assert f"`{state}`" in page("api/jobs.md")


@pytest.mark.parametrize("model", [Job, JobFile, JobResponse])
def test_each_field_of_a_job_is_on_the_api_page(model: type[BaseModel]) -> None:
    table = page("api/jobs.md").partition("\n## DELETE")[0]
    assert {name for name in model.model_fields if f"`{name}`" not in table} == set()


def test_pages_name_no_key_that_does_not_exist() -> None:
    known = set(known_keys())
    tables = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    free = ("processor.filestorage.", "processor.autoscaling", "notifier.autoscaling", "redis.conf")
    named = {
        (path.name, key)
        for path in (ROOT / "docs").rglob("*.md")
        for key in re.findall(
            r"`((?:redis|api|processor|notifier|egress|log)(?:\.[a-z_0-9]+)+)`", path.read_text("utf-8")
        )
    }
    assert len(named) > 50
    wrong = {(name, key) for name, key in named if key not in known | tables | set(Event)}
    assert {one for one in wrong if not one[1].startswith(free)} == set()


def test_the_image_imports_modules_that_exist() -> None:
    """It compiles them when it is built, which no quick test does."""
    [line] = re.findall(
        r"^import (downloader\.[\w., ]+);", (ROOT / "Containerfile").read_text("utf-8"), re.MULTILINE
    )
    for name in line.split(", "):
        assert importlib.util.find_spec(name), name


def test_nothing_says_to_install_the_other_project_of_the_name() -> None:
    """PyPI's `downloader` is somebody else's; ours is `downloader-service`."""
    files = [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "src").rglob("*.py"),
        *ROOT.glob("*.md"),
        *ROOT.glob("examples/*/*.md"),
    ]
    wrong = re.compile(r"pip install[^\n|&]*[ '\"]downloader(?:\[|['\"\s]|$)")
    assert [path for path in files if wrong.search(path.read_text("utf-8"))] == []


def test_servers_of_the_pages_print_a_line_in_one_write() -> None:
    """With several writes the lines of several threads mix."""
    lines = [
        line.strip()
        for path in (ROOT / "docs").rglob("*.md")
        for handler in re.findall(
            r"\(BaseHTTPRequestHandler\):\n(.*?)\n\S", path.read_text("utf-8"), re.DOTALL
        )
        for line in handler.splitlines()
        if "print(" in line
    ]
    assert lines
    assert [line for line in lines if not re.fullmatch(r'print\(f".*\\n", end="", flush=True\)', line)] == []
