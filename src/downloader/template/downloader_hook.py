"""Callbacks to a receiver that requires a token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import trio
from pydantic import BaseModel

from downloader.notify import Delivered, EgressRefused, Host, Payload, Rejected, Result, RetryLater, parse_section


class Settings(BaseModel, extra="forbid", hide_input_in_errors=True):
    """`[backends.hook]`."""

    token: str
    timeout: float = 10


@asynccontextmanager
async def open_hook(section: Mapping[str, Any], host: Host) -> AsyncIterator[Hook]:
    """The factory, which the entry point in pyproject.toml names."""
    yield Hook(parse_section(Settings, section), host.client)


@dataclass
class Hook:
    """A `Notifier`."""

    settings: Settings
    client: httpx2.AsyncClient

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """Try once."""
        headers = {"Authorization": f"Bearer {self.settings.token}", "Content-Type": "application/json"}
        try:
            with trio.fail_after(self.settings.timeout):
                answer = await self.client.post(destination, content=payload.body, headers=headers)
        except (EgressRefused, httpx2.InvalidURL, httpx2.LocalProtocolError) as error:
            return Rejected(f"the destination cannot be used: {type(error).__name__}")
        except (httpx2.TransportError, trio.TooSlowError) as error:
            return RetryLater(f"not delivered: {type(error).__name__}")
        return Delivered() if answer.is_success else RetryLater(f"the receiver answered {answer.status_code}")
