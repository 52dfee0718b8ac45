"""The contract of notifiers, as tests."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import trio

from downloader.notify import Checkable, Delivered, Host, Notifier, Payload, Rejected
from downloader.testing.contract import Contract, Run, check_line, open_host, promise
from downloader.testing.notifier_peer import (
    NotifierPeer,
    a_payload,
    deliver,
    delivered,
    has,
    retried,
    short,
    works,
)
from downloader.testing.tcp_proxy import Fault

_MANY = 50
"""Deliveries at once, fewer than `notifier.concurrency` by default."""
_FEW = 8
_LARGE_BYTES = 100_000
"""Size of the largest payload. A client's `extra` may be twice as long, but some queues take no more."""
_CANCELS_S = (0.0, 0.01, 0.1, 0.4)
"""Moments at which a delivery is cancelled: before the first step, while connecting, while waiting."""
_MOMENTS = 100
"""Most further moments, evenly over the time of a delivery: a client may lose a cancel between two steps."""
_MOMENTS_S = 10.0
"""Time for the further moments: there are fewer where a delivery is slow."""
_IN_FLIGHT_S = 0.3
"""Time from the start of a delivery until the plugin is closed or everything is cancelled."""
_ODD = ("", " ", "\n", "\0", "a\r\nX-Injected: 1", "../../etc/passwd", "x" * 5000, "h\u00e9", "\U0001f642")
"""Unusual destinations that clients may name; `deliver` has to return a result for each."""


class NotifierContract(Contract[NotifierPeer]):
    """The suite; a subclass defines `peer`.

    ::

        class TestContract(NotifierContract):
            @asynccontextmanager
            async def peer(self) -> AsyncIterator[NotifierPeer]:
                ...
    """

    def lend(self) -> AbstractAsyncContextManager[Host]:
        """See `open_host`."""
        return open_host()

    @promise
    async def test_delivered_means_that_the_peer_has_exactly_these_bytes(
        self, run: Run[NotifierPeer]
    ) -> None:
        """After `Delivered` the peer has the payload once, byte for byte."""
        destination, payload = run.peer.destination(), a_payload()
        async with run.opened() as notifier:
            await delivered(run, notifier, destination, payload)
            await has(run, destination, payload)

    @promise
    async def test_payloads_of_every_size_and_script_arrive_unchanged(self, run: Run[NotifierPeer]) -> None:
        """No payload is decoded, trimmed, escaped or cut."""
        texts = ("", "h\u00e9llo \u4e0b\u8f7d \U0001f642", "\\ \" ' % + & < > \t", "x" * _LARGE_BYTES)
        payloads = [a_payload(text) for text in texts]
        destination = run.peer.destination()
        async with run.opened() as notifier:
            for payload in payloads:
                await delivered(run, notifier, destination, payload)
            await has(run, destination, *payloads)

    @promise
    async def test_each_destination_gets_its_own(self, run: Run[NotifierPeer]) -> None:
        """A callback goes to the destination of the job and to no other."""
        routes = {run.peer.destination(): a_payload() for _ in range(3)}
        assert len(routes) > 1, "destination() has to give a fresh one each time"
        async with run.opened() as notifier:
            for destination, payload in routes.items():
                await delivered(run, notifier, destination, payload)
            for destination, payload in routes.items():
                await has(run, destination, payload)

    @promise
    async def test_many_are_delivered_at_once(self, run: Run[NotifierPeer]) -> None:
        """`deliver` is called from many tasks: each callback arrives once, at the right destination."""
        routes = [run.peer.destination() for _ in range(2)]
        payloads = [a_payload() for _ in range(_MANY)]
        async with run.opened() as notifier:
            async with trio.open_nursery() as nursery:
                for number, payload in enumerate(payloads):
                    nursery.start_soon(delivered, run, notifier, routes[number % 2], payload)
            for turn, destination in enumerate(routes):
                await has(run, destination, *payloads[turn::2])

    @promise
    async def test_a_repeat_is_delivered_too(self, run: Run[NotifierPeer]) -> None:
        """A payload that is delivered a second time, as after a crash, is `Delivered` again."""
        destination, payload = run.peer.destination(), a_payload()
        async with run.opened() as notifier:
            await delivered(run, notifier, destination, payload)
            await delivered(run, notifier, destination, payload)
            bodies = await run.peer.received(destination)
            assert set(bodies) == {payload.body}, f"the peer has {short(bodies)}"

    @promise
    async def test_a_peer_that_is_away_is_tried_again_later(self, run: Run[NotifierPeer]) -> None:
        """While every connection fails the result is `RetryLater`; after the outage deliveries succeed."""
        await self._outage(run, Fault.AWAY)

    @promise
    async def test_a_silent_peer_is_tried_again_later(self, run: Run[NotifierPeer]) -> None:
        """A peer that accepts the connection and answers nothing: `RetryLater`, never `Delivered`."""
        await self._outage(run, Fault.SILENT)

    @promise
    async def test_a_lost_answer_is_no_success(self, run: Run[NotifierPeer]) -> None:
        """The connection is closed before the peer's answer: `RetryLater`, never `Delivered`."""
        await self._outage(run, Fault.CUT)

    async def _outage(self, run: Run[NotifierPeer], fault: Fault) -> None:
        if fault not in run.peer.faults:
            return
        async with run.opened(hasty=True) as notifier:
            await works(run, notifier)
            async with run.peer.failing(fault) as destination:
                for _ in range(2):  # first over the open connection, then over a new one
                    await retried(run, notifier, destination, a_payload())
            await works(run, notifier)

    @promise
    async def test_a_peer_that_is_away_at_the_start_is_tried_again_later(
        self, run: Run[NotifierPeer]
    ) -> None:
        """A peer that is away while the plugin is opened can be used after the return.

        A plugin that cannot be opened without its peer raises a `PluginError`.
        """
        if Fault.AWAY not in run.peer.faults:
            return
        back, back_again = trio.Event(), trio.Event()

        async def outage(task_status: trio.TaskStatus[str]) -> None:
            async with run.peer.failing(Fault.AWAY) as destination:
                task_status.started(destination)
                await back.wait()
            back_again.set()

        # In its own task: the plugin stays open when the outage is over.
        async with trio.open_nursery() as nursery:
            destination = await nursery.start(outage)
            try:
                async with run.opened(hasty=True) as notifier:
                    await retried(run, notifier, destination, a_payload())
                    back.set()
                    await back_again.wait()
                    await works(run, notifier)
            except Exception as error:
                if back.is_set():
                    raise
                text = run.plugin_error(error)
                check_line(text, run.peer.secrets, "the PluginError")
            back.set()

    @promise
    async def test_a_silent_peer_holds_up_nobody(self, run: Run[NotifierPeer]) -> None:
        """Deliveries to a silent peer wait at the same time: the loop and other deliveries go on."""
        if Fault.SILENT not in run.peer.faults:
            return
        async with run.opened(hasty=True) as notifier, run.peer.failing(Fault.SILENT) as destination:
            alone = await self._timed(run, notifier, destination, 1)
            together = await self._timed(run, notifier, destination, _FEW)
            assert together < 3 * alone + 1, (
                f"one delivery to a silent peer takes {alone:.1f} s, {_FEW} at once take {together:.1f} s:"
                " they wait for each other"
            )

    async def _timed(self, run: Run[NotifierPeer], notifier: Notifier, destination: str, count: int) -> float:
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(retried, run, notifier, destination, a_payload())
        return time.monotonic() - began

    @promise
    async def test_what_can_never_be_delivered_is_rejected(self, run: Run[NotifierPeer]) -> None:
        """A destination that can never work is `Rejected` with a reason; later deliveries succeed."""
        destination = run.peer.rejected_destination()
        if destination is None:
            return
        async with run.opened() as notifier:
            result = await deliver(run, notifier, destination, a_payload())
            assert isinstance(result, Rejected), (
                f"for a destination that can never work deliver() returns {result!r}"
            )
            await delivered(run, notifier, run.peer.destination(), a_payload())

    @promise
    async def test_whatever_the_destination_it_is_answered(self, run: Run[NotifierPeer]) -> None:
        """For an unusual destination `deliver` raises nothing; `Delivered` means that the payload arrived."""
        async with run.opened() as notifier:

            async def one(destination: str) -> None:
                payload = a_payload()
                if isinstance(await deliver(run, notifier, destination, payload), Delivered):
                    bodies = await run.peer.received(destination)
                    assert payload.body in bodies, f"nothing has arrived at {destination[:50]!r}"

            async with trio.open_nursery() as nursery:
                for destination in _ODD:
                    nursery.start_soon(one, destination)
            await delivered(run, notifier, run.peer.destination(), a_payload())

    @promise
    async def test_a_cancel_in_mid_delivery_returns_at_once(self, run: Run[NotifierPeer]) -> None:
        """A cancelled `deliver` returns promptly, whenever the cancel comes; later deliveries succeed."""
        if Fault.SILENT not in run.peer.faults:
            return
        async with run.opened(hasty=True) as notifier:
            began = time.monotonic()
            await delivered(run, notifier, run.peer.destination(), a_payload())
            took_s = min(time.monotonic() - began, 1.0)
            turns = min(_MOMENTS, int(2 * _MOMENTS_S / took_s))
            moments = [took_s * turn / turns for turn in range(turns)]
            async with run.peer.failing(Fault.SILENT) as destination:
                for after_s in (*_CANCELS_S, *moments):
                    call = partial(notifier.deliver, destination, a_payload())
                    result = await run.cancelled(call, after_s=after_s, what="a delivery")
                    assert not isinstance(result, Delivered), (
                        "Delivered, though the peer has answered nothing"
                    )
            await works(run, notifier)

    @promise
    async def test_cancels_among_deliveries_disturb_no_other(self, run: Run[NotifierPeer]) -> None:
        """Deliveries beside cancelled deliveries arrive, each once."""
        destination = run.peer.destination()
        kept = [a_payload() for _ in range(2 * _FEW + 1)]
        dropped = [a_payload() for _ in range(2 * _FEW)]
        async with run.opened() as notifier:

            async def drop(payload: Payload, after_s: float) -> None:
                call = partial(notifier.deliver, destination, payload)
                await run.cancelled(call, after_s=after_s, what="a delivery")

            began = time.monotonic()
            await delivered(run, notifier, destination, kept[-1])
            took_s = time.monotonic() - began
            for turn in range(_FEW):
                await drop(dropped[turn], took_s * turn / _FEW)
                await delivered(run, notifier, destination, kept[turn])
            async with trio.open_nursery() as nursery:
                for turn in range(_FEW):
                    nursery.start_soon(drop, dropped[_FEW + turn], took_s * turn / _FEW)
                    nursery.start_soon(delivered, run, notifier, destination, kept[_FEW + turn])
            bodies = list(await run.peer.received(destination))
            for payload in kept:
                assert bodies.count(payload.body) == 1, (
                    f"a payload has arrived {bodies.count(payload.body)} times beside cancelled ones"
                )
            sent = {payload.body for payload in (*kept, *dropped)}
            assert set(bodies) <= sent, "the peer has a message that was not sent: a cancel has cut one"

    @promise
    async def test_it_is_closed_without_a_delivery(self, run: Run[NotifierPeer]) -> None:
        """The plugin can be opened and closed without a delivery, several times; then deliveries succeed."""
        for _ in range(3):
            async with run.opened():
                pass
        async with run.opened() as notifier:
            await delivered(run, notifier, run.peer.destination(), a_payload())

    @promise
    async def test_it_is_opened_again_after_it_was_closed(self, run: Run[NotifierPeer]) -> None:
        """The plugin can be opened again after a close."""
        destination, payloads = run.peer.destination(), [a_payload(), a_payload()]
        for payload in payloads:
            async with run.opened() as notifier:
                await delivered(run, notifier, destination, payload)
        await has(run, destination, *payloads)

    @promise
    async def test_two_may_be_open_at_once(self, run: Run[NotifierPeer]) -> None:
        """Two notifiers of one type are independent: one goes on when the other is closed."""
        destination, payloads = run.peer.destination(), [a_payload() for _ in range(3)]
        async with run.opened() as first:
            async with run.opened() as second:
                await delivered(run, first, destination, payloads[0])
                await delivered(run, second, destination, payloads[1])
            await delivered(run, first, destination, payloads[2])
        await has(run, destination, *payloads)

    @promise
    async def test_it_closes_while_deliveries_are_in_flight(self, run: Run[NotifierPeer]) -> None:
        """A `deliver` that is in flight when the plugin is closed ends, and not with `Delivered`."""
        if Fault.SILENT not in run.peer.faults:
            return
        results: list[object] = []

        async def one(notifier: Notifier, destination: str) -> None:
            try:
                results.append(await notifier.deliver(destination, a_payload()))
            except Exception as error:  # noqa: BLE001 - a closed plugin may raise anything
                results.append(error)

        async with run.peer.failing(Fault.SILENT) as destination, trio.open_nursery() as nursery:
            async with run.opened(hasty=True) as notifier:
                for _ in range(_FEW):
                    nursery.start_soon(one, notifier, destination)
                await trio.sleep(_IN_FLIGHT_S)
            with run.watched(run.times.answer_s, "a delivery in flight while the plugin was closed"):
                while len(results) < _FEW:  # noqa: ASYNC110 - no event for their end
                    await trio.sleep(0.01)
        assert not [result for result in results if isinstance(result, Delivered)], "a false success"

    @promise
    async def test_a_stop_in_mid_delivery_closes_it(self, run: Run[NotifierPeer]) -> None:
        """When the task that has opened the plugin is cancelled, everything ends promptly."""
        if Fault.SILENT not in run.peer.faults:
            return

        async def work(destination: str) -> None:
            async with run.opened(hasty=True) as notifier, trio.open_nursery() as nursery:
                for _ in range(_FEW):
                    nursery.start_soon(notifier.deliver, destination, a_payload())

        async with run.peer.failing(Fault.SILENT) as destination:
            await run.cancelled(partial(work, destination), after_s=_IN_FLIGHT_S, what="the open plugin")
        async with run.opened() as notifier:
            await works(run, notifier)

    async def _work(self, run: Run[NotifierPeer]) -> None:
        async with run.opened() as notifier:
            for _ in range(3):
                await delivered(run, notifier, run.peer.destination(), a_payload())
        if Fault.SILENT not in run.peer.faults:
            return
        async with (
            run.opened(hasty=True) as notifier,
            run.peer.failing(Fault.SILENT) as destination,
        ):
            call = partial(notifier.deliver, destination, a_payload())
            await run.cancelled(call, after_s=0.1, what="a delivery")

    @promise
    async def test_its_check_tells_what_it_found(self, run: Run[NotifierPeer]) -> None:
        """`check()`, where there is one, returns one line within the time limit and delivers nothing."""
        async with run.opened() as notifier:
            checkable: Any = notifier
            if not isinstance(checkable, Checkable):
                return
            destination, payload = run.peer.destination(), a_payload()
            line = await run.bounded(checkable.check, run.times.answer_s, "check()")
            check_line(line, run.peer.secrets, "the result of check()")
            await delivered(run, notifier, destination, payload)
            await has(run, destination, payload)
        async with run.opened(hasty=True) as checkable:
            for fault in run.peer.faults:
                what = f"check() of a peer that is {fault}"
                async with run.peer.failing(fault):
                    try:
                        await run.bounded(checkable.check, run.times.answer_s, what)
                    except AssertionError:
                        raise
                    except Exception as error:  # noqa: BLE001 - a failed check may raise anything
                        check_line(repr(error), run.peer.secrets, "the reason of check()")
