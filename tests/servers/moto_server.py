"""Moto's server with one change: uploads in parts are listed as begun just now.

Moto itself says that all began in 2010, so whoever aborts leftovers would abort those that are under way.
Run as a program, with the port as its argument.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

LONG_AGO = b"2010-11-10T20:48:33.000Z"

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def up_to_date(application: Application) -> Application:
    """The application with the right time in listings of uploads; the length stays the same."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        chunks = application(environ, start_response)
        if "uploads" not in environ.get("QUERY_STRING", ""):
            return chunks
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z").encode()
        return [b"".join(chunks).replace(LONG_AGO, now)]

    return answer


if __name__ == "__main__":
    server = up_to_date(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), server, threaded=True, request_handler=MotoRequestHandler)
