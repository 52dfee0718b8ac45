"""The pages in docs/ name what the code has: fields, codes, commands, counters, keys of plugins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from downloader.api import _fields
from downloader.cli._help import COMMANDS
from downloader.model import ErrorCode, State
from downloader.notify import Delivered, Payload
from downloader.observe.counters import NOTIFIER_COUNTERS, PROCESSOR_COUNTERS
from downloader.observe.events import Event
from downloader.settings import known_keys
from downloader_plugins.filesystem import FilesystemSettings
from downloader_plugins.http import HttpSettings

ROOT = Path(__file__).parents[2]
API = Path(_fields.__file__).parent

CODE = re.compile(
    r"(?:code=|PydanticCustomError\(\s*|bad_request\(|unavailable\("
    r'|_refuse\(\s*[^,"]+, |_refuse\("[a-z_]+", )"([a-z_]+)"'
)
"""How the API's modules spell a problem's code."""


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def problem_codes() -> set[str]:
    found = set(_fields._CODES.values())
    for module in API.glob("*.py"):
        found.update(CODE.findall(module.read_text("utf-8")))
    return found


def rows(text: str) -> dict[str, tuple[str, ...]]:
    """A page's table rows by the name in their first cell."""
    lines = re.findall(r"^\| `([a-z_]+)` \| (.*) \|$", text, re.MULTILINE)
    return {name: tuple(rest.split(" | ")) for name, rest in lines}


def test_the_search_for_codes_finds_some_of_each_spelling() -> None:
    assert {
        *("required", "bad_json", "cross_site", "url_host", "unknown_backend", "store_unavailable"),
        "own_buckets_unavailable",
    } <= problem_codes()


@pytest.mark.parametrize("code", sorted(problem_codes()))
def test_each_problem_code_is_on_the_api_page(code: str) -> None:
    assert f"`{code}`" in page("api.md")


@pytest.mark.parametrize("field", _fields.DownloadRequest.model_fields)
def test_each_field_of_a_job_is_on_the_api_page(field: str) -> None:
    assert re.search(rf"^\|.*`{field}`.*\|.*\|$", page("api.md"), re.MULTILINE)


@pytest.mark.parametrize("code", [code for code in ErrorCode if code not in ("", "cancelled")])
def test_each_error_code_is_on_the_api_page(code: str) -> None:
    assert f"`{code}`" in page("api.md")


@pytest.mark.parametrize("state", State)
def test_each_state_is_on_the_api_page(state: str) -> None:
    assert f"`{state}`" in page("api.md")


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_each_command_is_on_the_cli_page(command: str) -> None:
    assert f"| `downloader {command}` |" in page("cli.md")


@pytest.mark.parametrize("counters", [PROCESSOR_COUNTERS, NOTIFIER_COUNTERS], ids=["processor", "notifier"])
def test_each_counter_is_on_the_operations_page(counters: dict[str, str]) -> None:
    for name, meaning in counters.items():
        assert f"| `{name}` | {meaning} |" in page("operations.md")


@pytest.mark.parametrize("model", [FilesystemSettings, HttpSettings])
def test_each_key_of_a_built_in_plugin_is_on_the_configuration_page(model: type[BaseModel]) -> None:
    documented = rows(page("configuration.md"))
    for name, info in model.model_fields.items():
        assert name in documented
        if not info.is_required():
            default = info.get_default(call_default_factory=True)
            assert documented[name][0] == f"`{json.dumps(default).removesuffix('.0')}`"


def test_the_configuration_page_shows_the_example_that_has_every_key() -> None:
    assert "../config.toml.example" in page("configuration.md")


@pytest.mark.parametrize("name", ["configuration.md", "operations.md", "security.md", "api.md"])
def test_pages_name_no_key_that_does_not_exist(name: str) -> None:
    known = set(known_keys())
    tables = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    named = re.findall(r"`((?:redis|api|processor|notifier|egress|log)(?:\.[a-z_0-9]+)+)`", page(name))
    free = ("processor.filestorage.",)
    assert named
    named = [name for name in named if name not in set(Event)]
    assert [key for key in named if key not in known | tables and not key.startswith(free)] == []


async def test_the_notifier_of_the_plugins_page_works(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", page("plugins.md"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    payload = Payload(job_id="6QEywYsd0jrKAg", aggr_id="a", body=b'{"success": true}')
    async with names["open_printer"]({}) as notifier:
        assert await notifier.deliver("dst", payload) == Delivered()
    assert capsys.readouterr().out == 'dst 6QEywYsd0jrKAg {"success": true}\n'
