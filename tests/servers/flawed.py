"""A contract suite for a plugin with a flaw, which the suite must find."""

from __future__ import annotations

from typing import TypeVar

from downloader.testing import NotifierContract, StorageContract

Suite = TypeVar("Suite", NotifierContract, StorageContract)


def flawed(suite: Suite, plugin: type) -> Suite:
    """Give the suite the plugin, and the plugin's `given_up_after` as time limits.

    Only a flaw that makes a call hang needs a short limit. The other limits stay long, so that a busy machine
    fails no plugin for another reason than the flaw.
    """
    limits = {"plugin": plugin, **getattr(plugin, "given_up_after", {})}
    for name, value in limits.items():
        setattr(suite, name, value)
    return suite
