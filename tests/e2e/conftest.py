"""Fixtures of the tests that run the service as users do."""

from servers.fleet_fixtures import folder, origin, server, sink

__all__ = ["folder", "origin", "server", "sink"]
