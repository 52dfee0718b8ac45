"""The reference is made from the code: each table can be made, is on one page, and each row is described."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from downloader.config.read import known_keys
from downloader.observe import Event
from downloader.testing import NotifierContract, StorageContract
from downloader_plugins.file_notifier import FileNotifierSettings

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE: dict[str, Any] = runpy.run_path(str(DOCS / "reference.py"))
PAGES = {path: path.read_text("utf-8") for path in DOCS.rglob("*.md")}


@pytest.mark.parametrize("name", REFERENCE["TABLES"])
def test_each_table_can_be_made_and_is_on_one_page(name: str) -> None:
    assert REFERENCE["TABLES"][name]().strip()
    assert sum(text.count(f"```{{generated}} {name}\n") for text in PAGES.values()) == 1


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_asks_for_a_table_that_is_none(path: Path) -> None:
    assert "{generated}" not in REFERENCE["fill"](PAGES[path])


def test_a_row_without_a_description_is_an_error() -> None:
    texts = REFERENCE["docstrings"](Event)
    assert REFERENCE["text_of"](texts, Event, "DISK_FULL").endswith(".")
    del texts["DISK_FULL"]
    with pytest.raises(LookupError, match=r"Event\.DISK_FULL has no description"):
        REFERENCE["text_of"](texts, Event, "DISK_FULL")


def test_the_settings_have_every_key() -> None:
    text = REFERENCE["settings"]()
    headings = {f"`[{path}]`" for path in ("redis.sentinel", "processor.s3", "egress.callbacks", "log")}
    assert {line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")} >= headings
    told = set(re.findall(r"^`(\w+)`\n: ", text, re.MULTILINE))
    tables = {name for key in known_keys() for name in key.split(".")[:-1]} | {"hosts"}
    assert {key.rpartition(".")[2] for key in known_keys()} - tables <= told


def test_the_storage_backend_has_no_keys() -> None:
    assert FileNotifierSettings.model_fields == {}


def test_commands_show_their_options_and_examples() -> None:
    text = REFERENCE["commands"]()
    assert "### downloader import-config\n" in text
    assert "* `--processes INT`: How many" in text
    assert "```sh\ndownloader run\n" in text
    assert re.findall(r"^\* `[^`]+`(?!: \S).*", text, re.MULTILINE) == [], "an option without help"


def test_both_suites_have_the_same_times() -> None:
    assert NotifierContract.answer_s == StorageContract.answer_s
