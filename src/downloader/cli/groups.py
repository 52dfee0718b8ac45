"""`downloader groups` and `wait`: show groups of jobs, and wait until they are complete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from downloader.cli.options import LOCAL, Json, Service, connect, for_each
from downloader.cli.output import Cell, details, show_table, write_json, write_result
from downloader.errors import ConfigError

if TYPE_CHECKING:
    from downloader.client import Client, Group

Names = Annotated[str, Parameter(name="GROUP", show_default=False)]

COLUMNS = ("group", "state", "jobs", "succeeded", "failed", "cancelled", "unfinished")


def groups(
    *names: Names,
    seal: Annotated[bool, Parameter(name="--seal", show_default=False)] = False,
    reopen: Annotated[bool, Parameter(name="--reopen", show_default=False)] = False,
    json_: Json = False,
    service: Service = LOCAL,
) -> int:
    """Show groups of jobs with their progress, or seal or reopen some.

    Without a name it lists all.
    The exit status is 1 if there is no such group.

    For example:
      downloader groups
      downloader groups night-17
      downloader groups night-17 --seal

    Args:
        names: Names of groups.
        seal: All jobs are in: the groups take no more, and are complete when theirs have ended.
        reopen: Complete groups take jobs again, and have a second callback when sealed and complete again.
        json_: Write a JSON object for each.
    """
    if seal and reopen:
        raise ConfigError("give --seal or --reopen, not both")
    if (seal or reopen) and not names:
        raise ConfigError("--seal and --reopen need the name of a group")
    if names:

        def show(client: Client, name: str) -> None:
            ask = client.seal_group if seal else client.reopen_group if reopen else client.group
            group = ask(name)
            write_result(group, group.name, _rows(group), as_json=json_)

        return for_each(names, show, service)
    with connect(service) as client:
        listed = sorted(client.groups(), key=lambda group: group.name)
    if json_:
        for group in listed:
            write_json(group)
    else:
        show_table(COLUMNS, [_row(group) for group in listed], right=COLUMNS[2:], empty="there are no groups")
    return 0


def wait(
    *names: Names,
    timeout: Annotated[float | None, Parameter(name="--timeout")] = None,
    json_: Json = False,
    service: Service = LOCAL,
) -> int:
    """Wait until groups of jobs are sealed and all their jobs have ended.

    The exit status is 1 if one of the jobs failed or was cancelled, a group does
    not exist, or the time is up.

    For example:
      downloader wait night-17 --timeout 3600

    Args:
        names: Names of groups.
        timeout: Seconds for each group. Default: no limit.
        json_: Write a JSON object for each group.
    """
    succeeded = []

    def wait_for(client: Client, name: str) -> None:
        group = client.wait_group(name, timeout_s=timeout)
        succeeded.append(group.succeeded == group.jobs)
        write_result(group, group.name, _rows(group), as_json=json_)

    return for_each(names, wait_for, service) or int(not all(succeeded))


def _rows(group: Group) -> Iterator[tuple[str, str]]:
    names = (*COLUMNS[1:], "first_at", "last_at", "completed_at")
    return details(group, callback_id="callback", **{name: name.replace("_at", "") for name in names})


def _row(group: Group) -> list[Cell]:
    return [(group.name, "bold"), group.state, *(str(getattr(group, name)) for name in COLUMNS[2:])]
