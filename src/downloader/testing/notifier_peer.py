"""What the tests of notifiers need: the peer, payloads, and deliveries whose answers are checked."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import MappingProxyType
from typing import Any

import trio

from downloader.notify import (
    Delivered,
    Host,
    Notifier,
    Payload,
    Rejected,
    Result,
    RetryLater,
)
from downloader.testing.contract import Run, check_line
from downloader.testing.tcp_proxy import Fault


class NotifierPeer(ABC):
    """What the suite has to know of a notifier and its server."""

    section: Mapping[str, Any]
    """`[backends.NAME]` as it should be for this peer."""
    bad_section: Mapping[str, Any]
    """One that is refused, for one key that differs from `section`."""
    hasty: Mapping[str, Any] = MappingProxyType({})
    """Keys laid over `section` where the peer is about to fail: short time-outs, such as a second or two."""
    secrets: Sequence[str] = ()
    """Passwords and tokens in the section and destinations: no reason and no message may hold them."""
    faults: Sequence[Fault] = tuple(Fault)
    """The ways to fail that `failing` can bring about."""

    @abstractmethod
    def open(self, section: Mapping[str, Any], host: Host) -> AbstractAsyncContextManager[Notifier]:
        """The plugin's own context manager: its factory, called with these."""

    @abstractmethod
    def destination(self) -> str:
        """A fresh destination that works."""

    def rejected_destination(self) -> str | None:
        """One that is rejected for good; `None`: this backend knows none."""
        return None

    @abstractmethod
    def failing(self, fault: Fault) -> AbstractAsyncContextManager[str]:
        """Within, the peer fails, and does so at the destination that this yields.

        With a `TcpProxy` in front of its server: `with proxy.fault(fault): yield self.destination()`.
        """

    @abstractmethod
    async def received(self, destination: str) -> Sequence[bytes]:
        """Every payload that has arrived at a destination, in any order, by the server's own word."""


def a_payload(extra: str = "") -> Payload:
    """A payload like the service's, with an id of its own."""
    job_id = "".join(secrets.choice("0123456789ABCDEFabcdef") for _ in range(14))
    body = {
        "success": True,
        "error": "",
        "extra": extra,
        "job_id": job_id,
        "response_code": 200,
        "size": 10240,
    }
    encoded = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    return Payload(job_id=job_id, aggr_id="example.org", body=encoded)


async def deliver(run: Run[NotifierPeer], notifier: Notifier, destination: str, payload: Payload) -> Result:
    """Deliver, and hold the answer to what is promised of every answer."""
    call = partial(notifier.deliver, destination, payload)
    try:
        result: object = await run.bounded(call, run.times.answer_s, "deliver()")
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"deliver() raised {error!r}, which is for it to answer") from error
    assert isinstance(result, (Delivered, RetryLater, Rejected)), f"deliver() answered {result!r}"
    if not isinstance(result, Delivered):
        check_line(result.reason, run.peer.secrets, f"the reason of {type(result).__name__}")
    if isinstance(result, RetryLater) and result.after_s is not None:
        assert result.after_s >= 0, f"after_s is {result.after_s}"
    return result


async def delivered(run: Run[NotifierPeer], notifier: Notifier, destination: str, payload: Payload) -> None:
    """Deliver to a peer that works."""
    result = await deliver(run, notifier, destination, payload)
    assert isinstance(result, Delivered), f"with a peer that works deliver() answers {result!r}"


async def retried(run: Run[NotifierPeer], notifier: Notifier, destination: str, payload: Payload) -> None:
    """Deliver to a peer that fails."""
    result = await deliver(run, notifier, destination, payload)
    assert isinstance(result, RetryLater), f"while the peer fails deliver() answers {result!r}"


async def works(run: Run[NotifierPeer], notifier: Notifier) -> None:
    """Deliver until it works, as at first and after an outage, and see that it has arrived."""
    destination = run.peer.destination()
    deadline = time.monotonic() + run.times.recover_s
    while True:
        payload = a_payload()
        result = await deliver(run, notifier, destination, payload)
        if isinstance(result, Delivered):
            break
        assert not isinstance(result, Rejected), f"with a peer that works deliver() answers {result!r}"
        assert time.monotonic() < deadline, (
            f"{run.times.recover_s:g} s after the peer was back it still answers {result!r}"
        )
        await trio.sleep(0.05)
    found = await run.peer.received(destination)
    assert payload.body in found, "Delivered, and the peer does not have it"


async def has(run: Run[NotifierPeer], destination: str, *payloads: Payload) -> None:
    """The peer has these, each once, and nothing else."""
    found = sorted(await run.peer.received(destination))
    wanted = sorted(payload.body for payload in payloads)
    assert found == wanted, f"delivered were {short(wanted)}, and the peer has {short(found)}"


def short(bodies: Sequence[bytes]) -> str:
    """Payloads for a message."""
    return f"{len(bodies)}: {[body[:80] for body in bodies[:3]]}"
