"""The library of Lua functions, one for each transition.

Each file of a transition begins with a header, from which `docs/reference.py` makes a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True, kw_only=True)
class Library:
    """All transitions as one library of Redis functions.

    The names contain a digest of the code, so versions of the service with different code can share a server.
    """

    body: str
    """The Lua code after the first two lines, which contain the library's name."""
    transitions: Sequence[str]

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
        return {name: f"{self.name}_{name}" for name in self.transitions}


def load_library(*, cluster: bool = False) -> Library:
    """The library from the package's `lua` folder, for a Cluster or for one server."""
    sources = {
        entry.name.removesuffix(".lua"): entry.read_text("utf-8")
        for entry in sorted(_LUA.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".lua") and not entry.name.startswith("_")
    }
    shared = "\n".join(_LUA.joinpath(name).read_text("utf-8") for name in _SHARED)
    head = f"local base, in_cluster = nil, {str(cluster).lower()}\n{lua_key_functions()}"
    body = head + shared + "\n".join(_registered(name, source) for name, source in sources.items())
    return Library(body=body, transitions=list(sources))


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
