"""The contract of notifiers, as tests."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import trio

from downloader.notify import (
    Checkable,
    Delivered,
    Host,
    Notifier,
    Payload,
    Rejected,
)
from downloader.testing.deliveries import (
    NotifierPeer,
    a_payload,
    deliver,
    delivered,
    has,
    retried,
    short,
    works,
)
from downloader.testing.gate import Fault
from downloader.testing.host import open_host
from downloader.testing.stage import Contract, Stage, check_line, holdings, promise

_MANY = 50
"""Deliveries at once: as many as the service has in flight by default, nearly."""
_FEW = 8
_LARGE_BYTES = 100_000
"""Of a payload; a client's `extra` alone may be twice as long, but some queues end there."""
_CANCELS_S = (0.0, 0.01, 0.1, 0.4)
"""Moments at which a delivery is cancelled: before it does anything, while it connects, while it waits."""
_IN_FLIGHT_S = 0.3
"""Into a delivery, when the plugin is closed or everything is cancelled."""
_ODD = ("", " ", "\n", "\0", "a\r\nX-Injected: 1", "../../etc/passwd", "x" * 5000, "h\u00e9", "\U0001f642")
"""Destinations that clients may give; each has to be answered."""


class NotifierContract(Contract[NotifierPeer]):
    """Inherit it, and give it a peer.

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
        self, stage: Stage[NotifierPeer]
    ) -> None:
        """`Delivered` is the peer's word: it has the payload, byte for byte, once."""
        destination, payload = stage.peer.destination(), a_payload()
        async with stage.opened() as notifier:
            await delivered(stage, notifier, destination, payload)
            await has(stage, destination, payload)

    @promise
    async def test_payloads_of_every_size_and_script_arrive_unchanged(
        self, stage: Stage[NotifierPeer]
    ) -> None:
        """Nothing is decoded, trimmed, escaped or cut on the way."""
        texts = ("", "h\u00e9llo \u4e0b\u8f7d \U0001f642", "\\ \" ' % + & < > \t", "x" * _LARGE_BYTES)
        payloads = [a_payload(text) for text in texts]
        destination = stage.peer.destination()
        async with stage.opened() as notifier:
            for payload in payloads:
                await delivered(stage, notifier, destination, payload)
            await has(stage, destination, *payloads)

    @promise
    async def test_each_destination_gets_its_own(self, stage: Stage[NotifierPeer]) -> None:
        """A callback goes where its job says, and nowhere else."""
        routes = {stage.peer.destination(): a_payload() for _ in range(3)}
        assert len(routes) > 1, "destination() has to give a fresh one each time"
        async with stage.opened() as notifier:
            for destination, payload in routes.items():
                await delivered(stage, notifier, destination, payload)
            for destination, payload in routes.items():
                await has(stage, destination, payload)

    @promise
    async def test_many_are_delivered_at_once(self, stage: Stage[NotifierPeer]) -> None:
        """`deliver` is called from many tasks, and all callbacks arrive, none mixed up and none twice."""
        routes = [stage.peer.destination() for _ in range(2)]
        payloads = [a_payload() for _ in range(_MANY)]
        async with stage.opened() as notifier:
            async with trio.open_nursery() as nursery:
                for number, payload in enumerate(payloads):
                    nursery.start_soon(delivered, stage, notifier, routes[number % 2], payload)
            for turn, destination in enumerate(routes):
                await has(stage, destination, *payloads[turn::2])

    @promise
    async def test_a_repeat_is_delivered_too(self, stage: Stage[NotifierPeer]) -> None:
        """After a crash the same payload comes again; that is a success, and harms nothing."""
        destination, payload = stage.peer.destination(), a_payload()
        async with stage.opened() as notifier:
            await delivered(stage, notifier, destination, payload)
            await delivered(stage, notifier, destination, payload)
            found = await stage.peer.received(destination)
            assert set(found) == {payload.body}, f"the peer has {short(found)}"

    @promise
    async def test_a_peer_that_is_away_is_tried_again_later(self, stage: Stage[NotifierPeer]) -> None:
        """While every connection fails the answer is `RetryLater`, in time, and afterwards it works again."""
        await self._outage(stage, Fault.AWAY)

    @promise
    async def test_a_silent_peer_is_tried_again_later(self, stage: Stage[NotifierPeer]) -> None:
        """A peer that takes the connection and says nothing has not said that it has the message."""
        await self._outage(stage, Fault.SILENT)

    @promise
    async def test_a_lost_answer_is_no_success(self, stage: Stage[NotifierPeer]) -> None:
        """A connection that ends before the peer's word leaves it open: `RetryLater`, never `Delivered`."""
        await self._outage(stage, Fault.CUT)

    async def _outage(self, stage: Stage[NotifierPeer], fault: Fault) -> None:
        if fault not in stage.peer.faults:
            return
        async with stage.opened(hasty=True) as notifier:
            await works(stage, notifier)
            async with stage.peer.failing(fault) as destination:
                for _ in range(2):  # over the connection that was open, and over a new one
                    await retried(stage, notifier, destination, a_payload())
            await works(stage, notifier)

    @promise
    async def test_a_peer_that_is_away_at_the_start_is_tried_again_later(
        self, stage: Stage[NotifierPeer]
    ) -> None:
        """A peer that is not there when the plugin is opened may come later.

        Whether the plugin can be opened without its peer is its own choice; to refuse is a `PluginError`.
        """
        if Fault.AWAY not in stage.peer.faults:
            return
        back, back_again = trio.Event(), trio.Event()

        async def outage(task_status: trio.TaskStatus[str]) -> None:
            async with stage.peer.failing(Fault.AWAY) as destination:
                task_status.started(destination)
                await back.wait()
            back_again.set()

        # In a task of its own, as the plugin stays open when the outage is over.
        async with trio.open_nursery() as nursery:
            destination = await nursery.start(outage)
            try:
                async with stage.opened(hasty=True) as notifier:
                    await retried(stage, notifier, destination, a_payload())
                    back.set()
                    await back_again.wait()
                    await works(stage, notifier)
            except Exception as error:
                if back.is_set():
                    raise
                text = stage.plugin_error(error)
                check_line(text, stage.peer.secrets, "the reason for refusing to open")
            back.set()

    @promise
    async def test_a_silent_peer_holds_up_nobody(self, stage: Stage[NotifierPeer]) -> None:
        """Deliveries wait at the same time: the loop is not blocked, and they do not queue."""
        if Fault.SILENT not in stage.peer.faults:
            return
        async with stage.opened(hasty=True) as notifier, stage.peer.failing(Fault.SILENT) as destination:
            alone = await self._timed(stage, notifier, destination, 1)
            together = await self._timed(stage, notifier, destination, _FEW)
            assert together < 3 * alone + 1, (
                f"one delivery to a silent peer takes {alone:.1f} s, {_FEW} at once take {together:.1f} s:"
                " they wait for each other"
            )

    async def _timed(
        self, stage: Stage[NotifierPeer], notifier: Notifier, destination: str, count: int
    ) -> float:
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(retried, stage, notifier, destination, a_payload())
        return time.monotonic() - began

    @promise
    async def test_what_can_never_be_delivered_is_rejected(self, stage: Stage[NotifierPeer]) -> None:
        """`Rejected` is for what trying again does not help; it has a reason, and later deliveries work."""
        destination = stage.peer.rejected_destination()
        if destination is None:
            return
        async with stage.opened() as notifier:
            result = await deliver(stage, notifier, destination, a_payload())
            assert isinstance(result, Rejected), (
                f"for a destination that never works deliver() answers {result!r}"
            )
            await delivered(stage, notifier, stage.peer.destination(), a_payload())

    @promise
    async def test_whatever_the_destination_it_is_answered(self, stage: Stage[NotifierPeer]) -> None:
        """Clients name destinations: an odd one is answered, not raised, and never a success that is none."""
        async with stage.opened() as notifier:

            async def one(destination: str) -> None:
                payload = a_payload()
                if isinstance(await deliver(stage, notifier, destination, payload), Delivered):
                    found = await stage.peer.received(destination)
                    assert payload.body in found, f"nothing has arrived at {destination[:50]!r}"

            async with trio.open_nursery() as nursery:
                for destination in _ODD:
                    nursery.start_soon(one, destination)
            await delivered(stage, notifier, stage.peer.destination(), a_payload())

    @promise
    async def test_a_cancel_in_mid_delivery_returns_at_once(self, stage: Stage[NotifierPeer]) -> None:
        """At a stop the service cancels: `deliver` returns promptly at any moment, and the next one works."""
        if Fault.SILENT not in stage.peer.faults:
            return
        async with stage.opened(hasty=True) as notifier:
            async with stage.peer.failing(Fault.SILENT) as destination:
                for after_s in _CANCELS_S:
                    call = partial(notifier.deliver, destination, a_payload())
                    result = await stage.cancelled(call, after_s=after_s, what="a delivery")
                    assert not isinstance(result, Delivered), "Delivered by a peer that had said nothing"
            await works(stage, notifier)

    @promise
    async def test_cancels_among_deliveries_disturb_no_other(self, stage: Stage[NotifierPeer]) -> None:
        """Some deliveries are cancelled at any moment: all others arrive, and each arrives once."""
        destination = stage.peer.destination()
        kept = [a_payload() for _ in range(2 * _FEW + 1)]
        dropped = [a_payload() for _ in range(2 * _FEW)]
        async with stage.opened() as notifier:

            async def drop(payload: Payload, after_s: float) -> None:
                call = partial(notifier.deliver, destination, payload)
                await stage.cancelled(call, after_s=after_s, what="a delivery")

            began = time.monotonic()
            await delivered(stage, notifier, destination, kept[-1])
            took_s = time.monotonic() - began
            for turn in range(_FEW):
                await drop(dropped[turn], took_s * turn / _FEW)
                await delivered(stage, notifier, destination, kept[turn])
            async with trio.open_nursery() as nursery:
                for turn in range(_FEW):
                    nursery.start_soon(drop, dropped[_FEW + turn], took_s * turn / _FEW)
                    nursery.start_soon(delivered, stage, notifier, destination, kept[_FEW + turn])
            found = list(await stage.peer.received(destination))
            for payload in kept:
                assert found.count(payload.body) == 1, (
                    f"a payload has arrived {found.count(payload.body)} times beside cancelled ones"
                )
            known = {payload.body for payload in (*kept, *dropped)}
            assert set(found) <= known, "the peer has bytes that nobody has sent: a cancel has torn a message"

    @promise
    async def test_it_is_closed_without_a_delivery(self, stage: Stage[NotifierPeer]) -> None:
        """Opened and closed with nothing done, several times over; then it works."""
        for _ in range(3):
            async with stage.opened():
                pass
        async with stage.opened() as notifier:
            await delivered(stage, notifier, stage.peer.destination(), a_payload())

    @promise
    async def test_it_is_opened_again_after_it_was_closed(self, stage: Stage[NotifierPeer]) -> None:
        """The factory may be called again; nothing of the first time is in the way."""
        destination, payloads = stage.peer.destination(), [a_payload(), a_payload()]
        for payload in payloads:
            async with stage.opened() as notifier:
                await delivered(stage, notifier, destination, payload)
        await has(stage, destination, *payloads)

    @promise
    async def test_two_may_be_open_at_once(self, stage: Stage[NotifierPeer]) -> None:
        """Two of a kind share nothing: closing one leaves the other at work."""
        destination, payloads = stage.peer.destination(), [a_payload() for _ in range(3)]
        async with stage.opened() as first:
            async with stage.opened() as second:
                await delivered(stage, first, destination, payloads[0])
                await delivered(stage, second, destination, payloads[1])
            await delivered(stage, first, destination, payloads[2])
        await has(stage, destination, *payloads)

    @promise
    async def test_it_closes_while_deliveries_are_in_flight(self, stage: Stage[NotifierPeer]) -> None:
        """Whoever is still in `deliver` when the plugin is closed comes back, without a false success."""
        if Fault.SILENT not in stage.peer.faults:
            return
        results: list[object] = []

        async def one(notifier: Notifier, destination: str) -> None:
            try:
                results.append(await notifier.deliver(destination, a_payload()))
            except Exception as error:  # noqa: BLE001 - the plugin is closed: it may say so in its own way
                results.append(error)

        async with stage.peer.failing(Fault.SILENT) as destination, trio.open_nursery() as nursery:
            async with stage.opened(hasty=True) as notifier:
                for _ in range(_FEW):
                    nursery.start_soon(one, notifier, destination)
                await trio.sleep(_IN_FLIGHT_S)
            with stage.watched(stage.times.answer_s, "a delivery in flight while the plugin was closed"):
                while len(results) < _FEW:  # noqa: ASYNC110 - they end by themselves
                    await trio.sleep(0.01)
        assert not [one for one in results if isinstance(one, Delivered)], "a false success"

    @promise
    async def test_a_stop_in_mid_delivery_closes_it(self, stage: Stage[NotifierPeer]) -> None:
        """All that has the plugin open is cancelled, its own context too: everything ends promptly."""
        if Fault.SILENT not in stage.peer.faults:
            return

        async def work(destination: str) -> None:
            async with stage.opened(hasty=True) as notifier, trio.open_nursery() as nursery:
                for _ in range(_FEW):
                    nursery.start_soon(notifier.deliver, destination, a_payload())

        async with stage.peer.failing(Fault.SILENT) as destination:
            await stage.cancelled(partial(work, destination), after_s=_IN_FLIGHT_S, what="the open plugin")
        async with stage.opened() as notifier:
            await works(stage, notifier)

    @promise
    async def test_it_leaves_nothing_behind(self, stage: Stage[NotifierPeer]) -> None:
        """When it is closed no task, thread, socket or file of its own is left, also after a cancel."""
        await self._work(stage)  # what is made once for the whole process is no leak
        before = holdings()
        await self._work(stage)
        await stage.gone(before)

    async def _work(self, stage: Stage[NotifierPeer]) -> None:
        async with stage.opened() as notifier:
            for _ in range(3):
                await delivered(stage, notifier, stage.peer.destination(), a_payload())
        if Fault.SILENT not in stage.peer.faults:
            return
        async with (
            stage.opened(hasty=True) as notifier,
            stage.peer.failing(Fault.SILENT) as destination,
        ):
            call = partial(notifier.deliver, destination, a_payload())
            await stage.cancelled(call, after_s=0.1, what="a delivery")

    @promise
    async def test_what_is_raised_while_it_is_open_passes_through(self, stage: Stage[NotifierPeer]) -> None:
        """The plugin's context manager swallows nothing and closes all the same."""
        await stage.passes_errors_through()
        async with stage.opened() as notifier:
            await delivered(stage, notifier, stage.peer.destination(), a_payload())

    @promise
    async def test_a_bad_section_is_one_line_that_names_the_key(self, stage: Stage[NotifierPeer]) -> None:
        """`PluginError`, one line, the key at fault in it and no secret: people read it at the start."""
        await stage.refuses_the_bad_section()

    @promise
    async def test_its_check_tells_what_it_found(self, stage: Stage[NotifierPeer]) -> None:
        """A notifier that has `check()` answers one line, in time, and delivers nothing by it."""
        async with stage.opened() as notifier:
            checkable: Any = notifier
            if not isinstance(checkable, Checkable):
                return
            destination, payload = stage.peer.destination(), a_payload()
            found = await stage.bounded(checkable.check, stage.times.answer_s, "check()")
            check_line(found, stage.peer.secrets, "the answer of check()")
            await delivered(stage, notifier, destination, payload)
            await has(stage, destination, payload)
        async with stage.opened(hasty=True) as checkable:
            for fault in stage.peer.faults:
                what = f"check() of a peer that is {fault}"
                async with stage.peer.failing(fault):
                    try:
                        await stage.bounded(checkable.check, stage.times.answer_s, what)
                    except AssertionError:
                        raise
                    except Exception as error:  # noqa: BLE001 - how a check says no
                        check_line(repr(error), stage.peer.secrets, "the reason of check()")
