"""Fixtures of the tests that kill, freeze and starve real processes."""

from servers.fleet_fixtures import folder, origin, server, sink

__all__ = ["folder", "origin", "server", "sink"]
