"""The library of Lua functions, one for each transition, with header comments."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

from downloader.store.keys import LAYOUT_VERSION, lua_key_functions

FAMILY = "downloader_"
"""How the names of all versions' libraries begin."""

_LUA = resources.files("downloader.store").joinpath("lua")
_SHARED = ("_pace.lua", "_lib.lua", "_hosts.lua", "_ended.lua", "_wake.lua")
"""Files in front of the transitions, in this order: a file may use the functions of earlier files. Together
they may have 200 local variables at the level of the file, a limit of Lua."""

_READS = ("aggregations", "backlog", "busiest", "get", "list", "tally", "unfinished")
"""Transitions that write nothing."""

_GROWS = ("submit",)
"""Transitions that a server with full memory refuses. All others let jobs end, which makes room."""

_HEADER_FIELDS = ("KEYS", "ARGV", "from", "to", "answer", "repeat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A transition."""

    summary: str
    header: Mapping[str, str]
    """The fields of the header comment: `KEYS`, `ARGV`, `from`, `to`, `answer`, `repeat`."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """All transitions as one library of Redis functions.

    The names contain a digest of the code, so versions of the service with different code can share a server.
    """

    body: str
    """The Lua code after the first two lines, which contain the library's name."""
    scripts: Mapping[str, Script]

    @cached_property
    def name(self) -> str:
        """The library's name in the server."""
        digest = hashlib.sha1(self.body.encode(), usedforsecurity=False).hexdigest()
        return f"{FAMILY}{LAYOUT_VERSION}_{digest[:12]}"

    @property
    def text(self) -> str:
        """The argument of FUNCTION LOAD."""
        return f"#!lua name={self.name}\nlocal library = '{self.name}'\n{self.body}"

    def function(self, transition: str) -> str:
        """The name of a transition's function in the server.

        Raises:
            KeyError: no such transition.
        """
        return self._functions[transition]

    @cached_property
    def _functions(self) -> Mapping[str, str]:
        return {name: f"{self.name}_{name}" for name in self.scripts}


def load_library(*, cluster: bool = False) -> Library:
    """The library from the package's `lua` folder, for a Cluster or for one server.

    Raises:
        ValueError: the header of a file is malformed.
    """
    sources = {
        entry.name.removesuffix(".lua"): entry.read_text("utf-8")
        for entry in sorted(_LUA.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".lua") and not entry.name.startswith("_")
    }
    shared = "\n".join(_LUA.joinpath(name).read_text("utf-8") for name in _SHARED)
    head = f"local base, in_cluster = nil, {str(cluster).lower()}\n{lua_key_functions()}"
    body = head + shared + "\n".join(_registered(name, source) for name, source in sources.items())
    return Library(body=body, scripts={name: _script(name, source) for name, source in sources.items()})


def _registered(name: str, source: str) -> str:
    """Lua code that registers the source of a transition's file as a function."""
    flag = "'no-writes'" if name in _READS else "" if name in _GROWS else "'allow-oom'"
    return f"""
do
local function transition(keys, argv)
begin(keys, argv)
{source}
end
redis.register_function{{function_name = library .. '_{name}', callback = transition, flags = {{{flag}}}}}
end
"""


def _script(name: str, source: str) -> Script:
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
    return Script(summary=summary, header=header)
