"""Audit lines: which token has changed what."""

from __future__ import annotations

from typing import Any, Literal, cast

from quart import request

from downloader.api.auth import CALLER, Caller
from downloader.observe import Event, get_logger
from downloader.server import Message, client_of

_log = get_logger()

Action = Literal["cancel", "cancel_jobs", "purge", "retry", "retry_jobs", "adjust", "pause_all"]


def audit(action: Action, **changed: Any) -> None:
    """Log a change that the present request has made; `changed` must contain no secret."""
    scope = cast("Message", request.scope)
    caller: Caller | None = scope[CALLER]
    token = None if caller is None else caller.name
    _log.info(Event.AUDIT, action=action, token=token, client=client_of(scope), **changed)
