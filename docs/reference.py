"""Tables of the reference, made from the code when the documentation is built.

A page has a block `{generated} NAME` where the table NAME is to stand. A setting, field or option without a
description is an error.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ByteSize, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo

from downloader.api.problems import CODES
from downloader.api.routes import ROUTES
from downloader.cli import COMMANDS, make_app
from downloader.config.models import Settings
from downloader.observe import Event
from downloader.observe.counters import NOTIFIER_COUNTERS, PROCESSOR_COUNTERS
from downloader.observe.metrics import METRICS
from downloader.service.predecessor import NOTIFIER_NAMES, PROCESSOR_NAMES
from downloader.store import KEYS
from downloader.testing import StorageContract
from downloader.wire import DownloadRequest
from downloader_plugins.cloud import CloudStorageSettings
from downloader_plugins.filesystem import FilesystemSettings
from downloader_plugins.http import DestinationSettings, HttpSettings
from downloader_plugins.kafka.settings import KafkaSettings
from downloader_plugins.s3.settings import BucketsSettings, S3StorageSettings
from downloader_plugins.sqs import SqsSettings

KIB = 1024

LUA = Path(__file__).parents[1] / "src/downloader/store/lua"

BLOCK = re.compile(r"^```\{generated\} ([\w-]+)\n.*?^```$", re.MULTILINE | re.DOTALL)

TYPES: Mapping[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    ByteSize: "size",
    SecretStr: "secret text",
}
BOUNDS: Mapping[Any, tuple[str, str]] = {
    Ge: ("ge", "at least"),
    Gt: ("gt", "more than"),
    Le: ("le", "at most"),
    Lt: ("lt", "less than"),
}


SIGNS: Mapping[str, str] = {
    "ge": "at least",
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "le": "at most",
    "maximum": "at most",
}
"""Bounds in a JSON Schema; a validator that runs first makes pydantic write them as in Python."""

LENGTHS: Mapping[str, str] = {"maxLength": "characters", "maxProperties": "members"}

HUGE = 2**31 - 1
"""A bound from here on is one of the machine, and tells a reader nothing."""


def docstrings(cls: type) -> dict[str, str]:
    """The texts under the fields of a class or the members of an enum, each on one line."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        if each.__module__.partition(".")[0] not in ("downloader", "downloader_plugins"):
            continue
        [node] = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                    ast.Expr(value=ast.Constant(value=str(words))),
                ):
                    found[name] = " ".join(words.split())
    return found


def text_of(texts: Mapping[str, str], owner: type, name: str) -> str:
    """The description of a field or member.

    Raises:
        LookupError: it has none.
    """
    try:
        text = texts[name]
    except KeyError:
        raise LookupError(f"{owner.__name__}.{name} has no description: write one under it") from None
    return text if text.endswith((".", ")")) else f"{text}."


def type_of(annotation: Any, metadata: list[Any]) -> str:
    """What a setting takes, for people who write TOML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(type_of(one, metadata) for one in arguments if one is not types.NoneType)
    if origin is Literal:
        return "one of " + ", ".join(f"`{json.dumps(one)}`" for one in arguments)
    if origin is list:
        inner = type_of(arguments[0], [])
        return f"list of {inner}s" if inner in ("text", "number", "secret text") else "list"
    if origin is dict:
        return "table"
    if arguments:  # Annotated
        return type_of(arguments[0], [*metadata, *arguments[1:]])
    bounds = [
        f"{words} {getattr(bound, name):g}"
        for bound in _bounds(metadata)
        for name, words in [BOUNDS[type(bound)]]
    ]
    return ", ".join([TYPES[annotation], *bounds])


def _bounds(metadata: list[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from (one for one in getattr(item, "metadata", [item]) if type(one) in BOUNDS)


def default_of(info: FieldInfo) -> str:
    """The default as it would stand in TOML; empty if a setting has none."""
    default = info.get_default(call_default_factory=True)
    if info.is_required() or default is None:
        return ""
    if isinstance(default, ByteSize):
        text = json.dumps(default.human_readable().replace(".0", "")) if default else "0"
    elif isinstance(default, dict):
        text = "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in default.items()) + " }"
        text = text.replace("{  }", "{}")
    else:
        text = json.dumps(_whole(default), default=str)
    return f"`{text}`"


def _whole(value: Any) -> Any:
    """Numbers without a fraction are written as integers."""
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def entries(model: type[BaseModel], prefix: str) -> str:
    """A definition list of the model's keys, without the tables in it."""
    texts = docstrings(model)
    found = []
    for name, info in model.model_fields.items():
        if model_in(info.annotation) is not None:
            continue
        text = text_of(texts, model, name)
        facts = [type_of(info.annotation, info.metadata).capitalize()]
        facts.append(
            f"default {default}" if (default := default_of(info)) else "required" * info.is_required()
        )
        if "HOST" not in prefix and "[[" not in prefix:
            facts.append(f"`DOWNLOADER_{f'{prefix}.{name}'.strip('.').upper().replace('.', '__')}`")
        found.append(f"`{name}`\n: {text}\n\n  {'; '.join(filter(None, facts))}.\n")
    return "\n".join(found)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of a table, of an optional one, or of each of many."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := model_in(argument)) is not None:
            return found
    return None


def settings() -> str:
    """All tables of the configuration, except those of plugins."""
    return "\n".join(_tables(Settings, ""))


def _tables(model: type[BaseModel], path: str) -> Iterator[str]:
    keys = entries(model, path)
    if keys:
        yield f"### {f'`{_heading(path)}`' if path else 'At the top'}\n\n{keys}"
    texts = docstrings(model)
    for name, info in model.model_fields.items():
        inner = model_in(info.annotation)
        if inner is None:
            continue
        below = f"{path}.{name}".strip(".")
        if get_origin(info.annotation) is list:
            below = f"[[{below}]]"
        elif get_origin(info.annotation) is dict:
            below = f'{below}."HOST"'
        parts = list(_tables(inner, below))
        if name in texts and parts:
            head, _, rest = parts[0].partition("\n\n")
            parts[0] = f"{head}\n\n{texts[name]}\n\n{rest}"
        yield from parts


def _heading(path: str) -> str:
    return path if path.startswith("[[") else f"[{path}]"


def table(columns: str, rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; `columns` is the headings with bars between them."""
    lines = [columns, " | ".join("---" for _ in columns.split("|"))]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def named(columns: str, texts: Mapping[str, str]) -> str:
    """A table of two columns: names, and what they mean."""
    return table(columns, [(f"`{name}`", text) for name, text in texts.items()])


def enumerated(columns: str, members: Any) -> str:
    """The values of an enum, with the texts under them."""
    texts = docstrings(members)
    return named(columns, {one.value: text_of(texts, members, one.name) for one in members if one.value})


def routes() -> str:
    """All routes of the API, with the scope that a token needs."""
    rows = [
        (
            f"`{route.method} {re.sub(r'<[a-z]+:', '<', route.rule)}`",
            route.summary,
            f"`{route.scope}`" if route.scope else "",
        )
        for route in ROUTES
    ]
    return table("route | does | scope", rows)


def job_fields() -> str:
    """The fields of a job, with their types."""
    schema = TypeAdapter(DownloadRequest).json_schema()
    rows = []
    for name, field in schema["properties"].items():
        kind = {**field, **field.get("anyOf", [{}])[0]}
        facts = [kind.get("type", "any value")]
        facts += [
            f"{sign} {kind[key]:g}" for key, sign in SIGNS.items() if key in kind and abs(kind[key]) < HUGE
        ]
        facts += [f"at most {kind[key]} {what}" for key, what in LENGTHS.items() if key in kind]
        facts += ["required"] * (name in schema["required"])
        rows.append((f"`{name}`", ", ".join(facts), " ".join(field["description"].split())))
    return table("field | type | means", rows)


def metrics() -> str:
    """All metrics, with their labels."""
    rows = [
        (f"`{one.name}`", one.type, ", ".join(f"`{label}`" for label in one.labels), one.help)
        for one in METRICS
    ]
    return table("metric | type | labels | is", rows)


def keys() -> str:
    """All keys of Redis."""
    rows = [
        (f"`{key.path}`", key.type, key.ttl or "none", key.owner or "its time to live", key.holds)
        for key in KEYS
    ]
    return table("key | type | time to live | who deletes it | holds", rows)


def header_of(source: str) -> Mapping[str, str]:
    """The fields of the comment at the beginning of a script, and what is before them as `summary`."""
    comment = "\n".join(line[3:] for line in takewhile(lambda line: line[:2] == "--", source.splitlines()))
    summary, fields, *_ = comment.split("\n\n")
    texts = re.split(r"^(KEYS|ARGV|from|to|answer|repeat) +", fields, flags=re.MULTILINE)
    return {
        "summary": " ".join(summary.partition(": ")[2].split()),
        **{name: " ".join(text.split()) for name, text in zip(texts[1::2], texts[2::2], strict=True)},
    }


def transitions() -> str:
    """All scripts, by what their headers say."""
    headers = {
        path.stem: header_of(path.read_text("utf-8"))
        for path in sorted(LUA.glob("*.lua"))
        if not path.stem.startswith("_")
    }
    rows = [
        (f"`{name}`: {header['summary']}", *(header[field] for field in ("from", "to", "answer", "repeat")))
        for name, header in headers.items()
    ]
    return table("transition | from | to | answer | repeated", rows)


def suites() -> str:
    """The time limits and sizes of the contract suites, which a subclass may change."""
    texts = docstrings(StorageContract)
    rows = [
        (
            f"`{name}`",
            f"{value:g}" if value < KIB else f"{value // KIB**2} MiB",
            text_of(texts, StorageContract, name),
        )
        for base in StorageContract.__mro__[::-1]
        for name, value in vars(base).items()
        if isinstance(value, int | float) and not name.startswith("_")
    ]
    return table("attribute | default | means", rows)


def commands() -> str:
    """All commands with their options, from what `--help` prints."""
    text = make_app().generate_docs(output_format="markdown", heading_level=2)
    text = text[text.index(f"### downloader {COMMANDS['Serve'][0].__name__}\n") :]
    return re.sub(r"^For example:\n((?:  .*\n)+)", _example, text, flags=re.MULTILINE)


def _example(found: re.Match[str]) -> str:
    return f"```sh\n{textwrap.dedent(found[1])}```\n"


TABLES: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "plugin-http": lambda: entries(HttpSettings, "backends.http"),
    "plugin-http-destination": lambda: entries(DestinationSettings, "[[backends.http.destinations]]"),
    "plugin-kafka": lambda: entries(KafkaSettings, "backends.kafka"),
    "plugin-sqs": lambda: entries(SqsSettings, "backends.sqs"),
    "plugin-filesystem": lambda: entries(FilesystemSettings, "processor.filestorage"),
    "plugin-s3": lambda: entries(S3StorageSettings, "processor.filestorage"),
    "plugin-cloud": lambda: entries(CloudStorageSettings, "processor.filestorage"),
    "plugin-buckets": lambda: entries(BucketsSettings, "processor.s3"),
    "suites": suites,
    "routes": routes,
    "job-fields": job_fields,
    "commands": commands,
    "problem-codes": lambda: named("code | means", CODES),
    "events": lambda: enumerated("event | means", Event),
    "processor-counters": lambda: named("processor | counts", PROCESSOR_COUNTERS),
    "notifier-counters": lambda: named("notifier | counts", NOTIFIER_COUNTERS),
    "predecessor-processor-names": lambda: named("processor | counts", PROCESSOR_NAMES),
    "predecessor-notifier-names": lambda: named("notifier | counts", NOTIFIER_NAMES),
    "metrics": metrics,
    "keys": keys,
    "transitions": transitions,
}


def fill(text: str) -> str:
    """A page with its tables."""
    return BLOCK.sub(lambda block: TABLES[block[1]](), text)


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls: tables are filled in before a page is parsed."""

    def read(app: Any, name: str, source: list[str]) -> None:  # noqa: ARG001 - Sphinx's signature
        source[0] = fill(source[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
