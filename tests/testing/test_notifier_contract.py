"""The notifiers' contract suite: a sound plugin passes, and each test fails a plugin with that flaw."""

import asyncio
import itertools
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import pytest
import trio
import trio_asyncio

from downloader.errors import PluginError
from downloader.notify import Delivered, Host, Notifier, Payload, Rejected, Result, RetryLater
from downloader.testing import Fault, NotifierContract, NotifierPeer, TcpProxy, open_tcp_proxy
from servers.flawed import flawed

SECRET = "correct-horse"
LONG_S = 20.0
"""What leaks outlasts every test."""


class Board:
    """A server: a line of JSON with the destination and the length, then the body; it answers `ok`."""

    def __init__(self) -> None:
        self.posted: defaultdict[str, list[bytes]] = defaultdict(list)

    async def serve(self, stream: trio.SocketStream) -> None:
        data = b""
        try:
            while True:
                while b"\n" not in data:
                    data += await self._more(stream)
                head, _, data = data.partition(b"\n")
                destination, length = json.loads(head)
                while len(data) < length:
                    data += await self._more(stream)
                self.posted[destination].append(data[:length])
                data = data[length:]
                await stream.send_all(b"ok\n")
        except (EOFError, ValueError, trio.BrokenResourceError):
            await trio.aclose_forcefully(stream)

    async def _more(self, stream: trio.SocketStream) -> bytes:
        more = await stream.receive_some(65536)
        if not more:
            raise EOFError
        return bytes(more)


class Sound:
    """A notifier that keeps all promises; the flawed ones change one thing."""

    given_up_after: ClassVar[Mapping[str, float]] = {}
    """Shorter time limits of the suite, for a flaw that is seen by none but them."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        self.port: int = section["port"]
        self.timeout: float = section["timeout"]

    @classmethod
    @asynccontextmanager
    async def open(cls, section: Mapping[str, Any]) -> AsyncIterator[Notifier]:
        cls.judge(section)
        notifier = cls(section)
        await notifier.begin()
        try:
            yield notifier
        finally:
            await notifier.end()

    @classmethod
    def judge(cls, section: Mapping[str, Any]) -> None:
        if not isinstance(section["port"], int):
            raise PluginError("port: must be a number")

    async def begin(self) -> None:
        """Called at this point; flawed plugins override it."""

    async def end(self) -> None:
        """Called at this point; flawed plugins override it."""

    async def deliver(self, destination: str, payload: Payload) -> Result:
        if not destination.startswith("board/"):
            return Rejected("there is no such board")
        try:
            with trio.fail_after(self.timeout):
                word = await self.send(destination, payload.body)
        except trio.TooSlowError:
            return self.too_slow()
        except (OSError, trio.BrokenResourceError):
            return RetryLater("the connection was lost")
        return Delivered() if word == b"ok\n" else self.no_word()

    def too_slow(self) -> Result:
        return RetryLater("no answer in time")

    def no_word(self) -> Result:
        return RetryLater("no answer")

    async def send(self, destination: str, body: bytes) -> bytes:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(json.dumps([destination, len(body)]).encode() + b"\n" + body)
            return bytes(await stream.receive_some(10))

    async def check(self) -> str:
        await (await trio.open_tcp_stream("127.0.0.1", self.port)).aclose()
        return "the board is there"


class SaysDelivered(Sound):
    async def deliver(self, destination: str, payload: Payload) -> Result:  # noqa: ARG002 - its flaw
        return Delivered()


class Recodes(Sound):
    async def send(self, destination: str, body: bytes) -> bytes:
        return await super().send(destination, body.decode().encode("ascii", "replace"))


class Misdirects(Sound):
    first = ""

    async def send(self, destination: str, body: bytes) -> bytes:
        self.first = self.first or destination
        return await super().send(self.first, body)


class SharesState(Sound):
    async def send(self, destination: str, body: bytes) -> bytes:
        self.body = body
        await trio.sleep(0.001)
        return await super().send(destination, self.body)


class RefusesRepeats(Sound):
    def __init__(self, section: Mapping[str, Any]) -> None:
        super().__init__(section)
        self.seen: set[str] = set()

    async def deliver(self, destination: str, payload: Payload) -> Result:
        if payload.job_id in self.seen:
            return Rejected("sent before")
        self.seen.add(payload.job_id)
        return await super().deliver(destination, payload)


class Raises(Sound):
    async def deliver(self, destination: str, payload: Payload) -> Result:
        await self.send(destination, payload.body)
        return Delivered()


class GivesUp(Sound):
    """Does not survive an outage."""

    given_up_after: ClassVar = {"recover_s": 0.5}
    dead = False

    async def deliver(self, destination: str, payload: Payload) -> Result:
        result = RetryLater("lost") if self.dead else await super().deliver(destination, payload)
        self.dead = not isinstance(result, Delivered | Rejected)
        return result


class TwoLines(Sound):
    async def deliver(self, destination: str, payload: Payload) -> Result:
        result = await super().deliver(destination, payload)
        return RetryLater("Traceback:\n  lost") if isinstance(result, RetryLater) else result


class TellsSecrets(Sound):
    def no_word(self) -> Result:
        return RetryLater(f"the password {SECRET} was not taken")


class Waits(Sound):
    given_up_after: ClassVar = {"answer_s": 3.0}

    async def deliver(self, destination: str, payload: Payload) -> Result:
        while True:
            result = await super().deliver(destination, payload)
            if not isinstance(result, RetryLater):
                return result


class Hopes(Sound):
    def too_slow(self) -> Result:
        return Delivered()


class TakesAnEndForAWord(Sound):
    def no_word(self) -> Result:
        return Delivered()


class ConnectsAtOnce(Sound):
    async def begin(self) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(b'["board/hello", 0]\n')
            if not await stream.receive_some(10):
                raise ConnectionError("no server")


class Queues(Sound):
    given_up_after: ClassVar = {"answer_s": 3.0}

    def __init__(self, section: Mapping[str, Any]) -> None:
        super().__init__(section)
        self.turn = trio.Lock()

    async def deliver(self, destination: str, payload: Payload) -> Result:
        async with self.turn:
            return await super().deliver(destination, payload)


class Blocks(Sound):
    given_up_after: ClassVar = {"answer_s": 3.0, "cancel_s": 1.0}

    def too_slow(self) -> Result:
        time.sleep(1)
        return super().too_slow()


class NeverRejects(Sound):
    async def deliver(self, destination: str, payload: Payload) -> Result:
        result = await super().deliver(destination, payload)
        return RetryLater(result.reason) if isinstance(result, Rejected) else result


class ChokesOnOddDestinations(Sound):
    async def deliver(self, destination: str, payload: Payload) -> Result:
        destination.encode("ascii")
        return await super().deliver(destination, payload)


class IgnoresCancels(Sound):
    given_up_after: ClassVar = {"cancel_s": 0.5}

    async def deliver(self, destination: str, payload: Payload) -> Result:
        with trio.CancelScope(shield=True):
            result = await super().deliver(destination, payload)
            if isinstance(result, RetryLater):
                await trio.sleep(2)
            return result
        return Rejected("cancelled")


class LosesFewCancels(IgnoresCancels):
    """As `asyncio.wait_for` of Python 3.11 does, which `IgnoresCancels` stands for one time in twenty."""

    calls = 0

    async def deliver(self, destination: str, payload: Payload) -> Result:
        self.calls += 1
        kind = IgnoresCancels if self.calls % 20 == 0 else Sound
        return await kind.deliver(self, destination, payload)


class TornByCancels(Sound):
    """Shares one connection, and a cancel leaves half of a message on it."""

    stream: trio.SocketStream | None = None

    async def begin(self) -> None:
        self.turn = trio.Lock()

    async def send(self, destination: str, body: bytes) -> bytes:
        message = json.dumps([destination, len(body)]).encode() + b"\n" + body
        try:
            async with self.turn:
                self.stream = self.stream or await trio.open_tcp_stream("127.0.0.1", self.port)
                await self.stream.send_all(message)
                return bytes(await self.stream.receive_some(3))
        except trio.Cancelled:
            if self.stream is not None:
                with trio.CancelScope(shield=True):
                    await self.stream.send_all(message[:10])
            raise

    async def end(self) -> None:
        if self.stream is not None:
            await trio.aclose_forcefully(self.stream)


class ClosesOnlyWhatWasUsed(Sound):
    async def send(self, destination: str, body: bytes) -> bytes:
        self.used = True
        return await super().send(destination, body)

    async def end(self) -> None:
        assert self.used


class OpensOnce(Sound):
    opened: ClassVar[set[int]] = set()

    async def begin(self) -> None:
        if self.port in self.opened:
            raise PluginError("port: used already")
        self.opened.add(self.port)


class ClosesTheOther(Sound):
    closed: ClassVar[set[int]] = set()

    async def begin(self) -> None:
        self.closed.discard(self.port)

    async def deliver(self, destination: str, payload: Payload) -> Result:
        if self.port in self.closed:
            return RetryLater("closed")
        return await super().deliver(destination, payload)

    async def end(self) -> None:
        self.closed.add(self.port)


class ClosingIsSuccess(Sound):
    async def begin(self) -> None:
        self.closed = trio.Event()

    async def deliver(self, destination: str, payload: Payload) -> Result:
        results: list[Result] = [Delivered()]
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                results.insert(0, await super(ClosingIsSuccess, self).deliver(destination, payload))
                nursery.cancel_scope.cancel()

            nursery.start_soon(work)
            await self.closed.wait()
            nursery.cancel_scope.cancel()
        return results[0]

    async def end(self) -> None:
        self.closed.set()


class HangsInClosing(Sound):
    given_up_after: ClassVar = {"cancel_s": 0.5}

    async def end(self) -> None:
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            raise


class LeaksAThread(Sound):
    given_up_after: ClassVar = {"settle_s": 0.5}

    async def begin(self) -> None:
        threading.Thread(target=time.sleep, args=[LONG_S], name="leaked", daemon=True).start()


class LeaksASocket(Sound):
    given_up_after: ClassVar = {"settle_s": 0.5}
    kept: ClassVar[list[socket.socket]] = []

    async def begin(self) -> None:
        self.kept.append(socket.socket())


class LeaksATask(Sound):
    given_up_after: ClassVar = {"settle_s": 0.5}

    async def begin(self) -> None:
        trio.lowlevel.spawn_system_task(partial(trio.sleep, LONG_S), name="leaked")


class LeaksAnAsyncioTask(Sound):
    given_up_after: ClassVar = {"settle_s": 0.5}
    kept: ClassVar[list[Any]] = []

    async def begin(self) -> None:
        self.kept.append(trio_asyncio.current_loop.get().create_task(asyncio.sleep(LONG_S), name="leaked"))


class Swallows(Sound):
    @classmethod
    @asynccontextmanager
    async def open(cls, section: Mapping[str, Any]) -> AsyncIterator[Notifier]:
        cls.judge(section)
        with suppress(LookupError):
            yield cls(section)


class TakesAnySection(Sound):
    @classmethod
    def judge(cls, section: Mapping[str, Any]) -> None:
        pass


class RefusesInItsOwnWay(Sound):
    @classmethod
    def judge(cls, section: Mapping[str, Any]) -> None:
        if not isinstance(section["port"], int):
            raise TypeError("port")


class NamesNoKey(Sound):
    @classmethod
    def judge(cls, section: Mapping[str, Any]) -> None:
        if not isinstance(section["port"], int):
            raise PluginError("this is wrong")


class RepeatsTheValue(Sound):
    @classmethod
    def judge(cls, section: Mapping[str, Any]) -> None:
        if not isinstance(section["port"], int):
            raise PluginError(f"port: not {section['port']}")


class ChecksWithoutWords(Sound):
    async def check(self) -> str:
        return ""


class ChecksForEver(Sound):
    given_up_after: ClassVar = {"answer_s": 3.0}

    async def check(self) -> str:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(b'["board/hello", 0]\n')
            await stream.receive_some(10)
        return "the board is there"


@dataclass
class BoardPeer(NotifierPeer):
    plugin: type[Sound]
    board: Board
    proxy: TcpProxy
    section: Mapping[str, Any]
    bad_section: Mapping[str, Any] = field(default_factory=lambda: {"port": SECRET, "timeout": 10})
    hasty: Mapping[str, Any] = field(default_factory=lambda: {"timeout": 1.0})
    secrets: Sequence[str] = (SECRET,)
    numbers: Any = field(default_factory=itertools.count)

    def open(self, section: Mapping[str, Any], host: Host) -> AbstractAsyncContextManager[Notifier]:  # noqa: ARG002
        return self.plugin.open(section)

    def destination(self) -> str:
        return f"board/{next(self.numbers)}"

    def rejected_destination(self) -> str:
        return "nowhere"

    @asynccontextmanager
    async def failing(self, fault: Fault) -> AsyncIterator[str]:
        with self.proxy.fault(fault):
            yield self.destination()

    async def received(self, destination: str) -> Sequence[bytes]:
        return self.board.posted[destination]


class BoardContract(NotifierContract):
    plugin: type[Sound]

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[NotifierPeer]:
        board = Board()
        async with trio.open_nursery() as nursery:
            listeners: list[trio.SocketListener] = await nursery.start(
                partial(trio.serve_tcp, board.serve, 0, host="127.0.0.1")
            )
            async with open_tcp_proxy(listeners[0].socket.getsockname()[1]) as proxy:
                yield BoardPeer(self.plugin, board, proxy, {"port": proxy.port, "timeout": 10})
            nursery.cancel_scope.cancel()


@pytest.mark.slow
class TestSound(BoardContract):
    """The sound one passes."""

    plugin = Sound


FLAWS: list[tuple[str, type[Sound], str]] = [
    ("delivered_means_that_the_peer_has_exactly_these_bytes", SaysDelivered, "the peer has 0"),
    ("payloads_of_every_size_and_script_arrive_unchanged", Recodes, "the peer has 4"),
    ("each_destination_gets_its_own", Misdirects, "the peer has 3"),
    ("many_are_delivered_at_once", SharesState, "the peer has 25"),
    ("a_repeat_is_delivered_too", RefusesRepeats, "answers Rejected"),
    ("a_peer_that_is_away_is_tried_again_later", Raises, r"deliver\(\) raised"),
    ("a_peer_that_is_away_is_tried_again_later", GivesUp, "it still answers"),
    ("a_peer_that_is_away_is_tried_again_later", TwoLines, "more than one line"),
    ("a_silent_peer_is_tried_again_later", Hopes, "answers Delivered"),
    ("a_silent_peer_is_tried_again_later", Waits, "had not returned after 3 s"),
    ("a_lost_answer_is_no_success", TakesAnEndForAWord, "answers Delivered"),
    ("a_lost_answer_is_no_success", TellsSecrets, "holds a secret"),
    ("a_peer_that_is_away_at_the_start_is_tried_again_later", ConnectsAtOnce, "no PluginError"),
    ("a_silent_peer_holds_up_nobody", Queues, "wait for each other|had not returned"),
    ("a_silent_peer_holds_up_nobody", Blocks, "wait for each other|has not come to an end|had not returned"),
    ("what_can_never_be_delivered_is_rejected", NeverRejects, "returns RetryLater"),
    ("whatever_the_destination_it_is_answered", ChokesOnOddDestinations, r"deliver\(\) raised Unicode"),
    ("a_cancel_in_mid_delivery_returns_at_once", IgnoresCancels, "has not come to an end within"),
    ("a_cancel_in_mid_delivery_returns_at_once", LosesFewCancels, "has not come to an end within"),
    (
        "cancels_among_deliveries_disturb_no_other",
        TornByCancels,
        "has arrived 0 times|answers RetryLater",
    ),
    ("it_is_closed_without_a_delivery", ClosesOnlyWhatWasUsed, "used"),
    ("it_is_opened_again_after_it_was_closed", OpensOnce, "used already"),
    ("two_may_be_open_at_once", ClosesTheOther, "closed"),
    ("it_closes_while_deliveries_are_in_flight", ClosingIsSuccess, "a false success"),
    ("a_stop_in_mid_delivery_closes_it", HangsInClosing, "has not come to an end within"),
    ("it_leaves_nothing_behind", LeaksAThread, "the thread leaked"),
    ("it_leaves_nothing_behind", LeaksASocket, "the socket of descriptor"),
    ("it_leaves_nothing_behind", LeaksATask, "the task leaked"),
    ("it_leaves_nothing_behind", LeaksAnAsyncioTask, "the asyncio task leaked"),
    ("what_is_raised_while_it_is_open_passes_through", Swallows, "swallowed"),
    ("a_bad_section_is_one_line_that_names_the_key", TakesAnySection, "was accepted"),
    ("a_bad_section_is_one_line_that_names_the_key", RefusesInItsOwnWay, "no PluginError"),
    ("a_bad_section_is_one_line_that_names_the_key", NamesNoKey, "is named in"),
    ("a_bad_section_is_one_line_that_names_the_key", RepeatsTheValue, "holds a secret"),
    ("its_check_tells_what_it_found", ChecksWithoutWords, "is empty"),
    ("its_check_tells_what_it_found", ChecksForEver, "had not returned after"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "plugin", "message"), FLAWS, ids=[plugin.__name__ for _, plugin, _ in FLAWS]
)
def test_a_flawed_plugin_fails(test: str, plugin: type[Sound], message: str) -> None:
    with pytest.raises(Exception, match=message):
        getattr(flawed(BoardContract(), plugin), f"test_{test}")()


def test_each_promise_is_broken_by_some_plugin() -> None:
    promises = {name for name in dir(NotifierContract) if name.startswith("test_")}
    assert promises == {f"test_{test}" for test, _, _ in FLAWS}
