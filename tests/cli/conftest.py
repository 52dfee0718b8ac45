"""Fixtures of the tests of commands that meet real servers."""

from servers.fleet_fixtures import folder, origin, server, sink

__all__ = ["folder", "origin", "server", "sink"]
