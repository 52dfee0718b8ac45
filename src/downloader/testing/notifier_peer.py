"""Tools for the tests of notifiers: the peer, payloads, and deliveries whose results are checked."""

from __future__ import annotations

import json
import secrets
import time
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

import trio

from downloader.notify import Delivered, Notifier, Payload, Rejected, Result, RetryLater
from downloader.testing.contract import Peer, Run, check_line
from downloader.testing.tcp_proxy import Fault


class NotifierPeer(Peer):
    """A notifier's peer, to be written for each plugin; `section` is the notifier's `[backends.NAME]`."""

    @abstractmethod
    def destination(self) -> str:
        """A fresh destination that works."""

    def rejected_destination(self) -> str | None:
        """A destination that is `Rejected`; `None` if this backend has none."""
        return None

    def failing(self, fault: Fault) -> AbstractAsyncContextManager[str]:
        """Make the peer fail while the context is open; yields a destination at which the peer fails.

        With a `TcpProxy` in front of its server: `with proxy.fault(fault): yield self.destination()`.
        """
        raise NotImplementedError(f"write failing(), or take {fault!r} out of `faults`")

    @abstractmethod
    async def received(self, destination: str) -> Sequence[bytes]:
        """Every payload that the server has received for a destination, in any order."""


def a_payload(extra: str = "") -> Payload:
    """A payload like the service's, with a new id."""
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
    """Deliver, and check what holds for every result."""
    call = partial(notifier.deliver, destination, payload)
    try:
        result: object = await run.bounded(call, run.times.answer_s, "deliver()")
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"deliver() raised {error!r}; it has to return a result") from error
    assert isinstance(result, (Delivered, RetryLater, Rejected)), f"deliver() returned {result!r}"
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
    """Deliver until a success, as after a start or an outage; check that the payload has arrived."""
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
    bodies = await run.peer.received(destination)
    assert payload.body in bodies, "the result is Delivered, and the peer does not have the payload"


async def has(run: Run[NotifierPeer], destination: str, *payloads: Payload) -> None:
    """Check that the peer has the given payloads, each once, and no others."""
    bodies = sorted(await run.peer.received(destination))
    wanted = sorted(payload.body for payload in payloads)
    assert bodies == wanted, f"{short(wanted)} were delivered, and the peer has {short(bodies)}"


def short(bodies: Sequence[bytes]) -> str:
    """Payloads, shortened for a message."""
    return f"{len(bodies)}: {[body[:80] for body in bodies[:3]]}"
