"""The tables of the plugins page are what the built-in plugins' settings say of themselves."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from downloader_plugins.filesystem import FilesystemSettings
from downloader_plugins.http import HttpSettings
from downloader_plugins.kafka.settings import KafkaSettings
from downloader_plugins.s3.settings import BucketsSettings, S3StorageSettings
from downloader_plugins.sqs import SqsSettings
from downloader_plugins.storage import StorageNotifierSettings

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text("utf-8")

MODELS: dict[str, type[BaseModel]] = {
    "HttpSettings": HttpSettings,
    "KafkaSettings": KafkaSettings,
    "SqsSettings": SqsSettings,
    "FilesystemSettings": FilesystemSettings,
    "S3StorageSettings": S3StorageSettings,
    "BucketsSettings": BucketsSettings,
}

TYPES = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", ByteSize: "size"}


def table(model: type[BaseModel]) -> str:
    """The model's keys as the page has them."""
    meanings = {name: text for cls in reversed(model.__mro__) for name, text in field_docstrings(cls).items()}
    rows = [
        f"| `{name}` | {type_of(info.annotation)} | {default_of(info)} | {meanings.get(name, '')} |"
        for name, info in model.model_fields.items()
    ]
    return "\n".join(["| key | type | default | means |", "|---|---|---|---|", *rows])


def field_docstrings(cls: type) -> dict[str, str]:
    """The texts under a class's fields, each on one line."""
    if cls.__module__.partition(".")[0] != "downloader_plugins":
        return {}
    [node] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                found[name] = " ".join(words.split()).removesuffix(".")
    return found


def type_of(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(type_of(one) for one in arguments if one is not types.NoneType)
    if origin is Literal:
        choices = [f"`{json.dumps(one)}`" for one in arguments]
        return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
    if origin is list:
        return "list of texts" if type_of(arguments[0]) == "text" else "list"
    if arguments:  # Annotated
        return type_of(arguments[0])
    return TYPES[annotation]


def default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True)
    if default is None:
        return "none"
    if isinstance(default, ByteSize):
        return f'`"{default.human_readable().replace(".0", "")}"`'
    return f"`{json.dumps(default).removesuffix('.0')}`"


@pytest.mark.parametrize("name", MODELS)
def test_each_key_of_a_built_in_plugin_is_told(name: str) -> None:
    wanted = table(MODELS[name])
    assert wanted in PAGE, f"docs/plugins.md should have\n\n{wanted}"


@pytest.mark.parametrize("name", MODELS)
def test_each_key_says_what_it_means(name: str) -> None:
    assert [row for row in table(MODELS[name]).splitlines() if row.endswith("|  |")] == []


def test_what_is_said_to_have_no_keys_has_none() -> None:
    assert StorageNotifierSettings.model_fields == {}


def test_the_suites_attributes_are_told() -> None:
    from downloader.testing import NotifierContract, StorageContract  # noqa: PLC0415 - named here only

    told = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+)`? \| (?:of storages: )?s", PAGE, re.MULTILINE))
    names = {
        name
        for suite in (NotifierContract, StorageContract)
        for base in suite.__mro__
        for name, value in vars(base).items()
        if isinstance(value, int | float) and not name.startswith("_")
    }
    assert set(told) == names
    assert {
        name: str(getattr(StorageContract, name)).removesuffix(".0") for name in told if name != "large_bytes"
    } == {name: value.strip() for name, value in told.items() if name != "large_bytes"}
