"""A background task that runs as long as a `with` block.

Imports no other module of the project, because nearly all parts use this one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio


@asynccontextmanager
async def background(
    task: Callable[..., Awaitable[object]], *, stop: Callable[[], object] | None = None
) -> AsyncIterator[Any]:
    """Run `task(task_status=...)` while the context is open; yields the value given to `started()`.

    At the end `stop` is called, by default a cancel of the task, and the task is awaited. A task that returns
    early does not end the context; a task that raises cancels the body.

    The first error, of the body or of the task, is raised without a group; a later error is added as a note.
    Only an error that comes together with a cancel is in the group of Trio's nursery.
    """
    errors: list[Exception] = []
    is_open = False
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[Any]) -> None:
            try:
                await task(task_status=task_status)
            except Exception as error:  # noqa: BLE001 - raised below, as the nursery would put it in a group
                errors.append(error)
                nursery.cancel_scope.cancel(reason=repr(error))

        try:
            value = await nursery.start(run)
            is_open = True
            yield value
        except Exception as error:  # noqa: BLE001 - raised below, as the nursery would put it in a group
            # The task's own error comes before Trio's complaint that the task has not called `started()`.
            if is_open or not errors:
                errors.append(error)
        finally:
            (stop or nursery.cancel_scope.cancel)()
    if errors:
        first, *later = errors
        for second in later:
            text = f"{type(second).__name__}: {second}"
            first.add_note(f"While that was raised, another error followed: {text}")
        raise first
