"""The Lua scripts of the transitions, with header comments."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from downloader.store.keys import lua_key_functions

_LUA = resources.files("downloader.store").joinpath("lua")
_SHARED = ("_lib.lua", "_hosts.lua", "_ended.lua", "_wake.lua")
"""Files in front of each transition; each may use what the files before it define. `_ended.lua` is only
before transitions that use it, because a script has at most 200 local variables."""

_HEADER_FIELDS = ("KEYS", "ARGV", "from", "to", "answer", "repeat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A transition."""

    name: str
    summary: str
    header: Mapping[str, str]
    """The fields of the header comment: `KEYS`, `ARGV`, `from`, `to`, `answer`, `repeat`."""
    text: str
    """The shared library, followed by the transition; sent to the server."""
    sha: str
    """SHA-1 of the text, for EVALSHA."""


def load_scripts(*, cluster: bool = False) -> Mapping[str, Script]:
    """All transitions by name, read from the package's `lua` folder, for a Cluster or for one server.

    Raises:
        ValueError: the header of a file is malformed.
    """
    parts = {name: _LUA.joinpath(name).read_text("utf-8") for name in _SHARED}
    constants = f"local base, in_cluster = KEYS[1], {str(cluster).lower()}\n"
    scripts = {}
    for entry in sorted(_LUA.iterdir(), key=lambda entry: entry.name):
        name, _, ending = entry.name.partition(".")
        if ending != "lua" or name.startswith("_"):
            continue
        source = entry.read_text("utf-8")
        ends_jobs = re.search(
            r"\b(conclude|end_job|REAPING|GROUP_KEPT_MS|(check|complete|leave)_job_group)\b", source
        )
        library = "".join(text for part, text in parts.items() if part != "_ended.lua" or ends_jobs)
        body = f"{library}\n{source}"
        text = constants + lua_key_functions(body) + body
        summary, header = _parse_header(name, source)
        scripts[name] = Script(
            name=name,
            summary=summary,
            header=header,
            text=text,
            sha=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(),
        )
    return scripts


def _parse_header(name: str, source: str) -> tuple[str, Mapping[str, str]]:
    lines = []
    for line in source.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line[3:])
    title, _, summary = lines[0].partition(": ")
    if title != name:
        raise ValueError(f"{name}.lua: the first line must begin with {name!r}")
    header: dict[str, str] = {}
    field = ""
    for line in lines[2:]:
        match = re.match(r"(\w+) {2,}(.*)|(\w+) (.*)", line)
        if match and (match[1] or match[3]) in _HEADER_FIELDS:
            field = match[1] or match[3]
            header[field] = (match[2] if match[1] else match[4]).strip()
        elif line.startswith(" ") and field:
            header[field] += " " + line.strip()
        else:
            field = ""
    missing = [f for f in _HEADER_FIELDS if f not in header]
    if missing:
        raise ValueError(f"{name}.lua: the header lacks {', '.join(missing)}")
    return summary, header
