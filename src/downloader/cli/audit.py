"""`downloader audit`: who changed what."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.cli.options import LOCAL, Json, Service, connect
from downloader.cli.output import Cell, local_time, show_table, write_json

SHOWN = 100
"""Changes that are shown by default."""

NAMES = ("job_id", "aggr_id", "group")
"""What was changed: these members are shown by their value alone."""


def audit(
    *,
    count: Annotated[int, Parameter(name="-n", validator=Number(gte=1, lte=2000))] = SHOWN,
    json_: Json = False,
    service: Service = LOCAL,
) -> int:
    """Show who changed what: pauses, limits, cancels, retries and purges.

    The newest changes come first, with the name of the token and the address of
    the client. It needs a token with the scope admin.

    For example:
      downloader audit
      downloader audit -n 1000 --json

    Args:
        count: At most so many.
        json_: Write a JSON object for each.
    """
    with connect(service) as client:
        entries = client.audit(count)
    if json_:
        for entry in entries:
            write_json(entry)
        return 0
    columns = ("at", "token", "client", "action", "what")
    rows: list[list[Cell]] = [
        [
            local_time(entry.at),
            (entry.token or "-", "bold"),
            entry.client,
            entry.action.replace("_", " "),
            " ".join(_words(entry.changed)),
        ]
        for entry in entries
    ]
    show_table(columns, rows, empty="nobody has changed anything")
    return 0


def _words(changed: Mapping[str, Any]) -> Iterator[str]:
    for name, value in changed.items():
        if isinstance(value, Mapping):
            yield from _words(value)
        else:
            text = f"{value:g}" if isinstance(value, float) else json.dumps(value)
            yield str(value) if name in NAMES else f"{name}={text}"
